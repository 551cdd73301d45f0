"""Moving shapes with an expression that means one of them, and its masks: referring and reasoning segmentation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from videogen.data.clip import Clip
from videogen.data.shapes_source import COLOURS, FORMS, FPS, TEXTURES, TONES, background, form_mask
from videogen.data.source import Source, held_out
from videogen.errors import UserError, near_matches

EXPRESSIONS = {
    "colour": "the red shape",
    "form": "the circle",
    "twice": "the shape that turns twice",
    "hidden": "the shape that was hidden behind the square",
    "absent": "the red shape",
}
"""Kind -> an example. Of ``absent`` there is no such shape."""

FOUND, MISSING = "here it is", "there is none"
"""Answers."""

RADIUS, OCCLUDER = 0.16, 0.24
"""Of shapes, and of the square that hides them, in units of the shorter side."""


class ExpressionsSource(Source):
    """Clips of two shapes with ``question`` (an expression that means one of them), ``answer``, and the masks of what
    is meant.

    Sample i has the kind ``kinds[i % len(kinds)]``. ``masks`` ``[frames, height, width]`` are the pixels where it is
    seen, what is in front of it left out; ``marked`` says whether there is such a shape at all. Where there is none all
    masks are empty. ``attributes`` is the scene: shapes from back to front with colour, form, radius and ``track``
    ``[frames, 2]``, and the number of the one that is meant, -1 for none.

    Args:
      clip: at least eight frames, so that two turns are seen.
      seed: with the index, decides the sample.
      split: pairs of a colour and a form of 'eval' occur in 'train' only where they are not meant.
      length: number of samples.
      kinds: of the expressions (``EXPRESSIONS``).
    """

    texts = ("caption", "question", "answer", "wrong")

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        length: int = 1_000_000,
        kinds: Sequence[str] = tuple(EXPRESSIONS),
    ):
        super().__init__(clip=clip, seed=seed, split=split)
        self._length, self.kinds = length, tuple(kinds)
        if not self.kinds:
            raise UserError("kinds names no kind of expression; leave it out for all")
        for kind in self.kinds:
            if kind not in EXPRESSIONS:
                raise UserError(f"unknown kind of expression {kind!r}{near_matches(kind, EXPRESSIONS)}")
        if clip.frames < 8:
            raise UserError(f"expressions are about clips of at least 8 frames, got {clip.frames}")

    def __len__(self) -> int:
        return self._length

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return self.described(self.clip, {})

    @classmethod
    def described(cls, clip: Clip, settings: Any) -> dict[str, tuple[tuple[int, ...], type]]:
        """``fields`` of samples of this size."""
        sides = (clip.frames, clip.height, clip.width)
        own = {"masks": (sides, np.bool_), "marked": ((), np.bool_), "times": ((clip.frames,), np.float32)}
        return {"video": ((*sides, 3), np.uint8), **own}

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The expression at ``index``; nothing about reading it is random, so ``rng`` is not used."""
        kind, scene = self._scene(index)
        video, covers = render(scene, self.clip)
        marked = scene["meant"] >= 0
        masks = covers[scene["meant"]] if marked else np.zeros(video.shape[:3], bool)
        rate = self.clip.fps or FPS
        return {
            "video": video,
            "masks": masks,
            "marked": np.array(marked),
            "times": (np.arange(self.clip.frames) / rate).astype(np.float32),
            "fps": rate,
            **self._texts(scene),
            "options": (),
            "kind": kind,
            "attributes": scene,
        }

    def _texts(self, scene: Mapping[str, Any]) -> dict[str, str]:
        said = (FOUND, MISSING) if scene["meant"] >= 0 else (MISSING, FOUND)
        return {"caption": scene["said"], "question": scene["said"], "answer": said[0], "wrong": said[1]}

    def caption(self, index: int) -> str:
        return self._scene(index)[1]["said"]

    def texts_at(self, index: int) -> list[str]:
        return list(self._texts(self._scene(index)[1]).values())

    def name_of(self, index: int) -> str:
        return f"expression {index} ({self.kinds[index % len(self.kinds)]})"

    def _scene(self, index: int) -> tuple[str, dict[str, Any]]:
        """The kind of a sample, and its scene."""
        rng, kind = np.random.default_rng([self.seed, index]), self.kinds[index % len(self.kinds)]
        while True:
            scene = _DRAWN[kind](self.clip, rng)
            meant = scene["shapes"][scene["meant"]]
            split = "eval" if held_out(f"{meant['colour']} {meant['form']}", 1 / 6) else "train"
            if scene["meant"] < 0 or split == self.split:
                return kind, scene


def _progress(clip: Clip) -> Float[np.ndarray, "frames"]:
    return np.linspace(0, 1, clip.frames)


def _room(clip: Clip, radius: float) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """The corners of where the middle of a shape may be, (y, x)."""
    frame = np.array([clip.height, clip.width]) / min(clip.height, clip.width)
    return np.full(2, radius), frame - radius


