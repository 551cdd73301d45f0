"""The grammar of questions about clips of shapes: writing, reading and answering them.

A question is about one scene (``question_scenes``) and its answer follows from the scene alone. ``KINDS`` holds an
example of each kind. A shape is named by one attribute: ``the red shape``, ``the circle``, ``the shape that moves
left``; in a scene that is asked about, no two shapes share one.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from videogen.data.shapes_source import COLOURS, DIRECTIONS, FORMS, TEXTURES, TONES, caption
from videogen.errors import UserError

KINDS = {
    "colour": "which colour is the shape that moves left?",
    "form": "which form is the red shape?",
    "direction": "where does the circle move?",
    "count": "how many shapes are there?",
    "order": "which colour is the shape that turns first?",
    "moment": "where does the red shape move at second 3?",
    "background": "which texture is the background?",
    "needle": "which colour is the flash?",
    "symbols": "which form is the symbol at second 2.5?",
    "detail": "which colour is the dot in the circle?",
    "presence": "is there a red shape?",
    "reading": "which colours are the symbols, one after another?",
    "cells": "in which cells is the red shape, one after another?",
    "describe": "what is there to see?",
}
"""Kind -> an example."""

PER_FRAME = ("reading", "cells")
"""Kinds whose answer is one word for each frame of the video."""
OPEN = (*PER_FRAME, "describe")
"""Kinds whose answer is none of a closed set; that of ``describe`` is the caption."""

COUNTS = ("one", "two", "three")
CELLS = tuple("123456789")
"""The 3 × 3 cells of a frame, row by row."""

VALUES = {
    "colour": tuple(COLOURS),
    "form": FORMS,
    "direction": tuple(DIRECTIONS),
    "tone": tuple(TONES),
    "texture": TEXTURES,
    "count": COUNTS,
    "presence": ("yes", "no"),
}
"""Attribute -> the words for it: the options of questions that ask for it, in their fixed order."""

FLASH = "flash"
EVENTS = ("comes", "turns")
PLACES = ("first", "last")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question in parts.

    Attributes:
      kind: one of ``KINDS``.
      what: the attribute that is asked for (``VALUES``), or ``colours``, ``cells`` or ``scene``.
      by: the attribute that names the shape: colour, form or direction; of an order what happens: comes or turns; of
        the presence of a flash: flash.
      value: of that attribute; of an order: first or last.
      second: the moment that is asked about.
    """

    kind: str
    what: str
    by: str = ""
    value: str = ""
    second: float = 0.0

    @property
    def options(self) -> tuple[str, ...]:
        """The possible answers; none of an open question."""
        return () if self.kind in OPEN else VALUES[self.what]

    @property
    def chance(self) -> float:
        """Share of right answers of one who sees no video; of an open question 0, as good as."""
        return 1 / len(self.options) if self.options else 0.0

    def __str__(self) -> str:
        return _WRITERS[self.kind](self)


def named(by: str, value: str, article: str = "the") -> str:
    """The shape that has an attribute: ``the red shape``, ``the circle``, ``the shape that moves left``."""
    word = {"colour": f"{value} shape", "direction": f"shape that moves {value}"}.get(by, value)
    return f"{article} {word}"


def _second(question: Question) -> str:
    return f"{question.second:.3f}".rstrip("0").rstrip(".")


_WRITERS: dict[str, Callable[[Question], str]] = {
    "colour": lambda q: f"which colour is {named(q.by, q.value)}?",
    "form": lambda q: f"which form is {named(q.by, q.value)}?",
    "direction": lambda q: f"where does {named(q.by, q.value)} move?",
    "count": lambda q: "how many shapes are there?",
    "order": lambda q: f"which {q.what} is the shape that {q.by} {q.value}?",
    "moment": lambda q: f"where does {named(q.by, q.value)} move at second {_second(q)}?",
    "background": lambda q: f"which {q.what} is the background?",
    "needle": lambda q: f"which {q.what} is the flash?",
    "symbols": lambda q: f"which {q.what} is the symbol at second {_second(q)}?",
    "detail": lambda q: f"which colour is the dot in {named(q.by, q.value)}?",
    "presence": lambda q: f"is there {named(q.by, q.value, 'a')}?",
    "reading": lambda q: "which colours are the symbols, one after another?",
    "cells": lambda q: f"in which cells is {named(q.by, q.value)}, one after another?",
    "describe": lambda q: "what is there to see?",
}

