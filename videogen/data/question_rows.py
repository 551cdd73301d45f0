"""``questions.jsonl``: questions about the videos of a folder, one JSON object a line."""

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from videogen.data.captions import clean_text, json_lines, write_lines
from videogen.errors import UserError, near_matches

QUESTIONS = "questions.jsonl"
_LIKE = '{"video": …, "question": …, "answer": …, "options": […]}'


@dataclasses.dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
      video: the file, relative to its folder with ``/``.
      question: its text.
      answer: the right answer; empty where it is not known.
      options: the answers to choose from, all different; none of an open question.
      kind: what the question is about, for scores by kind.
      id: its name in the data set.
      wrong: a wrong answer that looks right, for preferences.
      start, end: the part of the video that it is about, in seconds; ``None`` is the end.
    """

    video: str
    question: str
    answer: str = ""
    options: tuple[str, ...] = ()
    kind: str = ""
    id: str = ""
    wrong: str = ""
    start: float = 0.0
    end: float | None = None

    def line(self) -> str:
        """The row as a line of the file, without its end; what is empty is left out."""
        entry = {name: value for name, value in dataclasses.asdict(self).items() if value not in ("", (), 0.0, None)}
        return json.dumps(entry, ensure_ascii=False)


FIELDS = tuple(field.name for field in dataclasses.fields(Row))
_TEXTS = ("video", "question", "answer", "kind", "id", "wrong")


def read_questions(file: str | Path) -> list[Row]:
    """The rows of a file, in order.

    Raises:
      UserError: it cannot be read, has no row, or a line is no such object in UTF-8: a field is missing, unknown or of
        another type, the answer is none of the options, or an id occurs twice. It names the line.
    """
    file = Path(file)
    rows, ids = [], {}
    for number, entry in json_lines(file, _LIKE):
        place = f"{file}, line {number}"
        row = row_of(entry, place)
        if row.id and row.id in ids:
            raise UserError(
                f"{place}: the id {row.id!r} is that of line {ids[row.id]}, too; give each question its own"
            )
        ids[row.id] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{file} has no question; write one a line like {_LIKE}")
    return rows


def row_of(entry: Any, place: str) -> Row:
    """The row of a JSON object.

    Args:
      entry: the object.
      place: where it stands, for messages.

    Raises:
      UserError: see ``read_questions``.
    """
    if not isinstance(entry, Mapping) or not {"video", "question"} <= entry.keys():
        raise UserError(f"{place} is no JSON object like {_LIKE}")
    if unknown := sorted(entry.keys() - set(FIELDS)):
        raise UserError(f"{place} has an unknown field {unknown[0]!r}{near_matches(unknown[0], FIELDS)}")
    for name in _TEXTS:
        if not isinstance(value := entry.get(name, ""), str):
            raise UserError(f"{place}: {name!r} must be text, got {_shown(value)}; leave out what is not known")
    options = entry.get("options", ())
    if not isinstance(options, list | tuple) or not all(isinstance(o, str) and o.strip() for o in options):
        raise UserError(f"{place}: 'options' must be a list of texts, got {_shown(options)}")
    texts = {name: clean_text(entry[name]).strip() for name in _TEXTS if name in entry}
    options = tuple(clean_text(option).strip() for option in options)
    if not texts["question"] or not texts["video"]:
        raise UserError(f"{place}: 'video' and 'question' must not be empty")
    if len(options) == 1 or len(set(options)) < len(options):
        twice = collections.Counter(options).most_common(1)[0][0]
        raise UserError(f"{place}: 'options' must be two or more different texts, got {twice!r} alone or twice")
    answer, wrong = texts.get("answer", ""), texts.get("wrong", "")
    if options and answer and answer not in options:
        raise UserError(f"{place}: the answer {answer[:40]!r} is none of the options; write it as it stands there")
    if wrong and wrong == answer:
        raise UserError(f"{place}: 'wrong' is the answer; leave it out, or give a wrong one")
    return Row(**texts, options=options, **_part(entry, place))


def _part(entry: Mapping[str, Any], place: str) -> dict[str, float | None]:
    """``start`` and ``end`` of an object."""
    start, end = entry.get("start", 0.0), entry.get("end")
    for name, value in (("start", start), ("end", end)):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (number and value >= 0):
            raise UserError(f"{place}: {name!r} must be a number of seconds from 0 on, got {_shown(value)}")
    start = start or 0.0
    if end is not None and end <= start:
        raise UserError(f"{place}: the part from {start:g} to {end:g} s is empty; 'end' comes after 'start'")
    return {"start": float(start), "end": None if end is None else float(end)}


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:40]


def write_questions(file: str | Path, rows: Iterable[Row]) -> int:
    """Writes rows and returns how many; the file is there as a whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    return write_lines(file, (row.line() for row in rows))
