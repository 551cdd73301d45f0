"""Videos in folders, with captions and classes where a ``captions.jsonl``, a folder or a list gives them."""

import contextlib
import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int

from videogen.data.captions import printable
from videogen.data.clip import Clip
from videogen.data.decode import Decoded, decode_audio, decode_clip, frame_rate
from videogen.data.decode_spread import decode_spread
from videogen.data.folders import VIDEOS, Choice, FolderSource
from videogen.data.media import PICTURES, PIXEL_BUDGET
from videogen.data.side_points import point_fields, read_points, side_file
from videogen.data.source import SampleError
from videogen.errors import UserError

LOOKED_AT = 64
"""Videos that are looked at for points beside them."""


class VideoFolderSource(FolderSource):
    """All videos below one or several folders, in sorted order, each one sample: a window of its frames.

    The window is random in the 'train' split and central in 'eval'; so is the crop. Where clips have one frame, png,
    jpg and webp files are videos of one frame. Linked folders are followed, every folder is read once. A folder may
    hold ``captions.jsonl``, one ``{"file": …, "caption": …, "class": …}`` per line, the file named relative to it.
    Samples have labels (numbers of the sorted class names) when every video has a class.

    Where one of the first ``LOOKED_AT`` videos has points beside it (``NAME.pose.npz``, ``side_points``), all samples
    have them, as ``pose``, ``pose_mask``, ``hands`` and ``hands_mask``, crops are central, and a video whose points are
    missing or malformed is skipped. The first frame of such a video is at time 0.

    Args:
      clip: the size of the samples; without ``fps`` they are consecutive frames.
      seed: with the index, decides window and crop of ``source[index]``.
      split: 'eval' has the videos that ``holdout``, or the named splits, keep from 'train'.
      path: a folder, or several with commas between them.
      holdout: share of the videos, by the hash of their names, that only 'eval' has; of several videos at least one
        is held out and one is not. With 0, and of a single video, both splits have all.
      pixel_budget: videos are skipped of which a decoder could hold more pixels (16 × width × height of a frame).
      whole: frames are spread over the whole video (``Clip.moments``) instead of a window of it.
      times: samples have ``times``, when each of their frames is shown, in seconds from the first of the video.
      pictures: whether one-frame clips are read from pictures, too.
      uncaptioned: whether models of text may train on it although no video has a caption.
      audio: also read the sound of the window, mono; needs ``clip.fps``, skips videos without sound.
      audio_rate: sound samples per second.
      folder_classes: the class of a file is the name of the folder it lies in.
      class_list: file below the path with all classes, whose order gives the labels (UCF-101's ``classInd.txt``,
        WordNet ids, or one name a line); the class of a file is that of its folder.
      train_split: of 'train' the folder below the path, or the list of its files there; ``holdout`` is not used then.
      eval_split: the same of 'eval'.

    Raises:
      UserError: a folder is missing or has no video, a line of ``captions.jsonl`` is malformed, or a list is.
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
        whole: bool = False,
        times: bool = False,
        pictures: bool = True,
        uncaptioned: bool = False,
        audio: bool = False,
        audio_rate: int = 16_000,
        folder_classes: bool = False,
        class_list: str = "",
        train_split: str = "",
        eval_split: str = "",
    ):
        if audio and clip.fps is None:
            raise UserError("audio needs clip.fps, so that all samples have equally much sound")
        if audio and whole:
            raise UserError("frames spread over a whole video have no sound of equal length; leave out audio or whole")
        extensions = VIDEOS + (PICTURES if pictures and clip.frames == 1 else ())
        choice = Choice(holdout, folder_classes, class_list, train_split, eval_split)
        of_folders = dict(path=path, extensions=extensions, kind="video", choice=choice, uncaptioned=uncaptioned)
        super().__init__(clip=clip, seed=seed, split=split, **of_folders)
        self._pixel_budget, self._whole, self._times = pixel_budget, whole, times
        self._audio_rate = audio_rate if audio else None
        self._points = any(side_file(file).exists() for file in self._files[:LOOKED_AT])
        self._fitted = dataclasses.replace(clip, crop="centre") if self._points else clip

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        times = {"times": ((self.clip.frames,), np.float32)} if self._times else {}
        return super().fields | times | (point_fields(self.clip.frames) if self._points else {})

    @functools.cached_property
    def fps(self) -> float | None:
        """The clip's rate, or without one that of the first video that can be opened."""
        if self.clip.fps is None:
            for file in self._files:
                with contextlib.suppress(SampleError):
                    return frame_rate(file, printable(file))
        return self.clip.fps

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Decodes frames of video ``index``; in 'eval' they do not depend on ``rng``."""
        file = self._files[index]
        choice = self.choice(rng)
        name = printable(file)
        decode = decode_spread if self._whole else decode_clip
        decoded = decode(file, name, self._fitted, choice, self._pixel_budget)
        sample = self.labelled(index, {"video": decoded.video, "fps": decoded.fps}, choice)
        if self._times:
            sample["times"] = decoded.times
        if self._audio_rate:
            seconds = self.clip.frames / self.clip.fps
            sample["audio"] = decode_audio(file, name, decoded.start, seconds, self._audio_rate)
        if self._points:
            sample |= read_points(file, name, self._numbers(file, name, decoded), self._fitted)
        return sample

    def _numbers(self, file: Any, name: str, decoded: Decoded) -> Int[np.ndarray, "frames"]:
        """Which frames of a video of constant rate a clip has: those on show at its moments."""
        if self._whole:
            return np.rint(decoded.times * frame_rate(file, name)).astype(int)
        moments = decoded.start + np.arange(self.clip.frames) / decoded.fps
        rate = frame_rate(file, name) if self.clip.fps else decoded.fps
        return np.floor(moments * rate + 0.1).astype(int)