_COLOUR, _FORM, _WAY = ("|".join(VALUES[name]) for name in ("colour", "form", "direction"))
_ONE = f"(?:(?P<colour>{_COLOUR}) shape|(?P<form>{_FORM})|shape that moves (?P<direction>{_WAY})"
_SHAPE = f"the {_ONE})"
_TIME = r"at second (?P<second>\d+(?:\.\d{1,3})?)"
_PATTERNS = {
    kind: re.compile(pattern + r"\?")
    for kind, pattern in {
        "colour": f"which (?P<what>colour) is {_SHAPE}",
        "form": f"which (?P<what>form) is {_SHAPE}",
        "direction": f"where does {_SHAPE} move",
        "count": "how many shapes are there",
        "order": f"which (?P<what>colour|form) is the shape that (?P<by>{'|'.join(EVENTS)}) "
        f"(?P<value>{'|'.join(PLACES)})",
        "moment": f"where does {_SHAPE} move {_TIME}",
        "background": "which (?P<what>tone|texture) is the background",
        "needle": "which (?P<what>colour|form) is the flash",
        "symbols": f"which (?P<what>colour|form) is the symbol {_TIME}",
        "detail": f"which (?P<what>colour) is the dot in {_SHAPE}",
        "presence": f"is there a {_ONE}|(?P<flash>{FLASH}))",
        "reading": "which (?P<what>colours) are the symbols, one after another",
        "cells": f"in which (?P<what>cells) is {_SHAPE}, one after another",
        "describe": "what is there to see",
    }.items()
}
_ASKED = {
    "direction": "direction",
    "moment": "direction",
    "count": "count",
    "presence": "presence",
    "describe": "scene",
}


def parse_question(text: str) -> Question:
    """Reads a question back.

    Raises:
      UserError: the text does not follow the grammar.
    """
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(text.strip()):
            found = {name: value for name, value in match.groupdict().items() if value is not None}
            by = next((name for name in ("colour", "form", "direction", FLASH) if name in found), "")
            return Question(
                kind,
                found.get("what") or _ASKED[kind],
                found.get("by", by),
                found.get("value", found.get(by, "")),
                float(found.get("second", 0)),
            )
    raise UserError(f"{text!r} is no question about shapes; write it like {KINDS['colour']!r}")


def answer_of(question: Question | str, scene: Mapping[str, Any]) -> str:
    """The answer to a question about a scene (``question_scenes``).

    Raises:
      UserError: the text is no question, or the scene has nothing that it asks for.
    """
    question = parse_question(question) if isinstance(question, str) else question
    try:
        return _ANSWERS[question.kind](question, scene)
    except (LookupError, StopIteration):
        raise UserError(f"the scene has nothing to answer {str(question)!r} with") from None