def _along(
    corners: Float[np.ndarray, "corners 2"], progress: Float[np.ndarray, "frames"]
) -> Float[np.ndarray, "frames 2"]:
    """Even motion from corner to corner, in equal times."""
    at = np.linspace(0, 1, len(corners))
    return np.stack([np.interp(progress, at, corners[:, axis]) for axis in (0, 1)], axis=-1)


def _turning(clip: Clip, turns: int, rng: np.random.Generator) -> Float[np.ndarray, "frames 2"]:
    """A track with so many right turns, each leg as long as the room lets it be by half at least."""
    low, high = _room(clip, RADIUS)
    corners = [rng.uniform(low, high)]
    axis = int(rng.integers(2))
    for _ in range(turns + 1):
        at = corners[-1].copy()
        # Towards the farther side.
        up = high[axis] - at[axis] > at[axis] - low[axis]
        reach = (high[axis] - at[axis]) if up else (low[axis] - at[axis])
        at[axis] += reach * rng.uniform(0.7, 1.0)
        corners.append(at)
        axis = 1 - axis
    return _along(np.array(corners), _progress(clip))


def _looks(rng: np.random.Generator, count: int, forms: Sequence[str] = FORMS) -> list[dict[str, Any]]:
    """Shapes of different colours and forms."""
    colours, forms = ([names[i] for i in rng.permutation(len(names))] for names in (list(COLOURS), list(forms)))
    return [{"colour": colours[i], "form": forms[i], "radius": RADIUS} for i in range(count)]


def _scene_of(shapes: list[dict[str, Any]], meant: int, said: str, rng: np.random.Generator) -> dict[str, Any]:
    tone, texture = (names[int(rng.integers(len(names)))] for names in (list(TONES), TEXTURES))
    return {"shapes": shapes, "meant": meant, "said": said, "tone": tone, "texture": texture}


def _referring(what: str) -> Any:
    def drawn(clip: Clip, rng: np.random.Generator) -> dict[str, Any]:
        shapes = _looks(rng, 2)
        for shape in shapes:
            shape["track"] = _turning(clip, int(rng.integers(2)), rng)
        meant = int(rng.integers(2))
        value = shapes[meant][what]
        return _scene_of(shapes, meant, f"the {value} shape" if what == "colour" else f"the {value}", rng)

    return drawn


def _absent(clip: Clip, rng: np.random.Generator) -> dict[str, Any]:
    scene = _referring("colour")(clip, rng)
    there = [shape["colour"] for shape in scene["shapes"]]
    others = [name for name in COLOURS if name not in there]
    return {**scene, "meant": -1, "said": f"the {others[int(rng.integers(len(others)))]} shape"}


def _twice(clip: Clip, rng: np.random.Generator) -> dict[str, Any]:
    shapes, meant = _looks(rng, 2), int(rng.integers(2))
    for i, shape in enumerate(shapes):
        shape["track"] = _turning(clip, 2 if i == meant else int(rng.integers(2)), rng)
    return _scene_of(shapes, meant, EXPRESSIONS["twice"], rng)


def _hidden(clip: Clip, rng: np.random.Generator) -> dict[str, Any]:
    """Two shapes cross the frame, one of them behind a square in the middle, which hides it whole, the other aside."""
    shapes, meant = _looks(rng, 2, [form for form in FORMS if form != "square"]), int(rng.integers(2))
    used = {shape["colour"] for shape in shapes}
    left = [name for name in COLOURS if name not in used]
    frame = np.array([clip.height, clip.width]) / min(clip.height, clip.width)
    axis, aside = int(rng.integers(2)), int(rng.integers(2))
    for i, shape in enumerate(shapes):
        shape["radius"] = OCCLUDER / 2
        low, high = _room(clip, shape["radius"])
        corners = np.array([low, high])
        corners[:, 1 - axis] = frame[1 - axis] / 2 if i == meant else (low, high)[aside][1 - axis]
        shape["track"] = _along(corners[:: 1 if rng.integers(2) else -1], _progress(clip))
    square = {"colour": left[int(rng.integers(len(left)))], "form": "square", "radius": OCCLUDER}
    square["track"] = np.broadcast_to(frame / 2, (clip.frames, 2))
    return _scene_of([*shapes, square], meant, EXPRESSIONS["hidden"], rng)


_DRAWN = {
    "colour": _referring("colour"),
    "form": _referring("form"),
    "twice": _twice,
    "hidden": _hidden,
    "absent": _absent,
}


def render(
    scene: Mapping[str, Any], clip: Clip
) -> tuple[UInt8[np.ndarray, "time height width 3"], list[Bool[np.ndarray, "time height width"]]]:
    """Draws a scene, and the pixels of every shape that are at least half its own and not behind another."""
    ground = background(scene, clip.height, clip.width)[None, :, :, None]
    video = np.broadcast_to(ground, (clip.frames, clip.height, clip.width, 3)).astype(np.float32)
    covers: list[np.ndarray] = []
    for shape in scene["shapes"]:
        cover = form_mask(shape["form"], shape["track"], shape["radius"], clip.height, clip.width)
        video = video + cover[..., None] * (np.array(COLOURS[shape["colour"]], np.float32) - video)
        covers = [own & (cover < 0.5) for own in covers] + [cover >= 0.5]
    return (video + 0.5).astype(np.uint8), covers
