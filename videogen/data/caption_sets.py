"""Published sets of captioned videos for retrieval, read from their own annotation files.

Each function of ``SETS`` reads one file as it is published and gives its captions in order, each with the names that
its video may have. ``caption_conversion`` finds the videos and writes ``captions.jsonl``.
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from videogen.data.annotations import list_in, read_json, read_text, rows_in, text_in
from videogen.errors import UserError

Caption = tuple[tuple[str, ...], str]
"""Names of a video, the likeliest first, with or without folder and ending; and one of its captions."""


def msrvtt(file: Path) -> Iterator[Caption]:
    """MSR-VTT: ``MSRVTT_data.json`` (a list ``sentences`` of ``caption, video_id``, twenty of a video), or a list of
    one caption of each video, ``MSRVTT_JSFUSION_test.csv`` (``key, vid_key, video_id, sentence``; the 1k-A set)."""
    if file.suffix.lower() == ".csv":
        for place, row in rows_in(file, ("video_id", "sentence"), what="caption"):
            yield (text_in(row, "video_id", place),), text_in(row, "sentence", place)
        return
    content = read_json(file)
    if not isinstance(content, Mapping) or not isinstance(content.get("sentences"), list):
        raise UserError(f"{file} has no list of sentences; is it the file of another set?")
    for number, row in enumerate(content["sentences"], 1):
        place = f"{file}, sentence {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{place} is no object; download the file again")
        yield (text_in(row, "video_id", place),), text_in(row, "caption", place)


def msvd(file: Path) -> Iterator[Caption]:
    """MSVD: ``AllVideoDescriptions.txt``, a line ``NAME_START_END caption`` each, about forty of a video; lines that
    begin with ``#`` are comments. The pickled captions of other repositories are not read."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, said = line.strip().partition(" ")
        if not said:
            raise UserError(f"{file}, line {number} has no caption behind its video; is it the file of another set?")
        yield (name,), said.strip()


def lsmdc(file: Path) -> Iterator[Caption]:
    """LSMDC: ``LSMDC16_annos_training.csv``, ``LSMDC16_challenge_1000_publictect.csv``: six columns parted by tabs
    without a header, clip, four times, sentence; one caption of each clip."""
    rows = csv.reader(io.StringIO(read_text(file)), delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        if len(row) != LSMDC_COLUMNS:
            raise UserError(f"{file}, line {number} has {len(row)} columns and not 6; is it the file of another set?")
        yield (row[0].strip(),), row[-1].strip()


LSMDC_COLUMNS = 6


def didemo(file: Path) -> Iterator[Caption]:
    """DiDeMo: ``train_data.json``, ``val_data.json``, ``test_data.json`` (a list of ``description, video, …``), several
    descriptions of moments of a video, which together are its paragraph."""
    for place, row in rows_in(file, ("description", "video"), what="description"):
        yield (text_in(row, "video", place),), text_in(row, "description", place)


def activitynet(file: Path) -> Iterator[Caption]:
    """ActivityNet Captions: ``train.json``, ``val_1.json`` (``{v_NAME: {duration, timestamps, sentences}}``), whose
    sentences together are the paragraph of a video. Videos are ``v_NAME`` or ``NAME``."""
    content = read_json(file)
    if not isinstance(content, Mapping):
        raise UserError(f"{file} is no object of videos; is it the file of another set?")
    for name, entry in content.items():
        place = f"{file}, {name}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{place} is no object; is it the file of another set?")
        for said in list_in(entry, "sentences", place):
            yield (name, name.removeprefix("v_")), said


@dataclasses.dataclass(frozen=True)
class CaptionSet:
    """A published set.

    Attributes:
      read: one of its annotation files.
      rule: of ``caption_conversion.RULES``, that its papers measure with.
    """

    read: Callable[[Path], Iterator[Caption]]
    rule: str


SETS = {
    "activitynet": CaptionSet(activitynet, "paragraph"),
    "didemo": CaptionSet(didemo, "paragraph"),
    "lsmdc": CaptionSet(lsmdc, "all"),
    "msrvtt": CaptionSet(msrvtt, "all"),
    "msvd": CaptionSet(msvd, "all"),
}
"""Name -> set."""
