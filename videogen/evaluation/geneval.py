"""GenEval (Ghosh et al., 2023): whether pictures show the objects, numbers, colours and places their prompts ask for.

Six tasks; the score of a task is the share of its pictures that are right, the score of all the mean of the six. The
published benchmark has 553 prompts and four pictures of each. Its prompts are a file of yours, and what is seen on a
picture is asked of a detector of yours. These numbers and the rules (confidence of 0.3, of 0.9 for counting; how far
apart boxes must be) are from memory, without the published code at hand.

The same six tasks on the shapes source are the protocol ``geneval.shapes``: the judge takes the detector's place, and
a shape is an object. Captions tell no places, so the task of positions asks where a shape moves.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8

from videogen.data.shapes_source import parse
from videogen.data.video_io import read_video
from videogen.errors import UserError, near_matches
from videogen.metrics.judge import judge

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PICTURES = 4
"""Pictures of each prompt."""

CONFIDENT, CONFIDENT_TO_COUNT = 0.3, 0.9
APART = 0.1
"""Share of the sides of both boxes that does not count as a distance."""

EQUALLY = 12
"""Prompts of shapes are a multiple of it: six tasks, and counting has two kinds of scenes."""

SHAPE = "shape"
"""What the judge calls every shape, beside its form."""


@dataclasses.dataclass(frozen=True)
class Detection:
    """An object that a detector sees.

    Attributes:
      name: its class.
      box: left, top, right, bottom.
      confidence: in [0, 1].
      colour: in words; empty where the detector tells none.
      moves: where to; of shapes alone.
    """

    name: str
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    confidence: float = 1.0
    colour: str = ""
    moves: str = ""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Objects of a class that a prompt asks for, or forbids.

    Attributes:
      name: the class.
      count: how many at least.
      colour: of each of them; empty: any.
      position: ``(relation, number of the entry)``: where they are from the objects of that earlier entry: ``left of``,
        ``right of``, ``above`` or ``below``.
      moves: where to; empty: anywhere.
    """

    name: str
    count: int = 1
    colour: str = ""
    position: tuple[str, int] | None = None
    moves: str = ""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a picture must show (``include``), and of what it must have fewer (``exclude``); ``tag`` is the task."""

    tag: str
    text: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()


Detector = Callable[[UInt8[np.ndarray, "height width 3"]], Sequence[Detection]]


def read_prompts(path: str | Path) -> list[Prompt]:
    """The published prompts: JSON lines ``{"tag": task, "prompt": …, "include": [{"class", "count", …}], "exclude"}``.

    Raises:
      UserError: names the line that is none.
    """
    prompts = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); name the file of GenEval's prompts") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            sides = [tuple(map(_wanted, entry.get(side, []))) for side in ("include", "exclude")]
            prompt = Prompt(str(entry["tag"]), str(entry["prompt"]), *sides)
            for i, want in enumerate(prompt.include):
                if want.position is not None and not 0 <= want.position[1] < i:
                    raise ValueError("a position must be from an earlier entry")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is no prompt of GenEval ({error!r})") from error
        if prompt.tag not in TASKS:
            raise UserError(f"{path}, line {number}: unknown task {prompt.tag!r}{near_matches(prompt.tag, TASKS)}")
        prompts.append(prompt)
    return prompts


def _wanted(entry: dict[str, Any]) -> Wanted:
    position = entry.get("position")
    place = None if position is None else (str(position[0]), int(position[1]))
    return Wanted(str(entry["class"]), int(entry["count"]), str(entry.get("color", "")), place)


def shows(prompt: Prompt, seen: Iterable[Detection]) -> bool:
    """Whether what is seen on a picture is what its prompt asks for.

    Of each class the most confident objects count, as many as are asked for; all of them must have the colour, and the
    place, that is asked for.
    """
    least = CONFIDENT_TO_COUNT if prompt.tag == "counting" else CONFIDENT
    objects: dict[str, list[Detection]] = collections.defaultdict(list)
    for one in sorted(seen, key=lambda one: -one.confidence):
        if one.confidence > least:
            objects[one.name].append(one)
    found: list[list[Detection]] = []
    for want in prompt.include:
        those = objects[want.name][: want.count]
        if len(those) < want.count or not all(_fits(one, want, found) for one in those):
            return False
        found.append(those)
    return all(len(objects[no.name]) < no.count for no in prompt.exclude)


def _fits(one: Detection, want: Wanted, found: list[list[Detection]]) -> bool:
    if (want.colour and one.colour != want.colour) or (want.moves and one.moves != want.moves):
        return False
    if want.position is None:
        return True
    relation, entry = want.position
    return all(relation in relations(one, other) for other in found[entry])


def relations(one: Detection, other: Detection) -> set[str]:
    """Where an object is from another one, by the middles of their boxes; nothing where these are close.

    A tenth of the sides of both boxes is taken off each distance; what is left must be more than half of the way from
    middle to middle.
    """
    boxes = [np.array(d.box, float).reshape(2, 2) for d in (one, other)]
    offset = boxes[0].mean(0) - boxes[1].mean(0)
    sides = sum(box[1] - box[0] for box in boxes)
    left = np.sign(offset) * np.maximum(np.abs(offset) - APART * sides, 0)
    if not left.any():
        return set()
    x, y = left / np.linalg.norm(offset)
    words = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {word for word, holds in words.items() if holds}


def summed(prompts: Sequence[Prompt], verdicts: Sequence[Sequence[bool | None]]) -> dict[str, Any]:
    """The numbers of a benchmark.

    Args:
      prompts: what was asked for.
      verdicts: of each prompt whether each of its pictures is right; ``None``: there is no such picture, or it cannot
        be read. It counts as wrong.

    Returns:
      ``geneval``: the share of right pictures of each task, and ``score``, their mean, where all six tasks occur.
      ``pictures``: task -> ``"seen / expected"``.
    """
    by_task: dict[str, list[bool | None]] = {task: [] for task in TASKS}
    for prompt, found in zip(prompts, verdicts, strict=True):
        by_task[prompt.tag] += found
    shares = {task: sum(map(bool, found)) / len(found) for task, found in by_task.items() if found}
    if len(shares) == len(TASKS):
        shares["score"] = sum(shares.values()) / len(TASKS)
    seen = {task: f"{sum(v is not None for v in found)} / {len(found)}" for task, found in by_task.items() if found}
    return {"geneval": shares, "pictures": seen}


def score_folder(prompts: Sequence[Prompt], folder: str | Path, detector: Detector) -> dict[str, Any]:
    """Scores pictures that lie as the published code writes them: ``00000/samples/*.png`` for the first prompt, ….

    Args:
      prompts: of ``read_prompts``.
      folder: of the pictures; of each prompt the first four by name count, and missing ones are wrong.
      detector: picture -> what it sees.

    Raises:
      UserError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is no folder of pictures; it must hold 00000/samples/0000.png and so on")
    verdicts = []
    for number, prompt in enumerate(prompts):
        files = sorted(Path(folder, f"{number:05}", "samples").glob("*.png"))[:PICTURES]
        found = [_verdict(prompt, file, detector) for file in files]
        verdicts.append(found + [None] * (PICTURES - len(found)))
    return summed(prompts, verdicts)


def _verdict(prompt: Prompt, file: Path, detector: Detector) -> bool | None:
    try:
        picture = read_video(file)[0][0]
    except UserError as error:
        logging.warning("counts as wrong: %s", error)
        return None
    return shows(prompt, detector(picture))


def shapes_seen(clip: UInt8[np.ndarray, "time height width 3"]) -> list[Detection]:
    """What the judge sees: every shape by its form, and once more by the name ``shape`` for the counting."""
    reading = judge(clip)
    shapes = [Detection(shape.form, colour=shape.colour, moves=shape.direction) for shape in reading.shapes]
    return shapes + [Detection(SHAPE)] * reading.count


def shapes_prompts(ones: Sequence[str], twos: Sequence[str], count: int) -> list[Prompt]:
    """Prompts of the six tasks from captions of the shapes source, equally many of each.

    Args:
      ones: captions with one shape: of single objects, colours, positions and half of the counting.
      twos: captions with two shapes: of two objects, colours of two, and the other half of the counting. Those with two
        shapes of one form are left out, as in the benchmark.
      count: prompts.

    Raises:
      UserError: no multiple of ``EQUALLY`` is asked for, or there are too few captions.
    """
    if count < 1 or count % EQUALLY:
        raise UserError(f"geneval.shapes takes at least {EQUALLY} prompts, or a multiple of it, got {count}")
    twos = [caption for caption in twos if len({shape["form"] for shape in parse(caption)["shapes"]}) == 2]
    share, prompts = count // EQUALLY, []
    for captions, tasks in ((ones, ("single_object", "colors", "position")), (twos, ("two_object", "color_attr"))):
        order = [task for task in tasks for _ in range(2 * share)] + ["counting"] * share
        if len(captions) < len(order):
            raise UserError(f"{count} prompts need {len(order)} captions of a kind, and there are {len(captions)}")
        prompts += [_shapes_prompt(task, caption) for task, caption in zip(order, captions, strict=False)]
    return prompts


def _shapes_prompt(task: str, caption: str) -> Prompt:
    shapes = parse(caption)["shapes"]
    if task == "counting":
        return Prompt(task, caption, (Wanted(SHAPE, len(shapes)),), (Wanted(SHAPE, len(shapes) + 1),))
    wants = []
    for shape in shapes:
        want = Wanted(shape["form"])
        if task in ("colors", "color_attr"):
            want = dataclasses.replace(want, colour=shape["colour"])
        if task == "position":
            want = dataclasses.replace(want, moves=" then ".join(shape["directions"]))
        wants.append(want)
    return Prompt(task, caption, tuple(wants))