def _asked_shape(question: Question, scene: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(s for s in scene["shapes"] if _value(s, question.by) == question.value)


def _value(shape: Mapping[str, Any], name: str) -> str:
    return shape["directions"][0] if name == "direction" else shape[name]


def _attribute(question: Question, scene: Mapping[str, Any]) -> str:
    return _value(_asked_shape(question, scene), question.what)


def _in_order(question: Question, scene: Mapping[str, Any]) -> str:
    event = {"comes": "enters", "turns": "turn"}[question.by]
    ordered = sorted(scene["shapes"], key=lambda shape: shape[event])
    return ordered[0 if question.value == "first" else -1][question.what]


def _at_moment(question: Question, scene: Mapping[str, Any]) -> str:
    shape = _asked_shape(question, scene)
    progress = question.second * scene["fps"] / (scene["frames"] - 1)
    return shape["directions"][int(progress > shape["turn"])]


def _symbol(question: Question, scene: Mapping[str, Any]) -> str:
    return scene["symbols"][round(question.second * scene["fps"])][question.what]


def _presence(question: Question, scene: Mapping[str, Any]) -> str:
    if question.by == FLASH:
        return VALUES["presence"][FLASH not in scene]
    return VALUES["presence"][all(_value(shape, question.by) != question.value for shape in scene["shapes"])]


_ANSWERS: dict[str, Callable[[Question, Mapping[str, Any]], str]] = {
    "colour": _attribute,
    "form": _attribute,
    "direction": _attribute,
    "count": lambda q, scene: COUNTS[len(scene["shapes"]) - 1],
    "order": _in_order,
    "moment": _at_moment,
    "background": lambda q, scene: scene[q.what],
    "needle": lambda q, scene: scene["flash"][q.what],
    "symbols": _symbol,
    "detail": lambda q, scene: _asked_shape(q, scene)["dot"],
    "presence": _presence,
    "reading": lambda q, scene: " ".join(symbol["colour"] for symbol in scene["symbols"]),
    "cells": lambda q, scene: " ".join(CELLS[cell] for cell in _asked_shape(q, scene)["cells"]),
    "describe": lambda q, scene: caption_of(scene),
}


def caption_of(scene: Mapping[str, Any]) -> str:
    """What a scene shows; flash, dots and moments are left out."""
    ground = f"on a {scene['tone']} {scene['texture']} background"
    if "symbols" in scene:
        return f"symbols {ground}"
    shape = scene["shapes"][0]
    return f"a {shape['colour']} {shape['form']} jumps {ground}" if "cells" in shape else caption(dict(scene))


def objects_of(question: Question | str) -> tuple[str, ...]:
    """The things that must be seen to answer a question, in the order it names them; none of the background or of all.

    Raises:
      UserError: the text is no question.
    """
    question = parse_question(question) if isinstance(question, str) else question
    shape = {"colour": f"{question.value} shape", "form": question.value}.get(question.by, "shape")
    shape = FLASH if question.by == FLASH else shape
    special = {"background": (), "describe": (), "needle": ("flash",), "symbols": ("symbol",), "reading": ("symbol",)}
    return special.get(question.kind, ("dot", shape) if question.kind == "detail" else (shape,))


def parts_of(question: Question | str) -> tuple[str, ...]:
    """Questions of the same grammar about what changes in time, whose answers help; none where nothing does.

    Raises:
      UserError: the text is no question.
    """
    question = parse_question(question) if isinstance(question, str) else question
    if question.kind == "moment":
        return (str(dataclasses.replace(question, second=0.0)),)
    if question.kind == "order":
        other = PLACES[question.value == "first"]
        return (str(Question("count", "count")), str(dataclasses.replace(question, value=other)))
    if question.kind == "symbols":
        return (str(Question("reading", "colours")),)
    return ()


def chances(kinds: Sequence[str]) -> dict[str, float]:
    """Kind -> share of right answers of one who sees no video, over all questions of that kind."""
    asked = {"order": ("colour", "form"), "needle": ("colour", "form"), "symbols": ("colour", "form")}
    asked |= {"background": ("tone", "texture"), "direction": ("direction",), "moment": ("direction",)}
    asked |= {"detail": ("colour",), **dict.fromkeys(OPEN, ())}
    shares = {kind: [1 / len(VALUES[what]) for what in asked.get(kind, (kind,))] for kind in kinds}
    return {kind: sum(each) / len(each) if each else 0.0 for kind, each in shares.items()}
