"""Lists that come with data sets: the order of their classes, and which files a split has.

Three kinds are read: lines ``NAME`` or ``NAME NUMBER`` (UCF-101's ``trainlist01.txt``), csv files with the columns
``label, youtube_id, time_start, time_end`` (Kinetics), and lists of classes, ``NUMBER NAME`` counted from 1
(``classInd.txt``), WordNet ids with or without words behind them, or one name a line.
"""

import collections
import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from videogen.errors import UserError

LENGTHS = {
    "trainlist01.txt": 9537,
    "testlist01.txt": 3783,
    "trainlist02.txt": 9586,
    "testlist02.txt": 3734,
    "trainlist03.txt": 9624,
    "testlist03.txt": 3696,
}
"""Name of a published list -> how many files it has; copies that lack lines are in circulation (UCF-101)."""

IMAGENET = 1000
"""Classes of ImageNet."""

WORDNET = re.compile(r"n\d{8}")
_GROUP = re.compile(r"_(g\d+)_c\d+")
_COLUMNS = ("youtube_id", "time_start", "time_end")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file of a list: its name, relative or without folder and ending, and its class or number of one, if it says."""

    name: str
    label: str = ""


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in order; where all are whole numbers by these, so that 10 comes after 9."""
    names = set(names)
    return tuple(sorted(names, key=(lambda n: (int(n), n)) if all(n.isdecimal() for n in names) else None))


def read_classes(path: str | Path) -> tuple[str, ...]:
    """The classes of a list, so that the place of one is its label.

    WordNet ids are sorted, whatever the order of the list: the label of ImageNet's classes is the place among the
    sorted ids, and the numbers of its development kit are others.

    Raises:
      UserError: the file is unreadable, empty, names a class twice, or its numbers are not 1, 2, ….
    """
    lines = [line.split(maxsplit=1) for line in _text(path).splitlines() if line.strip()]
    if all(len(words) == 2 and words[0].isdecimal() for words in lines):
        numbers, names = [int(words[0]) for words in lines], [words[1].strip() for words in lines]
        if numbers != list(range(1, len(lines) + 1)):
            raise UserError(f"{path}: the numbers of its classes are not 1, 2, …, {len(lines)}; restore the file")
    elif all(WORDNET.fullmatch(words[0]) for words in lines):
        names = sorted(words[0] for words in lines)
    else:
        names = [" ".join(words) for words in lines]
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise UserError(f"{path} names the class {twice[0]!r} twice; restore the file")
    if not names:
        raise UserError(f"{path} names no class")
    return tuple(names)


def read_list(path: str | Path) -> list[Entry]:
    """The files of a split.

    Raises:
      UserError: the file is unreadable or empty, has an entry twice, lacks a column, or is a damaged copy of a
        published list, which has another number of lines.
    """
    path, text = Path(path), _text(path)
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(text))
        if missing := set(_COLUMNS) - set(rows.fieldnames or ()):
            raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}; give a list of Kinetics")
        try:
            entries = [Entry(_clip_of(row), (row.get("label") or "").strip()) for row in rows]
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: a row has no times ({error}); restore the file") from error
    else:
        words = [re.fullmatch(r"(.*?\S)(?:\s+(\d+))?", line.strip()) for line in text.splitlines() if line.strip()]
        entries = [Entry(PurePosixPath(match[1]).as_posix(), match[2] or "") for match in words]
    if (expected := LENGTHS.get(path.name, len(entries))) != len(entries):
        raise UserError(f"{path} lists {len(entries):,} files, and the published one {expected:,}; download it again")
    if twice := [name for name, count in collections.Counter(e.name for e in entries).items() if count > 1]:
        raise UserError(f"{path} lists {twice[0]} twice; download it again")
    if not entries:
        raise UserError(f"{path} lists no file")
    return entries


def _clip_of(row: dict[str, str]) -> str:
    """The name that the usual tools give a cut clip of Kinetics."""
    return f"{row['youtube_id']}_{int(float(row['time_start'])):06}_{int(float(row['time_end'])):06}"


def in_both(train: Sequence[Entry], held_out: Sequence[Entry]) -> set[str]:
    """The names that two lists share (a few of Kinetics do).

    Raises:
      UserError: clips that were cut from one video stand in both: groups (``_g07_c03``) of a class of UCF-101.
    """
    groups = {group for entry in train if (group := _group(entry))}
    if shared := sorted({group for entry in held_out if (group := _group(entry))} & groups):
        raise UserError(
            f"group {shared[0][1]} of {shared[0][0]} stands in both lists, so that training sees what is held out "
            f"({len(shared)} groups); use a published pair of lists"
        )
    return {entry.name for entry in train} & {entry.name for entry in held_out}


def _group(entry: Entry) -> tuple[str, str] | None:
    match = _GROUP.search(entry.name)
    return (entry.name[: match.start()], match[1]) if match else None


def places(entries: Sequence[Entry], files: Sequence[str]) -> list[int | None]:
    """Which of the files each entry means; ``None`` where it is not there.

    Args:
      entries: of a list.
      files: relative names. An entry means the file of that name, below any folder, with or without its ending.
    """
    known: dict[str, int] = {}
    for place, name in enumerate(files):
        parts = PurePosixPath(name).parts
        for i in range(len(parts)):
            ending = "/".join(parts[i:])
            known.setdefault(ending, place)
            known.setdefault(ending[: -len(PurePosixPath(name).suffix) or None], place)
    return [known.get(entry.name) for entry in entries]


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list ({error})") from error
