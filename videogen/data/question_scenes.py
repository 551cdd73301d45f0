"""Scenes that questions are asked about, drawn so that the text of a question tells nothing of its answer.

A scene is the ``attributes`` of a clip of shapes (``shapes_source``) with ``frames`` and ``fps`` of its video and, by
the kind of its question:

* of a shape ``turn``, the progress at which it turns, ``enters``, the progress at which it appears, ``dot``, the colour
  of a dot in its middle, and ``cells``, the cell (0 … 8, row by row) it is in at each frame;
* ``flash``: ``colour`` and ``form`` of the symbol that ``count`` frames from ``first`` on show alone;
* ``symbols``: ``colour`` and ``form`` of the symbol that each frame shows alone.

Progress is 0 at the first frame and 1 at the last. Question and answer are drawn first, each uniformly, and then the
rest of the scene until it belongs to its split. Some pairs have no scene in 'composition': others are drawn there.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from videogen.data.question_frames import place
from videogen.data.questions import CELLS, COUNTS, EVENTS, FLASH, PLACES, VALUES, Question, answer_of
from videogen.data.shapes_source import COLOURS, DIRECTIONS, FORMS, RADII, TEXTURES, TONES, TRAVEL, split_of

Scene = dict[str, Any]

LEAST = {"colour": 2, "form": 2, "direction": 2, "detail": 2, "order": 8, "moment": 6, "needle": 2, "describe": 2}
"""Kind -> frames that a clip must show at least; 1 of the others."""
MOTIONLESS = ("symbols", "reading", "cells")
"""Kinds in whose scenes nothing has a direction, so that 'composition' has none of them."""

_TRIES = 1000
"""Scenes drawn for a question before another one is asked."""
_MOMENTS = (0.2, 0.45, 0.7)
"""Progress at which shapes appear or turn, one each."""
_TURNS = (0.35, 0.65)
"""Progress at which shapes turn where a question is about a moment …"""
CLEAR = 0.1
"""… and progress before and behind a turn that no question is about."""


@dataclasses.dataclass(frozen=True)
class Look:
    """What scenes are drawn with.

    Attributes:
      frames: of the video.
      fps: its frames per second.
      height, width: of the frames, in pixels.
      distractors: up to so many shapes beside the one that is asked about, 0 … 2.
      needle: frames that a flash lasts.
      depth: where a flash begins, from 0 (first frame) to 1 (it ends with the last); ``None``: anywhere.
    """

    frames: int
    fps: float
    height: int
    width: int
    distractors: int
    needle: int
    depth: float | None


@dataclasses.dataclass
class _Plan:
    """What a question fixes.

    Attributes:
      question: what is asked.
      shape: attributes of the first shape; ``second`` is its direction behind its turn.
      scene: attributes of the scene.
      count: how many shapes there are.
      turns: whether they turn.
      answer: that the scene must give; empty: any.
      finish: adds to a scene what comes with this kind of question.
    """

    question: Question
    shape: dict[str, Any] = dataclasses.field(default_factory=dict)
    scene: dict[str, Any] = dataclasses.field(default_factory=dict)
    count: int = 1
    turns: bool = False
    answer: str = ""
    finish: Callable[[Scene, np.random.Generator], None] = lambda scene, rng: None


def draw(kind: str, look: Look, split: str, rng: np.random.Generator) -> tuple[Question, Scene]:
    """A question of a kind, and a scene of a split that it is about."""
    while True:
        plan = _PLANS[kind](look, rng)
        for _ in range(_TRIES):
            scene = _scene(plan, look, rng)
            # Captions tell nothing of which shape is asked about.
            scene["shapes"] = [scene["shapes"][i] for i in rng.permutation(plan.count)]
            if plan.answer and answer_of(plan.question, scene) != plan.answer:
                continue
            if split_of_scene(scene) == split and place(scene["shapes"], look.height, look.width, rng):
                return plan.question, scene


def split_of_scene(scene: Mapping[str, Any]) -> str:
    """That of the caption where there are shapes that move, else by the SHA-256 of what is shown."""
    shapes = scene["shapes"]
    if shapes and "cells" not in shapes[0]:
        return split_of(scene)
    shown = [scene["tone"], scene["texture"], *(f"{s['colour']} {s['form']}" for s in scene.get("symbols", ()))]
    shown += [f"{s['colour']} {s['form']} {s['cells']}" for s in shapes]
    return "eval" if hashlib.sha256(" ".join(shown).encode()).digest()[0] % 8 == 0 else "train"


def _pick(rng: np.random.Generator, words: Sequence[str], but: Sequence[str] = ()) -> str:
    left = [word for word in words if word not in but]
    return left[int(rng.integers(len(left)))]


def _different(rng: np.random.Generator, words: Sequence[str], first: str | None, count: int) -> list[str]:
    """``count`` different words, beginning with ``first`` where there is one."""
    left = [word for word in words if word != first]
    return ([first] * (first is not None) + [left[i] for i in rng.permutation(len(left))])[:count]


def _scene(plan: _Plan, look: Look, rng: np.random.Generator) -> Scene:
    """Draws what the question leaves open. No two shapes share their colour, form or first direction."""
    own, count, shapes = plan.shape, plan.count, []
    colours = _different(rng, tuple(COLOURS), own.get("colour"), count)
    forms = _different(rng, FORMS, own.get("form"), count)
    ways = _different(rng, tuple(DIRECTIONS), own.get("direction"), count)
    for i in range(count):
        shape = {"size": _pick(rng, tuple(RADII)), "colour": colours[i], "form": forms[i], "directions": [ways[i]]}
        shape["speed"] = "quickly" if plan.turns else _pick(rng, tuple(TRAVEL))
        if plan.turns:
            second = own.get("second") if i == 0 else None
            shape["directions"].append(second or _pick(rng, tuple(DIRECTIONS), but=ways[i : i + 1]))
        shapes.append(shape)
    ground = {"tone": _pick(rng, tuple(TONES)), "texture": _pick(rng, TEXTURES)}
    scene = {"shapes": shapes, **ground, **plan.scene, "frames": look.frames, "fps": look.fps}
    plan.finish(scene, rng)
    return scene


def _beside(look: Look, rng: np.random.Generator) -> int:
    """How many shapes there are, from 1 on."""
    return 1 + int(rng.integers(look.distractors + 1))


def _about(what: str, names: Sequence[str]) -> Callable[[Look, np.random.Generator], _Plan]:
    """Plans of questions for one attribute of a shape that another one names."""

    def plan(look: Look, rng: np.random.Generator) -> _Plan:
        by = _pick(rng, names)
        value, answer = _pick(rng, VALUES[by]), _pick(rng, VALUES[what])
        return _Plan(Question(what, what, by, value), {by: value, what: answer}, count=_beside(look, rng))

    return plan


def _count(look: Look, rng: np.random.Generator) -> _Plan:
    return _Plan(Question("count", "count"), count=1 + int(rng.integers(len(COUNTS))))


def _order(look: Look, rng: np.random.Generator) -> _Plan:
    event, which, what = _pick(rng, EVENTS), _pick(rng, PLACES), _pick(rng, ("colour", "form"))
    count = 2 + int(rng.integers(max(look.distractors, 1)))
    moments = sorted(_MOMENTS[i] for i in rng.permutation(len(_MOMENTS))[:count])
    own = moments.pop(0 if which == "first" else -1)
    moments = [own, *(moments[i] for i in rng.permutation(count - 1))]

    def finish(scene: Scene, rng: np.random.Generator) -> None:
        for shape, moment in zip(scene["shapes"], moments, strict=True):
            shape["turn" if event == "turns" else "enters"] = moment

    fixed = {what: _pick(rng, VALUES[what])}
    return _Plan(Question("order", what, event, which), fixed, count=count, turns=event == "turns", finish=finish)


def _moment(look: Look, rng: np.random.Generator) -> _Plan:
    by, leg = _pick(rng, ("colour", "form")), int(rng.integers(2))
    value, count = _pick(rng, VALUES[by]), _beside(look, rng)
    first, second = _different(rng, tuple(DIRECTIONS), None, 2)
    turns = rng.uniform(*_TURNS, count).tolist()
    progress = np.arange(look.frames - 1) / (look.frames - 1)  # the last frame begins no motion
    clear = np.flatnonzero(progress > turns[0] + CLEAR if leg else progress < turns[0] - CLEAR)
    moment = round(float(clear[rng.integers(len(clear))]) / look.fps, 3)

    def finish(scene: Scene, rng: np.random.Generator) -> None:
        for shape, turn in zip(scene["shapes"], turns, strict=True):
            shape["turn"] = turn

    fixed = {by: value, "direction": first, "second": second}
    question = Question("moment", "direction", by, value, moment)
    return _Plan(question, fixed, count=count, turns=True, finish=finish)


def _background(look: Look, rng: np.random.Generator) -> _Plan:
    what = _pick(rng, ("tone", "texture"))
    return _Plan(Question("background", what), scene={what: _pick(rng, VALUES[what])}, count=_beside(look, rng))


def _needle(look: Look, rng: np.random.Generator) -> _Plan:
    spare = look.frames - look.needle
    first = int(rng.integers(spare + 1)) if look.depth is None else round(look.depth * spare)
    flash = {name: _pick(rng, VALUES[name]) for name in ("colour", "form")}
    question = Question("needle", _pick(rng, ("colour", "form")))
    return _Plan(question, scene={"flash": {**flash, "first": first, "count": look.needle}}, count=_beside(look, rng))


def _symbols(look: Look, rng: np.random.Generator) -> _Plan:
    number, what = int(rng.integers(look.frames)), _pick(rng, ("colour", "form"))
    answer = int(rng.integers(len(VALUES[what])))

    def finish(scene: Scene, rng: np.random.Generator) -> None:
        drawn = _streams(look.frames, rng)
        # Shifted so that the frame that is asked about has the answer.
        drawn[what] = (drawn[what] + answer - drawn[what][number]) % len(VALUES[what])
        scene["symbols"] = _in_words(drawn)

    return _Plan(Question("symbols", what, second=round(number / look.fps, 3)), count=0, finish=finish)


def _reading(look: Look, rng: np.random.Generator) -> _Plan:
    def finish(scene: Scene, rng: np.random.Generator) -> None:
        scene["symbols"] = _in_words(_streams(look.frames, rng))

    return _Plan(Question("reading", "colours"), count=0, finish=finish)


def _streams(frames: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The number of a colour and of a form for each frame, others than those of the frame before."""
    sizes = {name: len(VALUES[name]) for name in ("colour", "form")}
    return {name: (rng.integers(n) + np.cumsum(rng.integers(1, n, frames))) % n for name, n in sizes.items()}


