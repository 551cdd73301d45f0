"""From a published set of questions and a folder of videos to ``questions.jsonl``."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from absl import logging

from videogen.data.folders import VIDEOS, walk
from videogen.data.media import PICTURES
from videogen.data.question_rows import Row, row_of, write_questions
from videogen.data.question_sets import SETS, Published
from videogen.errors import UserError


class Videos:
    """The videos of a folder, found by their names as sets of questions write them.

    Raises:
      UserError: there is no such folder, or no video in it.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"no folder {folder}; set --videos to the folder of the videos")
        self._exact: set[str] = set()
        self._ending: dict[str, list[str]] = collections.defaultdict(list)
        for file in sorted(walk(folder)):
            if file.suffix.lower() in VIDEOS + PICTURES:
                self._add(file.relative_to(folder).as_posix())
        if not self._exact:
            raise UserError(f"no video in {folder}; known file types are {', '.join(VIDEOS)}")

    def _add(self, name: str) -> None:
        self._exact.add(name)
        parts = PurePosixPath(name).parts
        for i in range(len(parts)):
            ending = "/".join(parts[i:])
            self._ending[ending].append(name)
            self._ending[ending[: -len(PurePosixPath(name).suffix)]].append(name)

    def find(self, names: Iterable[str]) -> str | None:
        """The file, relative to the folder, that one of some names means; ``None`` where none or several are meant.

        A name means the file of that path, or the only one below any folder, with or without its ending, that ends so.
        """
        for name in names:
            name = PurePosixPath(name).as_posix().lstrip("/")
            if name in self._exact:
                return name
            if len(found := self._ending.get(name, ())) == 1:
                return found[0]
        return None


@dataclasses.dataclass
class Report:
    """What became of the questions of a set.

    Attributes:
      written: how many were kept.
      missing: name of a video that was not found, or not found once -> how many questions are about it.
      malformed: why a question could not be kept -> how many.
    """

    written: int = 0
    missing: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    malformed: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    @property
    def left_out(self) -> int:
        """Questions that were not kept."""
        return self.missing.total() + self.malformed.total()

    def lines(self) -> Iterator[str]:
        """What to say of it."""
        yield f"{self.written} questions, {self.left_out} left out"
        if self.missing:
            shown = ", ".join(list(self.missing)[:3]) + (", …" if len(self.missing) > 3 else "")
            yield f"{self.missing.total()} of {len(self.missing)} videos that are not there, or twice: {shown}"
        for reason, count in self.malformed.most_common(3):
            yield f"{count} malformed: {reason}"


def annotation_files(path: str | Path) -> list[Path]:
    """A file, or the csv and JSON files of a folder in order.

    Raises:
      UserError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl"))
    if not files:
        raise UserError(f"no csv or JSON file in {path}; set --annotations to the file of the questions")
    return files


def rows_of(
    files: Iterable[Path],
    read: Callable[[Path], Iterator[Published]],
    videos: Videos,
    report: Report,
    parts: bool = True,
) -> Iterator[Row]:
    """The rows of files whose videos are there; what is left out is counted.

    Args:
      files: annotation files of a set.
      read: of ``question_sets.SETS``.
      videos: that the questions are about.
      report: counts.
      parts: whether questions keep the part of the video that they name.

    Raises:
      UserError: a file is of another layout.
    """
    ids: set[str] = set()
    for file in files:
        for published in read(file):
            video = videos.find(published.videos)
            if video is None:
                report.missing[published.videos[0]] += 1
                continue
            fields = {k: v for k, v in published.fields.items() if parts or k not in ("start", "end")}
            try:
                row = row_of({"video": video, **fields}, "")
            except UserError as error:
                report.malformed[str(error).lstrip(": ").partition(", got")[0]] += 1
                continue
            if row.id in ids:
                report.malformed["an id that an earlier question has"] += 1
                continue
            ids.add(row.id)
            report.written += 1
            yield row


def convert(name: str, annotations: str, videos: str, out: str, whole_videos: bool = False) -> Report:
    """Writes the questions of a set and says what was left out.

    Raises:
      UserError: a file cannot be read or written, is of another layout, or no question is left.
    """
    report, files = Report(), annotation_files(annotations)
    rows = rows_of(files, SETS[name], Videos(videos), report, parts=not whole_videos)
    first = next(rows, None)
    lines = list(report.lines())
    if first is None:
        raise UserError(f"no question of {annotations} can be kept: {'; '.join(lines)}")

    def all_rows():
        yield first
        yield from rows

    write_questions(out, all_rows())
    for line in report.lines():
        logging.info("%s", line)
    logging.info("wrote %s", out)
    return report
