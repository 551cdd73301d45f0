"""Pictures in folders as clips of one frame, their classes the names of the folders."""

from typing import Any

import numpy as np

from videogen.data.captions import printable
from videogen.data.clip import Clip
from videogen.data.decode import decode_clip
from videogen.data.folders import Choice, FolderSource
from videogen.data.media import PICTURES, PIXEL_BUDGET
from videogen.errors import UserError


class ImageFolderSource(FolderSource):
    """All png, jpg and webp files below one or several folders, in sorted order.

    They are read as ``video_folder`` reads pictures: upright by their EXIF orientation, transparency over white, files
    that cannot be read left out and named. The crop is random in 'train' and central in 'eval'. A picture's class is
    the name of the folder it lies in, and names that are all numbers are in the order of these; without such folders
    there are no labels. A ``captions.jsonl`` gives captions, as for videos.

    Args:
      clip: the size of the samples; it has one frame.
      seed: with the index, decides the crop of ``source[index]``.
      split: 'eval' has the pictures that ``holdout``, or the named splits, keep from 'train'.
      path: a folder, or several with commas between them.
      holdout: share of the pictures, by the hash of their names, that only 'eval' has; with 0 both splits have all.
      pixel_budget: pictures are skipped of which a decoder could hold more pixels (16 × width × height).
      uncaptioned: whether models of text may train on it although no picture has a caption.
      class_list: file below the path with all classes, whose order gives the labels; of ImageNet the WordNet ids, which
        are sorted whatever their order in the file.
      train_split: of 'train' the folder below the path, or the list of its files there; ``holdout`` is not used then.
      eval_split: the same of 'eval'.

    Raises:
      UserError: clips of several frames, a folder is missing or has no picture, or a list is malformed.
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
        uncaptioned: bool = False,
        class_list: str = "",
        train_split: str = "",
        eval_split: str = "",
    ):
        if clip.frames != 1:
            raise UserError(f"a picture is a clip of one frame, and data.clip.frames is {clip.frames}; set it to 1")
        choice = Choice(holdout, True, class_list, train_split, eval_split)
        of_folders = dict(path=path, extensions=PICTURES, kind="picture", choice=choice, uncaptioned=uncaptioned)
        super().__init__(clip=clip, seed=seed, split=split, **of_folders)
        self._pixel_budget = pixel_budget

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Decodes picture ``index``; in 'eval' it does not depend on ``rng``."""
        file, choice = self._files[index], self.choice(rng)
        decoded = decode_clip(file, printable(file), self.clip, choice, self._pixel_budget)
        return self.labelled(index, {"video": decoded.video, "fps": decoded.fps}, choice)
