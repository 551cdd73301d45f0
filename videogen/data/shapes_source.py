"""Captioned moving shapes: a procedural data set whose captions can be checked from the pixels alone.

A caption follows one fixed grammar, ``a SIZE COLOUR FORM moves DIRECTION [then DIRECTION] SPEED [and a …] on
a TONE TEXTURE background``; ``caption`` writes it, ``parse`` reads it, ``render`` draws it.

Lengths are in units of the shorter side of the frame, so one scene fits every resolution, and positions are
functions of progress in [0, 1] through the clip, so it fits every number of frames.
"""

import hashlib
import itertools
import re
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from videogen.data.clip import Clip
from videogen.data.source import Source
from videogen.errors import UserError, near_matches

COLOURS = {
    "red": (225, 40, 40),
    "yellow": (235, 215, 40),
    "green": (35, 170, 60),
    "cyan": (40, 205, 220),
    "blue": (45, 75, 230),
    "purple": (165, 50, 205),
}
FORMS = ("circle", "square", "triangle", "cross")
RADII = {"small": 0.2, "medium": 0.25, "large": 0.3}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
TRAVEL = {"slowly": 0.2, "quickly": 0.35}
TONES = {"dark": 45, "grey": 120, "pale": 205}
TEXTURES = ("plain", "gradient", "striped")

FPS = 8.0
SUBTITLE = "subtitle"
_CROWDED = 0.75
"""Scale of the radii where two shapes share the frame and its room."""
_MARGIN = 0.02
_GAP = 0.06
_TONE_RANGE = 22
_SQUARE, _TRIANGLE_SIDE, _TRIANGLE_BASE, _CROSS_ARM = 0.87, 0.95, 0.75, 0.38


def caption(attributes: dict[str, Any]) -> str:
    """The caption of a scene; equal captions mean equal attributes up to the places."""
    shapes = (
        f"a {s['size']} {s['colour']} {s['form']} moves {' then '.join(s['directions'])} {s['speed']}"
        for s in attributes["shapes"]
    )
    return f"{' and '.join(shapes)} on a {attributes['tone']} {attributes['texture']} background"


def subtitle(attributes: dict[str, Any]) -> str:
    """What somebody who watches a scene might say: fewer things than its caption tells, in other words."""
    shapes = (f"the {s['colour']} {s['form']} goes {' and '.join(s['directions'])}" for s in attributes["shapes"])
    return f"look, {', '.join(shapes)}"


def _one_of(name: str, words) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


_SHAPE = re.compile(
    f"a {_one_of('size', RADII)} {_one_of('colour', COLOURS)} {_one_of('form', FORMS)} moves "
    f"{_one_of('directions', DIRECTIONS)}(?: then {_one_of('turn', DIRECTIONS)})? {_one_of('speed', TRAVEL)}"
)
_SCENE = re.compile(f"(?P<shapes>.+) on a {_one_of('tone', TONES)} {_one_of('texture', TEXTURES)} background")


def parse(text: str) -> dict[str, Any]:
    """Reads a caption back into attributes (without the places, which it does not tell).

    Raises:
      UserError: the text does not follow the grammar.
    """
    scene = _SCENE.fullmatch(text.strip())
    found = [_SHAPE.fullmatch(part) for part in scene["shapes"].split(" and ")] if scene else [None]
    if not all(found):
        example = "a large red circle moves left quickly on a dark striped background"
        raise UserError(f"{text!r} is no caption of the shapes source; write it like {example!r}")
    shapes = []
    for match in found:
        words = match.groupdict()
        turn = words.pop("turn")
        words["directions"] = [words["directions"], turn] if turn else [words["directions"]]
        shapes.append(words)
    return {"shapes": shapes, "tone": scene["tone"], "texture": scene["texture"]}


COMPOSITION = "composition"
"""The split of scenes in which a colour, form and direction come together that never do in the others."""


