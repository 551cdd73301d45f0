"""Streams of shapes in which something happens at known frames: what, how it is told, and what can be asked of it.

A scene is ``{"tone", "texture", "frames", "fps", "events", "shown"}``. Every event is ``{"frame", "kind", "colour",
"form", "to"}`` with a kind of ``EVENTS``; ``to`` is the new place of a shape that moves, the new colour of one that
turns, else empty. ``shown[k]`` are the shapes of frame k, ``{"colour", "form", "side", "place"}`` each; a flash hides
them for its one frame. No two shapes of a frame share a colour or a form.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from videogen.data.shapes_source import COLOURS, FORMS, TEXTURES, TONES, background, form_mask
from videogen.errors import UserError

Scene = dict[str, Any]
Event = dict[str, Any]

EVENTS = ("appears", "leaves", "moves", "turns", "flashes")
PAST = {"appears": "appeared", "leaves": "left", "moves": "moved", "turns": "turned", "flashes": "flashed"}
"""Event -> its word in a question about the past."""

SIDES = {"left": 0.25, "right": 0.75}
PLACES = {"up": 0.3, "down": 0.7}
"""Places of shapes, as shares of the width and of the height of a frame."""
RADIUS, FLASH = 0.2, 0.36
"""Of a shape and of a flash, in units of the shorter side."""

NUMBERS = ("zero", "one", "two")
QUESTIONS = ("backward", "current", "future")
"""Evidence of the answer lies before the question, in the last frame, or comes later (OVO-Bench)."""

FEWEST, MOST = 3, 5
"""Events of a stream."""
APART = 3
"""Frames from one event to the next at least."""
LEAST_FRAMES = 2 + APART * MOST
"""Frames of a stream at least."""


def draw_scene(frames: int, fps: float, kinds: Sequence[str], rng: np.random.Generator) -> Scene:
    """A stream in which 3 … 5 events of some kinds happen, the first one behind two frames."""
    scene: Scene = {"tone": _pick(rng, tuple(TONES)), "texture": _pick(rng, TEXTURES), "frames": frames, "fps": fps}
    shapes: dict[str, dict[str, str]] = {}
    if rng.integers(2) or not {"appears", "flashes"} & set(kinds):
        _appear(shapes, rng)
    count = int(rng.integers(FEWEST, MOST + 1))
    spare = frames - 2 - APART * (count - 1)
    starts = np.sort(rng.integers(0, spare, count)) + APART * np.arange(count) + 2
    events, shown, happens = [], [], dict.fromkeys(map(int, starts))
    for frame in range(frames):
        event = _happen(frame, shapes, kinds, rng) if frame in happens else None
        events += [event] if event else []
        flash = event is not None and event["kind"] == "flashes"
        shown.append([] if flash else [dict(shape) for shape in shapes.values()])
    return {**scene, "events": events, "shown": shown}


def _pick(rng: np.random.Generator, words: Sequence[str], but: Sequence[str] = ()) -> str:
    left = [word for word in words if word not in but]
    return left[int(rng.integers(len(left)))]


def _appear(shapes: dict[str, dict[str, str]], rng: np.random.Generator) -> dict[str, str]:
    """Puts a shape on a free side."""
    side = _pick(rng, tuple(SIDES), tuple(shapes))
    taken = [[shape[name] for shape in shapes.values()] for name in ("colour", "form")]
    colour, form = _pick(rng, tuple(COLOURS), taken[0]), _pick(rng, FORMS, taken[1])
    shapes[side] = {"colour": colour, "form": form, "side": side, "place": _pick(rng, tuple(PLACES))}
    return shapes[side]


def _happen(
    frame: int, shapes: dict[str, dict[str, str]], kinds: Sequence[str], rng: np.random.Generator
) -> Event | None:
    """Changes the shapes by an event that can happen; ``None`` where none can."""
    can = {"appears": len(shapes) < len(SIDES), "flashes": True}
    possible = [kind for kind in kinds if can.get(kind, len(shapes) > 0)]
    if not possible:
        return None
    kind = _pick(rng, possible)
    if kind == "flashes":
        colour, form = _pick(rng, tuple(COLOURS)), _pick(rng, FORMS)
        return {"frame": frame, "kind": kind, "colour": colour, "form": form, "to": ""}
    if kind == "appears":
        shape, to = _appear(shapes, rng), ""
        return {"frame": frame, "kind": kind, "colour": shape["colour"], "form": shape["form"], "to": to}
    side = _pick(rng, tuple(shapes))
    shape, to = dict(shapes[side]), ""
    if kind == "leaves":
        del shapes[side]
    elif kind == "moves":
        to = shapes[side]["place"] = _pick(rng, tuple(PLACES), (shape["place"],))
    else:
        to = shapes[side]["colour"] = _pick(rng, tuple(COLOURS), [each["colour"] for each in shapes.values()])
    return {"frame": frame, "kind": kind, "colour": shape["colour"], "form": shape["form"], "to": to}


def told(event: Mapping[str, Any]) -> str:
    """What is said of an event: ``a red circle appears``, ``the red circle turns blue``."""
    article = "a" if event["kind"] in ("appears", "flashes") else "the"
    return f"{article} {event['colour']} {event['form']} {event['kind']} {event['to']}".strip()


def split_of_stream(scene: Mapping[str, Any]) -> str:
    """``eval`` for one in eight streams, by the SHA-256 of their ground and of all that is told of them."""
    words = f"{scene['tone']} {scene['texture']}: {', '.join(map(told, scene['events']))}"
    return "eval" if hashlib.sha256(words.encode()).digest()[0] % 8 == 0 else "train"


@dataclasses.dataclass(frozen=True)
class StreamQuestion:
    """A question about a stream.

    Attributes:
      kind: one of ``QUESTIONS``.
      what: what is asked for: ``colour``, ``form`` or ``count``.
      by: the kind of event that is asked about; of ``current`` the attribute that names the shape, empty of ``count``.
      value: of that attribute.
    """

    kind: str
    what: str
    by: str = ""
    value: str = ""

    def __str__(self) -> str:
        if self.kind == "backward":
            return f"which {self.what} {PAST[self.by]} last?"
        if self.kind == "future":
            return f"which {self.what} {self.by} next?"
        if self.what == "count":
            return "how many shapes are there?"
        return f"which {self.what} is the {self.value}{' shape' if self.by == 'colour' else ''}?"

    @property
    def options(self) -> tuple[str, ...]:
        """All answers that it may have."""
        return {"colour": tuple(COLOURS), "form": FORMS, "count": NUMBERS}[self.what]

    def event(self, scene: Mapping[str, Any], frame: int) -> Event | None:
        """The event that is meant where the question is asked behind a frame; ``None``: there is none."""
        own = [event for event in scene["events"] if event["kind"] == self.by]
        if self.kind == "backward":
            return next((event for event in reversed(own) if event["frame"] <= frame), None)
        return next((event for event in own if event["frame"] > frame), None)

    def answer(self, scene: Mapping[str, Any], frame: int) -> str:
        """The answer, where the question is asked behind a frame.

        Raises:
          UserError: the scene has none.
        """
        if self.kind != "current":
            event = self.event(scene, frame)
            if event is None:
                raise UserError(f"nothing in this stream answers {str(self)!r} behind frame {frame}")
            return event[self.what]
        shown = scene["shown"][frame]
        if self.what == "count":
            return NUMBERS[len(shown)]
        for shape in shown:
            if shape[self.by] == self.value:
                return shape[self.what]
        raise UserError(f"nothing in this stream answers {str(self)!r} behind frame {frame}")


def asked_of(kind: str, scene: Mapping[str, Any], frame: int, rng: np.random.Generator) -> StreamQuestion | None:
    """A question of a kind of ``QUESTIONS`` that has an answer where it is asked behind a frame; ``None``: there is
    none."""
    if kind == "current":
        shown = scene["shown"][frame]
        if not shown or not rng.integers(3):
            return StreamQuestion(kind, "count")
        what, by = (("colour", "form"), ("form", "colour"))[int(rng.integers(2))]
        return StreamQuestion(kind, what, by, shown[int(rng.integers(len(shown)))][by])
    past = kind == "backward"
    found = {event["kind"] for event in scene["events"] if (event["frame"] <= frame) == past}
    if not found:
        return None
    by = _pick(rng, [event for event in EVENTS if event in found])
    # What turns has two colours.
    what = "form" if by == "turns" else _pick(rng, ("colour", "form"))
    return StreamQuestion(kind, what, by)


def render_stream(
    scene: Mapping[str, Any], numbers: Sequence[int] | Int[np.ndarray, "time"], height: int, width: int
) -> UInt8[np.ndarray, "time height width 3"]:
    """Draws frames of a stream, by their numbers from 0 on."""
    ground, unit = background(dict(scene), height, width), min(height, width)
    flashes = {event["frame"]: event for event in scene["events"] if event["kind"] == "flashes"}
    video = np.empty((len(numbers), height, width, 3), np.float32)
    for i, number in enumerate(map(int, numbers)):
        forms = [(flashes[number], (0.5, 0.5), FLASH)] if number in flashes else []
        forms += [(shape, (PLACES[shape["place"]], SIDES[shape["side"]]), RADIUS) for shape in scene["shown"][number]]
        video[i] = ground[..., None]
        for shape, share, radius in forms:
            centre = np.array([share]) * (height, width) / unit
            mask = form_mask(shape["form"], centre, radius, height, width)[0, ..., None]
            video[i] += mask * (np.array(COLOURS[shape["colour"]], np.float32) - video[i])
    return (video + 0.5).astype(np.uint8)
