"""The sides of a comparison: files, clips of a data source, samples of a generator, reconstructions of a tokenizer."""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8

from videogen import data
from videogen.data.crops import CROPS, centre_crop
from videogen.data.decode import coding
from videogen.data.video_io import Frames, read_video
from videogen.errors import UserError
from videogen.evaluation.presets import Preset

LOSSLESS = frozenset(("png", "apng", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "magicyuv"))
"""Codecs that keep every level of every pixel (they may do so in other settings only, of which nothing is known)."""

Clips = UInt8[np.ndarray, "batch time height width 3"]


class Side:
    """Clips in an order, of which the first usable ones count.

    Attributes:
      name: ``real`` or ``generated``.
      wanted: clips that count; ``None``: all that can be used.
      texts: number of a clip -> what it is to show, where that is known.
    """

    name: str
    wanted: int | None
    texts: Callable[[int], str] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def clips(self, rows: range) -> list[Frames | None]:
        """Clips of these places; ``None`` for one that is left out.

        Raises:
          UserError: one is missing of a side of which every clip counts.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What the clips are, for the record; ``hash`` changes with them."""
        raise NotImplementedError


class WrongRate(UserError):
    """A file has another rate than its protocol takes: no reason to leave it out, but to stop."""


@dataclasses.dataclass(frozen=True)
class FolderSide(Side):
    """The clips of one folder.

    Attributes:
      name: ``real`` or ``generated``.
      files: in the order they are read.
      wanted: clips that count.
      preset: how they are taken.
      seed: decides random windows.
      folder: where the files are.
      texts: number of a clip -> what it is to show.
    """

    name: str
    files: tuple[Path, ...]
    wanted: int | None
    preset: Preset
    seed: int = 0
    folder: Path = Path()
    texts: Callable[[int], str] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def taken(self) -> Any:
        """The preset's rules for this side."""
        return self.preset.real_clips if self.name == "real" else self.preset.generated_clips

    def clips(self, rows: range) -> list[Frames | None]:
        found: list[Frames | None] = []
        for row in rows:
            try:
                found.append(self.clip(row))
            except UserError as error:
                if isinstance(error, WrongRate):
                    raise
                if self.name == "generated":
                    raise UserError(f"{error}; every generated file counts: make it again, or remove it") from error
                logging.warning("left out: %s", error)
                found.append(None)
        return found

    def clip(self, index: int) -> Frames:
        """The frames of a file that count.

        Raises:
          UserError: it has too few, another rate than the preset's, or cannot be read.
        """
        file, preset = self.files[index], self.preset
        video, fps = read_video(file)
        if preset.frames != 1 and self.taken.fps and abs(fps - self.taken.fps) > 0.01 * self.taken.fps:
            raise WrongRate(f"{file} has {fps:g} frames per second, and the protocol takes {self.taken.fps:g}")
        if preset.frames == 1 and self.name == "real" and preset.real_clips.crop in CROPS:
            return centre_crop(video[0], preset.real_clips.side, preset.real_clips.crop)[None]
        stride, rule = self.taken.stride, preset.real_clips.rule if self.name == "real" else "first"
        length = (preset.frames - 1) * stride + 1 if preset.frames else len(video)
        spare = len(video) - length
        if spare < 0:
            raise UserError(f"{file} has {len(video)} frames, and {length} are needed")
        clip = data.Clip(1, 1, 1, window=rule)
        start = clip.start_frame(spare, np.random.default_rng((self.seed, index)))
        return video[start : start + length : stride]

    def describe(self) -> dict[str, Any]:
        """The folder's content: number and kinds of files, the hash of their names and sizes, how they are stored."""
        entries = "\n".join(sorted(f"{file.relative_to(self.folder)} {file.stat().st_size}" for file in self.files))
        kinds = collections.Counter(file.suffix.lower() for file in self.files)
        digest = hashlib.sha256(entries.encode(errors="surrogateescape")).hexdigest()
        found = {"found": len(self.files), "files": dict(sorted(kinds.items())), "hash": digest[:16]}
        return found | self.stored

    @functools.cached_property
    def stored(self) -> dict[str, list[Any]]:
        """Every ``container``, ``codec``, ``size`` and ``fps`` that the headers of the files have."""
        found = collections.defaultdict(set)
        for file in self.files:
            try:
                for field, value in coding(file, str(file)).items():
                    found[field].add(value)
            except data.SampleError:
                continue  # named when it is read
        return {field: sorted(values) for field, values in sorted(found.items())}


