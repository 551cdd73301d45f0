"""Videos in folders, with captions and classes where a ``captions.jsonl`` gives them."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from videogen.data.captions import CAPTIONS, printable, read_captions
from videogen.data.clip import Clip
from videogen.data.decode import decode_audio, decode_clip, frame_rate
from videogen.data.media import PIXEL_BUDGET
from videogen.data.source import SampleError, Source, held_out, place
from videogen.errors import UserError

EXTENSIONS = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")
PICTURES = (".jpeg", ".jpg", ".png", ".webp")


class VideoFolderSource(Source):
    """All videos below one or several folders, in sorted order, each one sample: a window of its frames.

    The window is random in the 'train' split and central in 'eval'; so is the crop. Where clips have one frame, png,
    jpg and webp files are videos of one frame. Linked folders are followed, every folder is read once. A folder may
    hold ``captions.jsonl``, one ``{"file": …, "caption": …, "class": …}`` per line, the file named relative to it.
    Samples have labels (numbers of the sorted class names) when every video has a class.

    Args:
      clip: the size of the samples; without ``fps`` they are consecutive frames.
      seed: with the index, decides window and crop of ``source[index]``.
      split: 'eval' has the videos that ``holdout`` keeps from 'train'.
      path: a folder, or several with commas between them.
      holdout: share of the videos, by the hash of their names, that only 'eval' has; of several videos at least one
        is held out and one is not. With 0, and of a single video, both splits have all.
      pixel_budget: videos are skipped of which a decoder could hold more pixels (16 × width × height of a frame).
      pictures: whether one-frame clips are read from pictures, too.
      uncaptioned: whether models of text may train on it although no video has a caption.
      audio: also read the sound of the window, mono; needs ``clip.fps``, skips videos without sound.
      audio_rate: sound samples per second.

    Raises:
      UserError: a folder is missing or has no video, or a line of ``captions.jsonl`` is malformed.

    Attributes:
      captioned: number of samples that have a caption.
    """

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        path: str,
        holdout: float = 0.1,
        pixel_budget: int = PIXEL_BUDGET,
        pictures: bool = True,
        uncaptioned: bool = False,
        audio: bool = False,
        audio_rate: int = 16_000,
    ):
        super().__init__(clip=clip, seed=seed, split=split)
        if audio and clip.fps is None:
            raise UserError("audio needs clip.fps, so that all samples have equally much sound")
        if not 0 <= holdout < 1:
            raise UserError(f"holdout is a share of the videos in [0, 1), got {holdout}")
        self.uncaptioned = uncaptioned
        self._pixel_budget = pixel_budget
        self._audio_rate = audio_rate if audio else None
        self._files: list[Path] = []
        self._entries: list[dict[str, str]] = []
        found: list[tuple[Path, str, dict[str, str]]] = []
        extensions = EXTENSIONS + (PICTURES if pictures and clip.frames == 1 else ())
        for folder in map(Path, path.split(",")):
            files = _videos(folder, extensions)
            names = [file.relative_to(folder).as_posix() for file in files]
            captions, unknown = read_captions(folder, names)
            _report(folder, len(files), captions, unknown)
            found += [(file, name, captions.get(name, {})) for file, name in zip(files, names, strict=True)]
            # Classes are those of the whole folder: a label means the same in both splits.
            self._add_classes(captions)
        kept = _held_out([name for _, name, _ in found], holdout)
        self.keeps_apart = any(kept)
        for (file, _, entry), apart in zip(found, kept, strict=True):
            if apart == (split == "eval") or not self.keeps_apart:
                self._files.append(file)
                self._entries.append(entry)
        if not all("class" in entry for entry in self._entries):
            self.classes = ()
        self.captioned = sum(bool(entry.get("caption")) for entry in self._entries)

    def _add_classes(self, captions: dict[str, dict[str, str]]) -> None:
        names = {entry["class"] for entry in captions.values() if "class" in entry}
        self.classes = tuple(sorted({*self.classes, *names}))

    def __len__(self) -> int:
        return len(self._files)

    def contents(self) -> str:
        """The hash of the names and sizes of all files, in order."""
        entries = "\n".join(f"{file} {file.stat().st_size}" for file in self._files)
        return hashlib.sha256(entries.encode(errors="surrogateescape")).hexdigest()

    @functools.cached_property
    def fps(self) -> float | None:
        """The clip's rate, or without one that of the first video that can be opened."""
        if self.clip.fps is None:
            for file in self._files:
                with contextlib.suppress(SampleError):
                    return frame_rate(file, printable(file))
        return self.clip.fps

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Decodes one window of video ``index``; in 'eval' it does not depend on ``rng``."""
        file, entry = self._files[index], self._entries[index]
        choice = self.choice(rng)
        name = printable(file)
        decoded = decode_clip(file, name, self.clip, choice, self._pixel_budget)
        sample = {"video": decoded.video, "caption": self.caption(index), "fps": decoded.fps}
        if self.classes:
            sample["label"] = self.classes.index(entry["class"])
        if self._audio_rate:
            seconds = self.clip.frames / self.clip.fps
            sample["audio"] = decode_audio(file, name, decoded.start, seconds, self._audio_rate)
        return sample

    def caption(self, index: int) -> str:
        return self._entries[index].get("caption", "")

    def label(self, index: int) -> int:
        return self.classes.index(self._entries[index]["class"])


def _held_out(names: list[str], share: float) -> list[bool]:
    """Which of the names are held out: those in the share, but of two or more at least one, and never all."""
    if not share or len(names) < 2:
        return [False] * len(names)
    order = sorted(range(len(names)), key=lambda i: (place(names[i]), i))
    count = min(max(sum(held_out(name, share) for name in names), 1), len(names) - 1)
    chosen = set(order[:count])
    return [i in chosen for i in range(len(names))]


def _videos(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; set data.source.path to a folder of videos")
    known = {*extensions, *PICTURES}
    found = sorted(file for file in _walk(folder) if file.suffix.lower() in known and file.is_file())
    files = [file for file in found if file.suffix.lower() in extensions]
    if not files:
        but = "; pictures are read where data.clip.frames is 1" if found else ""
        raise UserError(f"no video in {folder}; known file types are {', '.join(extensions)}{but}")
    return files


def _walk(top: Path) -> Iterator[Path]:
    """All files below a folder. Links to folders are followed last, and to those alone that were not seen yet."""

    def warn(error: OSError) -> None:
        logging.warning("cannot read the folder %s: %s", printable(error.filename), error.strerror)

    seen: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        links = []
        for start in sorted(waiting):
            for folder, below, files in os.walk(start, onerror=warn):
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    below.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                links += [Path(folder, name) for name in below if os.path.islink(os.path.join(folder, name))]
                yield from (Path(folder, name) for name in files)
        waiting = links


def _report(folder: Path, count: int, captions: dict[str, dict[str, str]], unknown: list[str]) -> None:
    """One line about the captions of a folder, however often it is opened."""
    captioned = sum(bool(entry.get("caption")) for entry in captions.values())
    line = f"{printable(folder)}: {captioned} of {count} videos have captions"
    if unknown:
        shown = ", ".join(ascii(name) for name in unknown[:3]) + (", …" if len(unknown) > 3 else "")
        line += f"; {len(unknown)} lines of {CAPTIONS} match no video: {shown}"
    if line not in _reported:
        _reported.add(line)
        (logging.warning if unknown else logging.info)("%s", line)


_reported: set[str] = set()
