"""What a training clip looks like, and how frames of any size become that."""

import dataclasses
import math
from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import Interpolation
from jaxtyping import UInt8

from videogen.errors import UserError


@dataclasses.dataclass(frozen=True)
class Clip:
    """The size every sample of a source has.

    Frames are resized, aspect kept, until they just cover ``height × width``; what hangs over is cropped.

    Attributes:
      frames: number of frames.
      height: rows in pixels.
      width: columns in pixels.
      fps: frames per second the clip is sampled at; ``None`` keeps every frame of the file.
    """

    frames: int
    height: int
    width: int
    fps: float | None = None

    def __post_init__(self):
        for side in ("frames", "height", "width"):
            if getattr(self, side) < 1:
                raise UserError(f"clip.{side} must be at least 1, got {getattr(self, side)}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"clip.fps must be positive, or None for the file's own rate, got {self.fps}")

    def cover(self, height: int, width: int) -> tuple[int, int]:
        """The size (height, width) a ``height × width`` frame is resized to before the crop."""
        scale = max(self.height / height, self.width / width)
        return max(self.height, round(height * scale)), max(self.width, round(width * scale))

    def fit(
        self, frames: UInt8[np.ndarray, "time h w 3"], rng: np.random.Generator | None
    ) -> UInt8[np.ndarray, "time height width 3"]:
        """Resizes and crops ``frames`` to this clip's size; the crop is random, without ``rng`` central.

        Raises:
          UserError: ``frames`` are no such array.
        """
        check_frames(frames)
        resized = resize(frames, *self.cover(*frames.shape[1:3]))
        cut = self.cutter(rng)
        return np.stack([cut(frame) for frame in resized])

    def cutter(
        self, rng: np.random.Generator | None
    ) -> Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "height width 3"]]:
        """Cuts ``height × width`` out of frames at least that large: at one place, or where sizes differ alike."""
        place: list[tuple[int, int]] = []

        def cut(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
            spare = frame.shape[0] - self.height, frame.shape[1] - self.width
            if not place:
                place.append(spare)
                place.append(tuple(s // 2 if rng is None else int(rng.integers(s + 1)) for s in spare))
            top, left = (
                at * now // before if before else now // 2 for now, before, at in zip(spare, *place, strict=True)
            )
            return np.ascontiguousarray(frame[top : top + self.height, left : left + self.width])

        return cut


def check_frames(frames: UInt8[np.ndarray, "time h w 3"]) -> None:
    """Refuses arrays that are no clip.

    Raises:
      UserError: not ``uint8 [time, height, width, 3]``, or empty.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise UserError(f"frames must be an array of uint8, got {getattr(frames, 'dtype', type(frames).__name__)}")
    if frames.ndim != 4 or frames.shape[-1] != 3:
        shape = list(frames.shape)
        raise UserError(f"frames must be RGB, [time, height, width, 3], got {shape}; convert grey and drop alpha")
    if not frames.size:
        raise UserError(f"there must be at least one frame of one pixel, got {list(frames.shape)}")


def resize(
    frames: UInt8[np.ndarray, "time h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "time height width 3"]:
    """Resizes every frame: area averaging to shrink (no aliasing), bicubic to enlarge."""
    if frames.shape[1:3] == (height, width):
        return frames
    out = np.empty((len(frames), height, width, 3), np.uint8)
    method = interpolation(frames.shape[1], height)
    for i, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        out[i] = picture.reformat(width=width, height=height, interpolation=method, threads=1).to_ndarray()
    return out


def interpolation(source: int, target: int) -> Interpolation:
    """The scaler for a side of ``source`` pixels that becomes ``target``."""
    return Interpolation.AREA if target < source else Interpolation.BICUBIC
