"""Encoded clips in array_record files: one large file instead of many small ones, with random access."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from videogen.data.clip import Clip
from videogen.data.decode import PIXEL_BUDGET, decode_clip
from videogen.data.records import Records, RecordWriter
from videogen.data.source import Source

KIND = "encoded clips"


def write_array_record(
    path: str | os.PathLike, samples: Iterable[Mapping[str, Any]], classes: Sequence[str] = ()
) -> None:
    """Writes a directory for ``ArrayRecordSource``.

    Args:
      path: the directory; must not exist.
      samples: ``video`` (the bytes of an mp4, webm, … file), optional ``caption``, and with ``classes`` the
        ``label``, a number into them.
      classes: names of the labels.
    """
    with RecordWriter(path, {"kind": KIND, "classes": list(classes)}) as writer:
        for sample in samples:
            header = {"caption": sample.get("caption", "")}
            if classes:
                header["label"] = int(sample["label"])
            writer.write(header, sample["video"])


class ArrayRecordSource(Source):
    """The clips of a directory that ``write_array_record`` wrote, in its order.

    Windows and crops are random in 'train' and central in 'eval'; both splits hold all clips.

    Args:
      clip: the size of the samples.
      seed: with the index, decides window and crop of ``source[index]``.
      split: 'train' or 'eval'.
      path: the directory.
      pixel_budget: clips whose window has more pixels (width × height × frames) are skipped.
    """

    def __init__(self, *, clip: Clip, seed: int, split: str, path: str, pixel_budget: int = PIXEL_BUDGET):
        super().__init__(clip=clip, seed=seed, split=split)
        self._path = path
        self._records = Records(path, KIND)
        self._pixel_budget = pixel_budget
        self.classes = tuple(self._records.meta["classes"])

    def __len__(self) -> int:
        return len(self._records)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Decodes one window of clip ``index``; in 'eval' it does not depend on ``rng``."""
        header, encoded = self._records[index]
        choice = rng if self.split == "train" else None
        name = f"{self._path}, record {index}"
        decoded = decode_clip(encoded, name, self.clip, choice, self._pixel_budget)
        sample = {"video": decoded.video, "caption": header["caption"], "fps": decoded.fps}
        return sample | {"label": header["label"]} if self.classes else sample

    def caption(self, index: int) -> str:
        return self._records[index][0]["caption"]
