"""Videos in folders, with captions and classes where a ``captions.jsonl`` gives them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from videogen.data.clip import Clip
from videogen.data.decode import PIXEL_BUDGET, decode_audio, decode_clip
from videogen.data.source import Source, held_out
from videogen.errors import UserError

EXTENSIONS = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")
CAPTIONS = "captions.jsonl"


class VideoFolderSource(Source):
    """All videos below one or several folders, in sorted order, each one sample: a window of its frames.

    The window is random in the 'train' split and central in 'eval'; so is the crop. A folder may hold
    ``captions.jsonl``, one ``{"file": …, "caption": …, "class": …}`` per line, the file named relative to it.
    Samples have labels (numbers of the sorted class names) when every video has a class.

    Args:
      clip: the size of the samples; without ``fps`` they are consecutive frames.
      seed: with the index, decides window and crop of ``source[index]``.
      split: both splits hold all videos unless ``holdout`` keeps some for 'eval'.
      path: a folder, or several with commas between them.
      holdout: share of the videos, by the hash of their names, that only 'eval' has.
      pixel_budget: videos whose window has more pixels (width × height × frames) are skipped.
      audio: also read the sound of the window, mono; needs ``clip.fps``, skips videos without sound.
      audio_rate: sound samples per second.

    Raises:
      UserError: a folder is missing or has no video, or a line of ``captions.jsonl`` is malformed.
    """

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        path: str,
        holdout: float = 0.0,
        pixel_budget: int = PIXEL_BUDGET,
        audio: bool = False,
        audio_rate: int = 16_000,
    ):
        super().__init__(clip=clip, seed=seed, split=split)
        if audio and clip.fps is None:
            raise UserError("audio needs clip.fps, so that all samples have equally much sound")
        if not 0 <= holdout < 1:
            raise UserError(f"holdout is a share of the videos in [0, 1), got {holdout}")
        self._pixel_budget = pixel_budget
        self._audio_rate = audio_rate if audio else None
        self._files: list[Path] = []
        self._entries: list[dict[str, str]] = []
        for folder in map(Path, path.split(",")):
            captions = _captions(folder)
            for file in _videos(folder):
                name = file.relative_to(folder).as_posix()
                if not holdout or held_out(name, holdout) == (split == "eval"):
                    self._files.append(file)
                    self._entries.append(captions.get(name, {}))
            # Classes are those of the whole folder: a label means the same in both splits.
            self._add_classes(captions)
        if not all("class" in entry for entry in self._entries):
            self.classes = ()

    def _add_classes(self, captions: dict[str, dict[str, str]]) -> None:
        names = {entry["class"] for entry in captions.values() if "class" in entry}
        self.classes = tuple(sorted({*self.classes, *names}))

    def __len__(self) -> int:
        return len(self._files)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Decodes one window of video ``index``; in 'eval' it does not depend on ``rng``."""
        file, entry = self._files[index], self._entries[index]
        choice = rng if self.split == "train" else None
        decoded = decode_clip(file, str(file), self.clip, choice, self._pixel_budget)
        sample = {"video": decoded.video, "caption": self.caption(index), "fps": decoded.fps}
        if self.classes:
            sample["label"] = self.classes.index(entry["class"])
        if self._audio_rate:
            seconds = self.clip.frames / self.clip.fps
            sample["audio"] = decode_audio(file, str(file), decoded.start, seconds, self._audio_rate)
        return sample

    def caption(self, index: int) -> str:
        return self._entries[index].get("caption", "")


def _videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; set data.source.path to a folder of videos")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
    if not files:
        raise UserError(f"no video in {folder}; known file types are {', '.join(EXTENSIONS)}")
    return files


def _captions(folder: Path) -> dict[str, dict[str, str]]:
    """File name -> its line of ``captions.jsonl``; empty without such a file."""
    file = folder / CAPTIONS
    if not file.exists():
        return {}
    entries = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            entries[entry["file"]] = {key: str(entry[key]) for key in ("caption", "class") if key in entry}
        except (ValueError, TypeError, KeyError):
            wish = '{"file": …, "caption": …, "class": …}'
            raise UserError(f"{file}, line {number} is no JSON object like {wish}") from None
    return entries