def _in_words(streams: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    words = {name: [VALUES[name][i] for i in numbers] for name, numbers in streams.items()}
    return [{"colour": colour, "form": form} for colour, form in zip(words["colour"], words["form"], strict=True)]


def _detail(look: Look, rng: np.random.Generator) -> _Plan:
    by, dots = _pick(rng, ("form", "direction")), _different(rng, tuple(COLOURS), None, len(COLOURS))
    value, colour = _pick(rng, VALUES[by]), _pick(rng, tuple(COLOURS), but=dots[:1])

    def finish(scene: Scene, rng: np.random.Generator) -> None:
        left = list(dots)
        for shape in scene["shapes"]:
            # Dots differ from each other and from the shapes around them; the first shape has the first.
            shape["dot"] = next(dot for dot in left if dot != shape["colour"])
            left.remove(shape["dot"])

    question = Question("detail", "colour", by, value)
    return _Plan(question, {by: value, "colour": colour}, count=_beside(look, rng), finish=finish)


def _presence(look: Look, rng: np.random.Generator) -> _Plan:
    by, answer = _pick(rng, ("colour", "form", "direction", FLASH)), _pick(rng, VALUES["presence"])
    if by == FLASH:
        plan = _needle(look, rng)
        scene = plan.scene if answer == "yes" else {}
        return _Plan(Question("presence", "presence", by, FLASH), scene=scene, count=plan.count)
    value = _pick(rng, VALUES[by])
    shape = {by: value} if answer == "yes" else {}
    return _Plan(Question("presence", "presence", by, value), shape, count=_beside(look, rng), answer=answer)


def _cells(look: Look, rng: np.random.Generator) -> _Plan:
    by = _pick(rng, ("colour", "form"))
    value = _pick(rng, VALUES[by])

    def finish(scene: Scene, rng: np.random.Generator) -> None:
        cells = [int(rng.integers(len(CELLS)))]
        while len(cells) < look.frames:
            near = _NEAR[cells[-1]]
            cells.append(near[int(rng.integers(len(near)))])
        scene["shapes"][0]["cells"] = cells

    return _Plan(Question("cells", "cells", by, value), {by: value}, finish=finish)


_NEAR = [
    [c for c in range(len(CELLS)) if max(abs(c // 3 - at // 3), abs(c % 3 - at % 3)) == 1] for at in range(len(CELLS))
]
"""Cell -> the cells that touch it."""


def _describe(look: Look, rng: np.random.Generator) -> _Plan:
    return _Plan(Question("describe", "scene"), count=_beside(look, rng))


_PLANS: dict[str, Callable[[Look, np.random.Generator], _Plan]] = {
    "colour": _about("colour", ("form", "direction")),
    "form": _about("form", ("colour", "direction")),
    "direction": _about("direction", ("colour", "form")),
    "count": _count,
    "order": _order,
    "moment": _moment,
    "background": _background,
    "needle": _needle,
    "symbols": _symbols,
    "detail": _detail,
    "presence": _presence,
    "reading": _reading,
    "cells": _cells,
    "describe": _describe,
}
