"""``captions.jsonl``: what the files of a folder show."""

import json
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from videogen.errors import UserError

CAPTIONS = "captions.jsonl"
_FIELDS = ("caption", "class")
_SEVERAL = "captions"
_LIKE = '{"file": …, "caption": …, "class": …}'


def read_captions(folder: Path, names: Iterable[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The lines of ``captions.jsonl``, by the file they are about.

    A line names its file relative to the folder or by an absolute path into it. Where no file has exactly that name,
    one that differs in Unicode normalisation is meant, or else the only one that differs in letter case.

    Args:
      folder: may hold the file.
      names: the files there, relative to the folder with ``/``.

    Returns:
      File -> its ``caption`` and ``class``, as far as they are given, and ``captions`` where it has several, of which
      the caption is the first; and the files that lines name and nobody finds.

    Raises:
      UserError: a line that is no such JSON object in UTF-8, or whose fields are no text.
    """
    file = folder / CAPTIONS
    if not file.exists():
        return {}, []
    find = Finder(folder, names)
    entries: dict[str, dict[str, Any]] = {}
    unknown = []
    for number, found in json_lines(file, _LIKE):
        entry = _checked(found, f"{file}, line {number}")
        name = find(entry["file"])
        if name is None:
            unknown.append(entry["file"])
        else:
            entries[name] = {field: clean_text(entry[field]) for field in _FIELDS if field in entry}
            if several := tuple(map(clean_text, entry.get(_SEVERAL, ()))):
                entries[name] |= {"caption": several[0], _SEVERAL: several}
    return entries, unknown


def json_lines(file: Path, like: str) -> Iterator[tuple[int, Any]]:
    """The number of every line of a file that is not blank, from 1, and the JSON value that it is.

    Only line feeds end lines: texts may hold U+2028, U+0085 and other ends of lines that ``str.splitlines`` knows.

    Args:
      file: in UTF-8, with or without a byte order mark.
      like: what a line should look like, for messages.

    Raises:
      UserError: the file cannot be read, or a line is no JSON in UTF-8; it names the line.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"{file}, line {number} is no UTF-8; save the file with that encoding") from None
        except (ValueError, RecursionError):
            raise UserError(f"{file}, line {number} is no JSON object like {like}") from None


def write_lines(file: str | Path, lines: Iterable[str]) -> int:
    """Writes lines in UTF-8 and returns how many; the file is there as a whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    file, count = Path(file), 0
    unfinished = file.with_name(f"{file.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as out:
            for line in lines:
                out.write(f"{line}\n")
                count += 1
        unfinished.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def clean_text(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON can hold and UTF-8 cannot; U+FFFD stands in their place."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def printable(name: str | os.PathLike) -> str:
    """The name of a file for messages; bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _checked(entry: Any, place: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or "file" not in entry:
        raise UserError(f"{place} is no JSON object like {_LIKE}")
    for field in ("file", *_FIELDS):
        if not isinstance(entry.get(field, ""), str):
            said = json.dumps(entry[field])
            raise UserError(f"{place}: {field!r} must be text, got {said[:40]}; leave out what is not known")
    several = entry.get(_SEVERAL, [])
    if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
        raise UserError(f"{place}: 'captions' must be a list of texts, got {json.dumps(several)[:40]}")
    return entry


class Finder:
    """Finds the file that a line means: of exactly that name, or else the one that differs least.

    Args:
      folder: that names may begin with.
      names: of the files there, relative to it with ``/``.
    """

    def __init__(self, folder: Path, names: Iterable[str]):
        self._folder = folder
        self._exact = set(names)
        self._normalised: dict[str, list[str]] = {}
        self._any_case: dict[str, list[str]] = {}
        for name in self._exact:
            self._normalised.setdefault(_normal(name), []).append(name)
            self._any_case.setdefault(_any_case(name), []).append(name)

    def __call__(self, written: str) -> str | None:
        """The name of a file; ``None`` where there is no such file."""
        for folder in (self._folder, self._folder.absolute(), self._folder.resolve()):
            if posixpath.isabs(written) and written.startswith(f"{folder}/"):
                written = written.removeprefix(f"{folder}/")
        written = posixpath.normpath(written)
        if written in self._exact:
            return written
        alike = self._normalised.get(_normal(written)) or self._any_case.get(_any_case(written), [])
        return alike[0] if len(alike) == 1 else None


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _any_case(name: str) -> str:
    return _normal(_normal(name).casefold())