def held_out_together(colour: str, form: str, direction: str) -> bool:
    """Whether the three occur together in the split 'composition' alone: one in eight of all triples.

    Two triples of each colour, three of each form and of each direction are; any two of the three occur in training.
    """
    c, f, d = _NUMBER[colour], _NUMBER[form], _NUMBER[direction]
    return c % 2 == f % 2 and d == (f + c // 2) % len(DIRECTIONS)


_NUMBER = {word: number for words in (COLOURS, FORMS, DIRECTIONS) for number, word in enumerate(words)}


def split_of(attributes: dict[str, Any]) -> str:
    """'composition' or, by the SHA-256 of the caption, 'eval' for one in eight other scenes, else 'train'."""
    if any(held_out_together(s["colour"], s["form"], way) for s in attributes["shapes"] for way in s["directions"]):
        return COMPOSITION
    return "eval" if hashlib.sha256(caption(attributes).encode()).digest()[0] % 8 == 0 else "train"


def path(shape: dict[str, Any], progress: Float[np.ndarray, "time"]) -> Float[np.ndarray, "time 2"]:
    """Displacement (y, x) from the start at each progress in [0, 1]; directions take equal shares."""
    legs = np.array([DIRECTIONS[d] for d in shape["directions"]], np.float32)
    shares = np.clip(progress[:, None] * len(legs) - np.arange(len(legs)), 0, 1)
    return shares @ legs * (TRAVEL[shape["speed"]] / len(legs))


def form_mask(
    form: str, centres: Float[np.ndarray, "time 2"], radius: float, height: int, width: int
) -> Float[np.ndarray, "time height width"]:
    """Coverage in [0, 1] of each pixel by a form, anti-aliased over one pixel at its outline.

    Args:
      form: one of FORMS; each fits the box of half side ``radius`` around its centre.
      centres: (y, x) in units of the shorter side.
      radius: in the same units.
      height: rows in pixels.
      width: columns in pixels.
    """
    unit = min(height, width)
    centres = np.asarray(centres, np.float32) * unit
    r = np.float32(radius * unit)
    y = (np.arange(height, dtype=np.float32) + 0.5 - centres[:, :1])[:, :, None]
    x = np.abs(np.arange(width, dtype=np.float32) + 0.5 - centres[:, 1:])[:, None, :]
    if form == "circle":
        distance = np.sqrt(y * y + x * x) - r
    elif form == "square":
        distance = np.maximum(np.abs(y), x) - _SQUARE * r
    elif form == "triangle":
        side, rise = _TRIANGLE_SIDE * r, (1 + _TRIANGLE_BASE) * r
        slant = (x * rise - (y + r) * side) / np.hypot(side, rise)
        distance = np.maximum(slant, y - _TRIANGLE_BASE * r)
    elif form == "cross":
        y = np.abs(y)
        arm = _CROSS_ARM * r
        distance = np.minimum(np.maximum(x - r, y - arm), np.maximum(x - arm, y - r))
    else:
        raise KeyError(form)
    return np.clip(0.5 - distance, 0, 1)


def radius_of(size: str, count: int) -> float:
    """Half side of the box that a form of this size fits, in a scene of ``count`` shapes."""
    return RADII[size] * (1.0 if count == 1 else _CROWDED)


def background(attributes: dict[str, Any], height: int, width: int) -> Float[np.ndarray, "height width"]:
    """Grey values of the still background, one of 9: what its caption says is all there is to know of it."""
    unit = min(height, width)
    y = (np.arange(height, dtype=np.float32) / unit)[:, None]
    x = (np.arange(width, dtype=np.float32) / unit)[None, :]
    tone = TONES[attributes["tone"]]
    if attributes["texture"] == "plain":
        shade = np.zeros((height, width), np.float32)
    elif attributes["texture"] == "gradient":
        shade = 2 * y - 1 + 0 * x
    else:
        shade = np.cos(2 * np.pi * 6 * (x + y))
    return tone + _TONE_RANGE * shade


def covers(attributes: dict[str, Any], clip: Clip) -> list[Float[np.ndarray, "time height width"]]:
    """How much of each pixel every shape covers; shapes need their ``start`` (see ``ShapesSource.sample``)."""
    progress = np.linspace(0, 1, clip.frames, dtype=np.float32) if clip.frames > 1 else np.zeros(1, np.float32)
    found = []
    for shape in attributes["shapes"]:
        centres = np.asarray(shape["start"], np.float32) + path(shape, progress)
        radius = radius_of(shape["size"], len(attributes["shapes"]))
        found.append(form_mask(shape["form"], centres, radius, clip.height, clip.width))
    return found


def render(attributes: dict[str, Any], clip: Clip) -> UInt8[np.ndarray, "time height width 3"]:
    """Draws a scene; shapes need their ``start`` (see ``ShapesSource.sample``)."""
    grey = background(attributes, clip.height, clip.width)
    video = np.broadcast_to(grey[None, :, :, None], (clip.frames, clip.height, clip.width, 3))
    for shape, cover in zip(attributes["shapes"], covers(attributes, clip), strict=True):
        video = video + cover[..., None] * (np.array(COLOURS[shape["colour"]], np.float32) - video)
    return (video + 0.5).astype(np.uint8)


class ShapesSource(Source):
    """Moving shapes on grey backgrounds, endless in effect.

    The label is the colour and form of the first shape, with ``directions`` also where it moves first. A sample also
    holds its ground truth, ``attributes``.

    Args:
      clip: its ``fps`` is only passed on (8 when not given); motion is relative to the clip's length.
      seed: with the index, decides the sample.
      split: captions of 'eval' never occur in 'train', whatever the seed; every colour, form and direction of 'eval'
        does occur together there, which in each scene of 'composition' some never do.
      length: number of samples.
      second_shape: probability of a second shape of another colour, whose path keeps clear of the first.
      turn: probability that the first shape changes its direction half-way.
      directions: labels tell where the first shape moves, too: 96 classes instead of 24.
      without: a colour that no shape has; empty: all occur.
      subtitle: samples have a second text, ``subtitle``.
    """

    classes = tuple(f"{colour} {form}" for form in FORMS for colour in COLOURS)

    judged = True

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        length: int = 1_000_000,
        second_shape: float = 0.0,
        turn: float = 0.0,
        directions: bool = False,
        without: str = "",
        subtitle: bool = False,
    ):
        super().__init__(clip=clip, seed=seed, split="eval" if split == COMPOSITION else split)
        self.split = split
        for name, value in (("second_shape", second_shape), ("turn", turn)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} is a probability between 0 and 1, got {value}")
        if without and without not in COLOURS:
            raise UserError(f"unknown colour {without!r}{near_matches(without, COLOURS)}")
        self._without, self._length = without, length
        self._second_shape = second_shape
        self._turn = turn
        self._directions = directions
        self.texts = type(self).texts_said({"subtitle": subtitle})
        if directions:
            self.classes = tuple(f"{name} {way}" for name in self.classes for way in DIRECTIONS)

    def __len__(self) -> int:
        return self._length

    @classmethod
    def texts_said(cls, settings):
        return (*cls.texts, SUBTITLE) if settings.get(SUBTITLE) else cls.texts

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The scene at ``index``; nothing about reading it is random, so ``rng`` is not used."""
        attributes = self._scene(np.random.default_rng([self.seed, index]))
        first = attributes["shapes"][0]
        name = f"{first['colour']} {first['form']}" + (f" {first['directions'][0]}" if self._directions else "")
        return {
            "video": render(attributes, self.clip),
            "caption": caption(attributes),
            "label": self.classes.index(name),
            "fps": self.clip.fps or FPS,
            "attributes": attributes,
            **({SUBTITLE: subtitle(attributes)} if SUBTITLE in self.texts else {}),
        }

    def segments(self, sample: dict[str, Any]) -> np.ndarray:
        """1 for the background, 2 and 3 for the shapes, where they cover half of a pixel."""
        clip, attributes = self.clip, sample["attributes"]
        labels = np.ones((clip.frames, clip.height, clip.width), np.int32)
        for number, cover in enumerate(covers(attributes, clip), start=2):
            labels[cover >= 0.5] = number
        return labels

    def caption(self, index: int) -> str:
        return caption(self._scene(np.random.default_rng([self.seed, index])))

    def texts_at(self, index: int) -> list[str]:
        attributes = self._scene(np.random.default_rng([self.seed, index]))
        return [caption(attributes), *([subtitle(attributes)] if SUBTITLE in self.texts else [])]

    def captions(self) -> list[str] | None:
        """Every caption of this split, or ``None`` where scenes of two shapes make them too many to list."""
        if self._second_shape:
            return None
        ways = [(way,) for way in DIRECTIONS] if self._turn < 1 else []
        ways += list(itertools.permutations(DIRECTIONS, 2)) if self._turn else []
        names = ("colour", "form", "size", "directions", "speed")
        shapes = (dict(zip(names, s, strict=True)) for s in itertools.product(COLOURS, FORMS, RADII, ways, TRAVEL))
        scenes = (
            {"shapes": [shape], "tone": tone, "texture": texture}
            for shape, tone, texture in itertools.product(shapes, TONES, TEXTURES)
        )
        return [caption(scene) for scene in scenes if self._belongs(scene)]

    def _scene(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draws scenes until one belongs to this split and its shapes keep clear of each other."""
        count = 2 if rng.random() < self._second_shape else 1
        turns = rng.random() < self._turn
        while True:
            attributes = _draw(rng, count, turns)
            if self._belongs(attributes) and self._place(attributes["shapes"], rng):
                return attributes

    def _belongs(self, attributes: dict[str, Any]) -> bool:
        """Whether a scene is one of this split, and none of its shapes has the colour that is left out."""
        colours = {shape["colour"] for shape in attributes["shapes"]}
        return self._without not in colours and split_of(attributes) == self.split

    def _place(self, shapes: list[dict[str, Any]], rng: np.random.Generator) -> bool:
        """Gives every shape a ``start`` that keeps it in the frame and off the other; False if none fits."""
        unit = min(self.clip.height, self.clip.width)
        frame = np.array([self.clip.height, self.clip.width]) / unit
        tries = 1 if len(shapes) == 1 else 64
        tracks = []
        for shape in shapes:
            offsets = path(shape, np.linspace(0, 1, 17))
            edge = radius_of(shape["size"], len(shapes)) + _MARGIN
            low, high = edge - offsets.min(0), frame - edge - offsets.max(0)
            tracks.append(rng.uniform(low, high, (tries, 2))[:, None] + offsets)
        chosen = 0
        if len(shapes) == 2:
            # Every form fits the square of half side radius, so squares that keep apart are forms that do.
            apart = np.abs(tracks[0] - tracks[1]).max(-1).min(-1)
            clear = apart > sum(radius_of(s["size"], 2) for s in shapes) + _GAP
            if not clear.any():
                return False
            chosen = int(clear.argmax())
        for shape, track in zip(shapes, tracks, strict=True):
            shape["start"] = tuple(float(v) for v in track[chosen, 0])
        return True


def _draw(rng: np.random.Generator, count: int, turns: bool) -> dict[str, Any]:
    """Draws every attribute of a scene but the places."""
    colours, radii, ways, speeds, tones = map(list, (COLOURS, RADII, DIRECTIONS, TRAVEL, TONES))
    sizes = (len(colours) - 1, len(FORMS), len(radii), len(ways), len(ways) - 1, len(speeds))
    draws = rng.integers(0, sizes, (count, len(sizes))).tolist()
    shapes = []
    for i, (colour, form, size, way, turn, speed) in enumerate(draws):
        # The first colour is any of n, the second any of the n - 1 others: no rejection needed.
        first = int(rng.integers(len(colours))) if i == 0 else (first + 1 + colour) % len(colours)
        directions = [ways[way]]
        if turns and i == 0:
            directions.append(ways[(way + 1 + turn) % len(ways)])
        shapes.append(
            {
                "size": radii[size],
                "colour": colours[first],
                "form": FORMS[form],
                "directions": directions,
                "speed": speeds[speed],
            }
        )
    tone, texture = rng.integers(0, (len(tones), len(TEXTURES))).tolist()
    return {"shapes": shapes, "tone": tones[tone], "texture": TEXTURES[texture]}
