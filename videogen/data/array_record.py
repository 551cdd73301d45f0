"""Encoded clips in array_record files: one large file instead of many small ones, with random access.

Captions and labels are records of their own, so that reading them does not read the videos.
"""

import contextlib
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videogen.data.captions import clean_text
from videogen.data.clip import Clip
from videogen.data.decode import decode_clip, frame_rate
from videogen.data.media import PIXEL_BUDGET
from videogen.data.records import META, Records, RecordWriter
from videogen.data.source import SampleError, Source
from videogen.errors import UserError

KIND = "encoded clips"
CAPTIONS = "captions"


def write_array_record(
    path: str | os.PathLike, samples: Iterable[Mapping[str, Any]], classes: Sequence[str] = ()
) -> None:
    """Writes a directory for ``ArrayRecordSource``.

    Args:
      path: the directory; must not exist.
      samples: ``video`` (the bytes of an mp4, webm, … file), optional ``caption``, and with ``classes`` the
        ``label``, a number into them.
      classes: names of the labels.

    Raises:
      UserError: the directory exists, or a label is none of the classes.
    """
    # The captions are completed first: where the outer directory is complete, so are they.
    with (
        RecordWriter(path, {"kind": KIND, "classes": list(classes)}) as clips,
        RecordWriter(Path(path) / CAPTIONS, {"kind": CAPTIONS}) as captions,
    ):
        for sample in samples:
            header = {"caption": clean_text(sample.get("caption", ""))}
            if classes:
                header["label"] = _label(sample, classes)
            captions.write(header, b"")
            clips.write({}, sample["video"])


def _label(sample: Mapping[str, Any], classes: Sequence[str]) -> int:
    label = sample.get("label")
    if label is None or not 0 <= label < len(classes):
        raise UserError(f"label {label} is none of the {len(classes)} classes")
    return int(label)


class ArrayRecordSource(Source):
    """The clips of a directory that ``write_array_record`` wrote, in its order.

    Windows and crops are random in 'train' and central in 'eval'; both splits hold all clips.

    Args:
      clip: the size of the samples.
      seed: with the index, decides window and crop of ``source[index]``.
      split: 'train' or 'eval'.
      path: the directory.
      pixel_budget: clips are skipped of which a decoder could hold more pixels (16 × width × height of a frame).
    """

    def __init__(self, *, clip: Clip, seed: int, split: str, path: str, pixel_budget: int = PIXEL_BUDGET):
        super().__init__(clip=clip, seed=seed, split=split)
        self._path = path
        self.keeps_apart = False
        self._clips = Records(path, KIND)
        self._captions = Records(Path(path) / CAPTIONS, CAPTIONS)
        self._pixel_budget = pixel_budget
        classes = self._clips.meta.get("classes", [])
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise UserError(f"the classes in {path}/{META} are no list of names; write the directory again")
        self.classes = tuple(classes)
        if len(self._captions) != len(self._clips):
            raise UserError(f"{path} has {len(self._clips)} clips and {len(self._captions)} captions; write it again")

    @functools.cached_property
    def fps(self) -> float | None:
        """The clip's rate, or without one that of the first video that can be opened."""
        if self.clip.fps is None:
            for index in range(len(self)):
                with contextlib.suppress(SampleError):
                    return frame_rate(self._clips[index][1], self._path)
        return self.clip.fps

    def __len__(self) -> int:
        return len(self._clips)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Decodes one window of clip ``index``; in 'eval' it does not depend on ``rng``."""
        header, (_, encoded) = self._header(index), self._clips[index]
        choice = self.choice(rng)
        decoded = decode_clip(encoded, self._name(index), self.clip, choice, self._pixel_budget)
        sample = {"video": decoded.video, "caption": header["caption"], "fps": decoded.fps}
        return sample | {"label": header["label"]} if self.classes else sample

    def caption(self, index: int) -> str:
        return self._header(index)["caption"]

    def _name(self, index: int) -> str:
        return f"{self._path}, record {index}"

    def _header(self, index: int) -> dict[str, Any]:
        """Caption and label."""
        header, _ = self._captions[index]
        label = header.get("label")
        wrong = self.classes and not (isinstance(label, int) and 0 <= label < len(self.classes))
        if wrong or not isinstance(header.get("caption"), str):
            raise SampleError(self._name(index), "damaged record: wrong caption or label")
        return header | {"caption": clean_text(header["caption"])}