@dataclasses.dataclass(frozen=True)
class SourceSide(Side):
    """Clips of a data source.

    Attributes:
      source: where they are read.
      order: the samples, in the order they are read.
      wanted: clips that count.
      seed: decides random windows.
      about: what the record says of the source.
    """

    source: data.Source
    order: Sequence[int]
    wanted: int | None
    seed: int
    about: Mapping[str, Any]
    name: str = "real"

    def __len__(self) -> int:
        return len(self.order)

    def clips(self, rows: range) -> list[Frames | None]:
        return [self._clip(self.order[row]) for row in rows]

    def _clip(self, index: int) -> Frames | None:
        try:
            return self.source.sample(index, np.random.default_rng([self.seed, index]))["video"]
        except data.SampleError as error:
            logging.warning("left out: %s", error)
            return None

    def place(self, row: int) -> int:
        """The sample that sample ``row`` of a generator belongs to: they are gone through again and again."""
        return self.order[row % len(self.order)]

    def beginning(self, row: int, frames: int) -> Frames:
        """The first frames of the clip that sample ``row`` goes on with, or of the next one that can be read.

        Raises:
          UserError: none can be read.
        """
        for step in range(len(self.order)):
            if (clip := self._clip(self.place(row + step))) is not None:
                return clip[:frames]
        raise UserError("no clip of the data source can be read")

    def describe(self) -> dict[str, Any]:
        content = f"{self.about} {self.source.contents()} {self.source.clip} {self.source.seed}"
        clip = self.source.clip
        rates = [] if self.source.fps is None else [self.source.fps]
        found = {"found": len(self.source), "size": [f"{clip.height}x{clip.width}"], "fps": rates}
        return {**self.about, **found, "hash": hashlib.sha256(content.encode()).hexdigest()[:16]}


@dataclasses.dataclass(frozen=True)
class DrawnSide(Side):
    """Samples of a generator, each of which counts.

    Attributes:
      draw: numbers of samples -> clips.
      wanted: how many.
      about: what the record says of them.
      texts: number of a clip -> what it is to show.
    """

    draw: Callable[[Sequence[int]], Clips]
    wanted: int
    about: Mapping[str, Any]
    texts: Callable[[int], str] | None = None
    name: str = "generated"

    def __len__(self) -> int:
        return self.wanted

    def clips(self, rows: range) -> list[Frames | None]:
        return list(self.draw(rows))

    def describe(self) -> dict[str, Any]:
        return dict(self.about)


@dataclasses.dataclass(frozen=True)
class RebuiltSide(Side):
    """What a tokenizer makes of exactly the clips of the real side.

    Attributes:
      real: the clips.
      rebuild: uint8 clips -> uint8 clips.
      about: what the record says of them.
    """

    real: Side
    rebuild: Callable[[Clips], Clips]
    about: Mapping[str, Any]
    name: str = "generated"

    @property
    def wanted(self) -> int | None:
        """As many as of the real side."""
        return self.real.wanted

    def __len__(self) -> int:
        return len(self.real)

    def clips(self, rows: range) -> list[Frames | None]:
        originals = self.real.clips(rows)
        usable = [clip for clip in originals if clip is not None]
        if not usable:
            return originals
        # Filled up, so that one program serves all.
        filled = usable + usable[-1:] * (len(rows) - len(usable))
        rebuilt = iter(self.rebuild(np.stack(filled)))
        return [None if clip is None else next(rebuilt) for clip in originals]

    def describe(self) -> dict[str, Any]:
        return dict(self.about)
