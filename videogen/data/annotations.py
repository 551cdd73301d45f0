"""Rows of published annotation files, csv or JSON, with messages that name the place."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from videogen.errors import UserError


def rows_in(
    file: Path, needed: Sequence[str], delimiter: str = ",", what: str = "question"
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a csv or JSON file, each with its place for messages.

    Args:
      file: its ending says what it is.
      needed: columns that every row has.
      delimiter: of the columns.
      what: a row is, for messages.

    Raises:
      UserError: it cannot be read, or a row lacks what is needed.
    """
    if file.suffix.lower() in (".csv", ".tsv"):
        rows: Any = csv.DictReader(io.StringIO(read_text(file)), delimiter=delimiter)
        if missing := [name for name in needed if name not in (rows.fieldnames or ())]:
            raise UserError(f"{file} lacks the columns {', '.join(missing)}; is it the file of another set?")
    elif not isinstance(rows := read_json(file), list):
        raise UserError(f"{file} is no list of {what}s; is it the file of another set?")
    for number, row in enumerate(rows, 1):
        place = f"{file}, {what} {number}"
        if not isinstance(row, Mapping) or (missing := [name for name in needed if row.get(name) is None]):
            gone = ", ".join(missing) if isinstance(row, Mapping) else ", ".join(needed)
            raise UserError(f"{place} lacks {gone}; is it the file of another set?")
        yield place, row


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; raises ``UserError`` where it is none."""
    try:
        return file.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is no UTF-8 text; of a parquet file give the export to JSON") from None


def read_json(file: Path) -> Any:
    """The content of a JSON file, or the objects of one of JSON lines (``.jsonl``)."""
    text = read_text(file)
    try:
        if file.suffix.lower() == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{file} is no {file.suffix[1:].upper()} file; download it again") from None


def text_in(row: Mapping[str, Any], name: str, place: str) -> str:
    """A field as text: numbers, as ids and some answers are, become their figures."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{place}: {name!r} must be text or a number, got {json.dumps(value, default=str)[:40]}")
    return str(value).strip()


def list_in(row: Mapping[str, Any], name: str, place: str) -> list[str]:
    """A field that is a list, as texts."""
    values = row.get(name)
    if not isinstance(values, list):
        raise UserError(f"{place}: {name!r} must be a list, got {json.dumps(values, default=str)[:40]}")
    return [text_in({name: value}, name, place) for value in values]
