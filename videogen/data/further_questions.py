"""All questions that can be asked about one scene of shapes, for samples of several questions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from videogen.data.question_scenes import CLEAR, Scene
from videogen.data.questions import EVENTS, FLASH, PLACES, VALUES, Question, answer_of

NAMES = ("colour", "form", "direction")
"""Attributes that name a shape, and that are asked for."""


def askable(scene: Scene, kinds: Sequence[str]) -> dict[str, list[Question]]:
    """Every question about a scene, by kind; of those about a moment one for each frame that is clear of a turn.

    Shapes that turn have no direction to be asked for, or to be named by, but at a moment.

    Args:
      scene: of ``question_scenes``.
      kinds: those that are wanted; one that the scene has nothing for is left out.
    """
    found = {"background": [Question("background", what) for what in ("tone", "texture")]}
    if "flash" in scene:
        found["needle"] = [Question("needle", what) for what in ("colour", "form")]
    if "symbols" in scene:
        found["reading"] = [Question("reading", "colours")]
        moments = [round(number / scene["fps"], 3) for number in range(len(scene["symbols"]))]
        found["symbols"] = [Question("symbols", what, second=at) for at in moments for what in ("colour", "form")]
    else:
        found |= _of_shapes(scene)
    return {kind: found[kind] for kind in dict.fromkeys(kinds) if found.get(kind)}


def further(
    scene: Scene, first: Question, kinds: Sequence[str], count: int, rng: np.random.Generator
) -> list[Question]:
    """The first question and ``count - 1`` others about its scene, none twice before all were asked: of each a kind is
    drawn uniformly, then one of the answers that its questions have, then a question."""
    every, asked = askable(scene, kinds), [first]
    while len(asked) < count:
        left = {kind: [q for q in questions if q not in asked] for kind, questions in every.items()}
        left = {kind: questions for kind, questions in left.items() if questions} or every
        questions = _any(list(left.values()), rng)
        answers = {question: answer_of(question, scene) for question in questions}
        answer = _any(list(dict.fromkeys(answers.values())), rng)
        asked.append(_any([question for question in questions if answers[question] == answer], rng))
    return asked


def _any(things: Sequence[Any], rng: np.random.Generator) -> Any:
    return things[int(rng.integers(len(things)))]


def _of_shapes(scene: Scene) -> dict[str, list[Question]]:
    """Questions about shapes."""
    shapes = scene["shapes"]
    turning = [("turn" in shape or "cells" in shape) for shape in shapes]
    found = {"count": [Question("count", "count")], "describe": [Question("describe", "scene")]}
    for what in NAMES:
        found[what] = []
    for shape, turns in zip(shapes, turning, strict=True):
        named = NAMES[:2] if turns else NAMES
        values = {name: shape[name] if name != "direction" else shape["directions"][0] for name in named}
        for what in named:
            found[what] += [Question(what, what, by, values[by]) for by in named if by != what]
        names = [(by, values[by]) for by in named]
        if "cells" in shape:
            found.setdefault("cells", []).extend(Question("cells", "cells", by, value) for by, value in names)
        elif turns:
            frames = np.arange(scene["frames"] - 1) / (scene["frames"] - 1)
            clear = np.flatnonzero(np.abs(frames - shape["turn"]) > CLEAR)
            seconds = [round(float(number) / scene["fps"], 3) for number in clear]
            asked = [Question("moment", "direction", by, value, at) for by, value in names for at in seconds]
            found.setdefault("moment", []).extend(asked)
        if "dot" in shape:
            asked = [Question("detail", "colour", by, value) for by, value in names if by != "colour"]
            found.setdefault("detail", []).extend(asked)
    asked = NAMES[:2] if any(turning) else NAMES
    found["presence"] = [Question("presence", "presence", by, value) for by in asked for value in VALUES[by]]
    found["presence"].append(Question("presence", "presence", FLASH, FLASH))
    for event, key in zip(EVENTS, ("enters", "turn"), strict=True):
        moments = [shape.get(key) for shape in shapes]
        if len(shapes) > 1 and None not in moments:
            asked = [Question("order", what, event, which) for which in PLACES for what in ("colour", "form")]
            found.setdefault("order", []).extend(asked)
    return found
