"""From a published set of captions and a folder of videos to ``captions.jsonl``."""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from absl import logging

from videogen.data.annotations import read_text
from videogen.data.caption_sets import SETS
from videogen.data.captions import clean_text, write_lines
from videogen.data.question_conversion import Videos, annotation_files
from videogen.errors import UserError

RULES: Mapping[str, Callable[[Sequence[str]], dict[str, object]]] = {
    "all": lambda said: {"captions": list(said)} if len(said) > 1 else {"caption": said[0]},
    "first": lambda said: {"caption": said[0]},
    "paragraph": lambda said: {"caption": " ".join(said)},
}
"""Caption rule -> what a line says of a video with these captions: all of them, the first, all of them joined."""


@dataclasses.dataclass
class Captions:
    """What became of the captions of a set.

    Attributes:
      lines: file -> its captions, in the order of the annotations.
      missing: name of a video that was not found, or not found once -> how many captions it has.
      others: captions of videos that are not on the list.
    """

    lines: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    missing: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    others: int = 0

    def said(self) -> Iterator[str]:
        """What to say of it."""
        kept = sum(map(len, self.lines.values()))
        yield f"{kept} captions of {len(self.lines)} videos, {self.missing.total()} left out, {self.others} not listed"
        if self.missing:
            shown = ", ".join(list(self.missing)[:3]) + (", …" if len(self.missing) > 3 else "")
            yield f"{len(self.missing)} videos are not there, or twice: {shown}"


def convert_captions(name: str, annotations: str, videos: str, out: str, rule: str = "", listed: str = "") -> Captions:
    """Writes one line for every video of a set and says what was left out.

    Args:
      name: of ``caption_sets.SETS``.
      annotations: its file, or a folder of them.
      videos: folder of the videos.
      out: the file, ``captions.jsonl`` in that folder.
      rule: of ``RULES``; by default that of the set.
      listed: file of the names of the videos that are wanted, one a line, or a csv file whose first column, or column
        ``video_id``, has them; empty: all.

    Raises:
      UserError: a file cannot be read or written, is of another layout, or no caption is left.
    """
    chosen, found, wanted = RULES[rule or SETS[name].rule], Captions(), names_in(listed) if listed else None
    folder = Videos(videos)
    for file in annotation_files(annotations):
        for names, said in SETS[name].read(file):
            if wanted is not None and not {_bare(own) for own in names} & wanted:
                found.others += 1
            elif (video := folder.find(names)) is None:
                found.missing[names[0]] += 1
            elif said:
                found.lines.setdefault(video, []).append(clean_text(said))
    if not found.lines:
        raise UserError(f"no caption of {annotations} can be kept: {'; '.join(found.said())}")
    lines = ({"file": video, **chosen(said)} for video, said in found.lines.items())
    write_lines(out, (json.dumps(line, ensure_ascii=False) for line in lines))
    for line in found.said():
        logging.info("%s", line)
    logging.info("wrote %s", out)
    return found


def names_in(file: str) -> set[str]:
    """The names of a list of videos, without folder and ending."""
    lines = [line.strip().split(",") for line in read_text(Path(file)).split("\n") if line.strip()]
    column = 0
    if lines and "video_id" in lines[0]:
        column = lines[0].index("video_id")
        lines = lines[1:]
    return {_bare(line[column]) for line in lines if len(line) > column}


def _bare(name: str) -> str:
    """A name without folder and the ending of a video."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v") else path.name
