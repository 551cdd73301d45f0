"""Pictures and videos in which words and faces are annotated, and how they come to a tokenizer's size and back."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from videogen.data.video_io import Frames
from videogen.errors import UserError

Picture = UInt8[np.ndarray, "height width 3"]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels; the last two are just outside."""

MULTIPLE = 32
"""The longer side of a video is padded to a multiple of this many pixels."""


@dataclasses.dataclass(frozen=True)
class Word:
    """A word in a picture.

    Attributes:
      box: where it is.
      text: what it says.
      ratio: its size relative to the picture.
      instance: its name among the words of its sample; the frames of a video share it.
    """

    box: Box
    text: str
    ratio: float
    instance: str = ""

    def scaled(self, x: float, y: float) -> Self:
        """The word in a picture whose width and height are so many times as large."""
        left, top, right, bottom = self.box
        return dataclasses.replace(self, box=(left * x, top * y, right * x, bottom * y))


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a picture.

    Attributes:
      landmarks: x and y of the left and right eye, the nose, the left and right corner of the mouth, in pixels
        (left as seen).
      ratio: its size relative to the picture.
      instance: its name among the faces of its sample; the frames of a video share it.
    """

    landmarks: Float[np.ndarray, "5 2"]
    ratio: float
    instance: str = ""

    def scaled(self, x: float, y: float) -> Self:
        """The face in a picture whose width and height are so many times as large."""
        return dataclasses.replace(self, landmarks=np.asarray(self.landmarks, np.float64) * (x, y))


@dataclasses.dataclass(frozen=True)
class Sample:
    """An annotated picture, which is a video of one frame, or a video.

    Attributes:
      name: unique in its data set.
      dataset: where it comes from.
      frames: the pixels.
      words, faces: those of every frame.
    """

    name: str
    dataset: str
    frames: Frames
    words: Sequence[Sequence[Word]]
    faces: Sequence[Sequence[Face]]

    @property
    def kind(self) -> str:
        """``pictures`` or ``videos``."""
        return "pictures" if len(self.frames) == 1 else "videos"


def crop(picture: Picture, box: Box) -> Picture | None:
    """The pixels of a box, whole ones, as far as the box lies in the picture; ``None`` where nothing is left."""
    height, width = picture.shape[:2]
    left, top = (max(math.floor(value), 0) for value in box[:2])
    right, bottom = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    inside = box[0] < box[2] and box[1] < box[3] and left < right and top < bottom
    return picture[top:bottom, left:right] if inside else None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Frames at the size of a setting, and what is needed to bring a reconstruction back to the size they had.

    Attributes:
      frames: ``[time, h, w, 3]``, black around the content.
      original: height and width before.
      content: top, left, height and width of the content.
      method: the filter that resized them.
    """

    frames: Frames
    original: tuple[int, int]
    content: tuple[int, int, int, int]
    method: Image.Resampling

    def restored(self, frames: Frames) -> Frames:
        """A reconstruction without the border, at the size of the original.

        Raises:
          UserError: it has not the shape of the frames.
        """
        if frames.shape != self.frames.shape:
            raise UserError(f"a reconstruction must have the shape {self.frames.shape}, got {frames.shape}")
        top, left, height, width = self.content
        return _resized(frames[:, top : top + height, left : left + width], self.original, self.method)


def fitted(frames: Frames, setting: int) -> Fitted:
    """Frames at the size of a setting, by the rule of the published scripts for reconstruction.

    A picture is resized (Lanczos) so that its longer side has ``setting`` pixels, and put in the middle of a black
    square. A video is resized (bilinear) so that its shorter side has as many, and its longer side padded with black to
    a multiple of 32. What has the size already is left as it is.
    """
    height, width = frames.shape[1:3]
    if len(frames) == 1:
        scale, method = min(setting / width, setting / height), Image.Resampling.LANCZOS
        new = (min(math.ceil(height * scale), setting), min(math.ceil(width * scale), setting))
        whole = (setting, setting)
    else:
        scale, method = setting / min(height, width), Image.Resampling.BILINEAR
        new = (round(height * scale), round(width * scale))
        whole = tuple(n if n == setting else -(-n // MULTIPLE) * MULTIPLE for n in new)
    top, left = ((a - b) // 2 for a, b in zip(whole, new, strict=True))
    canvas = np.zeros((len(frames), *whole, 3), np.uint8)
    canvas[:, top : top + new[0], left : left + new[1]] = _resized(frames, new, method)
    return Fitted(canvas, (height, width), (top, left, *new), method)


def _resized(frames: Frames, sides: tuple[int, int], method: Image.Resampling) -> Frames:
    if frames.shape[1:3] == tuple(sides):
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize(sides[::-1], method)) for frame in frames])
