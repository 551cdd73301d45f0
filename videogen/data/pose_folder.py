"""Sequences of poses in a folder: joints in the picture, and where they are in space."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from videogen.data.captions import printable
from videogen.data.clip import Clip
from videogen.data.skeletons import pose_fields
from videogen.data.source import SampleError, Source, held_out, place
from videogen.errors import UserError

ARRAYS = {"points": 2, "joints": 3}
"""Array of a file -> its coordinates."""

HUMAN = 17
"""Joints of Human3.6M, of which plans without data are made."""


class PoseFolderSource(Source):
    """All ``.npz`` files below a folder, each one sample: a window of its frames.

    A file has ``points`` ``[frames, joints, 2]``, joints in the picture in halves of its side from the middle, and
    ``joints`` ``[frames, joints, 3]``, where they are in the axes of the camera, such as in metres. The window is
    random in 'train' and central in 'eval'. Files that are shorter than a clip, or malformed, are skipped.

    Args:
      clip: so many consecutive frames; its ``fps`` is only passed on.
      seed: with the index, decides the window.
      split: 'eval' has the files that ``holdout`` keeps from 'train'.
      path: the folder.
      holdout: share of the files, by the hash of their names; of several files at least one is held out and one is
        not. With 0 both splits have all.

    Raises:
      UserError: there is no such folder, or no file in it, or the first has no such arrays.
    """

    field = "pose"

    def __init__(self, *, clip: Clip, seed: int, split: str, path: str, holdout: float = 0.1):
        super().__init__(clip=clip, seed=seed, split=split)
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"there is no folder {path}; set data.source.path")
        files = sorted(folder.rglob("*.npz"))
        if not files:
            raise UserError(f"{path} has no .npz file with points and joints")
        self.keeps_apart = bool(holdout) and len(files) > 1
        if self.keeps_apart:
            names = {file: str(file.relative_to(folder)) for file in files}
            count = min(max(sum(held_out(name, holdout) for name in names.values()), 1), len(files) - 1)
            away = set(sorted(files, key=lambda file: place(names[file]))[:count])
            files = [file for file in files if (file in away) == (split == "eval")]
        self._files = files
        try:
            self._joints = self._read(files[0])["points"].shape[1]
        except SampleError as error:
            needed = "every file needs points [frames, joints, 2] and joints [frames, joints, 3]"
            raise UserError(f"{error}; {needed}") from None

    def __len__(self) -> int:
        return len(self._files)

    @classmethod
    def described(cls, clip: Clip, settings: Any) -> dict[str, tuple[tuple[int, ...], type]]:
        """With the joints of Human3.6M."""
        return pose_fields(clip.frames, HUMAN)

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return pose_fields(self.clip.frames, self._joints)

    def name_of(self, index: int) -> str:
        return printable(self._files[index])

    def _read(self, file: Path) -> dict[str, np.ndarray]:
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                found = {name: np.asarray(arrays[name], np.float32) for name in ARRAYS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise SampleError(
                printable(file), f"it has no readable points and joints ({type(error).__name__})"
            ) from None
        sides = {array.shape[:2] for array in found.values()}
        if len(sides) > 1 or any(found[n].ndim != 3 or found[n].shape[2] != c for n, c in ARRAYS.items()):
            raise SampleError(printable(file), f"its arrays are {[list(a.shape) for a in found.values()]}")
        if not all(np.isfinite(array).all() for array in found.values()):
            raise SampleError(printable(file), "a coordinate is not finite")
        return found

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A window of file ``index``."""
        found, frames = self._read(self._files[index]), self.clip.frames
        spare, joints = len(found["points"]) - frames, found["points"].shape[1]
        if spare < 0 or joints != self._joints:
            had = f"{len(found['points'])} frames of {joints} joints"
            raise SampleError(self.name_of(index), f"it has {had}, and clips have {frames} of {self._joints}")
        start = self.clip.start_frame(spare, self.choice(rng))
        window = {name: np.ascontiguousarray(array[start : start + frames]) for name, array in found.items()}
        return {**window, "caption": "", "fps": self.clip.fps or 0.0}
