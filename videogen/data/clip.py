"""What a training clip looks like, and how frames of any size become that."""

import dataclasses
import math
from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import Interpolation
from jaxtyping import Float, Int, UInt8

from videogen.data.crops import CROPS, centre_crop
from videogen.errors import UserError, near_matches

WINDOWS = ("first", "centre", "random")


@dataclasses.dataclass(frozen=True)
class Clip:
    """The size every sample of a source has.

    Frames are resized, aspect kept, until they just cover ``height × width``; what hangs over is cropped. Without names
    for window and crop both are random in training and central elsewhere.

    Attributes:
      frames: number of frames.
      height: rows in pixels.
      width: columns in pixels.
      fps: frames per second the clip is sampled at; ``None`` keeps every frame of the file.
      window: which frames of a longer video: a name in ``WINDOWS``.
      crop: ``centre``, or for square pictures a name in ``crops.CROPS``, which resizes by its own rule.
    """

    frames: int
    height: int
    width: int
    fps: float | None = None
    window: str | None = None
    crop: str | None = None

    def __post_init__(self):
        for side in ("frames", "height", "width"):
            if getattr(self, side) < 1:
                raise UserError(f"clip.{side} must be at least 1, got {getattr(self, side)}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"clip.fps must be positive, or None for the file's own rate, got {self.fps}")
        for name, known in (("window", WINDOWS), ("crop", ("centre", *CROPS))):
            if (value := getattr(self, name)) not in (None, *known):
                raise UserError(f"unknown {name} {value!r} of clips{near_matches(value, known)}")
        if self.crop in CROPS and (self.frames > 1 or self.height != self.width):
            size = f"{self.frames} frames of {self.height}×{self.width}"
            raise UserError(f"the crop {self.crop!r} is one of square pictures, and clips have {size}")

    def start(self, low: float, high: float, rng: np.random.Generator | None) -> float:
        """Where the window of a video begins, between the first and the latest place."""
        if self.window == "first":
            return low
        return (low + high) / 2 if rng is None or self.window == "centre" else float(rng.uniform(low, high))

    def start_frame(self, spare: int, rng: np.random.Generator | None) -> int:
        """The same, counted in frames, where a video has so many more than the window."""
        if self.window == "first":
            return 0
        return spare // 2 if rng is None or self.window == "centre" else int(rng.integers(spare + 1))

    def moments(self, seconds: float, rate: float) -> Float[np.ndarray, "frames"] | None:
        """When frames that are spread over a whole video are on show, in seconds from its beginning, rising.

        With ``fps`` these are moments of that rate: where the video has more than ``frames`` of them, as many, evenly
        spread over its whole length and never its beginning alone. Of a video that has fewer, and without ``fps``, they
        are in the middles of ``frames`` of all its frames.

        Args:
          seconds: length of the video.
          rate: its frames per second.

        Returns:
          ``None`` where the video has too few frames.
        """
        if self.fps and self.fps < rate and (count := int(np.ceil(seconds * self.fps - 0.01))) >= self.frames:
            return spread(count, self.frames) / self.fps
        total = round(seconds * rate)
        return None if total < self.frames else (spread(total, self.frames) + 0.5) / rate

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
        if self.crop in CROPS:
            return np.stack([centre_crop(frame, self.height, self.crop) for frame in frames])
        resized = resize(frames, *self.cover(*frames.shape[1:3]))
        cut = self.cutter(rng)
        return np.stack([cut(frame) for frame in resized])

    def cutter(
        self, rng: np.random.Generator | None
    ) -> Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "height width 3"]]:
        """Cuts ``height × width`` out of frames at least that large: at one place, or where sizes differ alike."""
        rng, place = None if self.crop == "centre" else rng, []

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


def spread(total: int, count: int) -> Int[np.ndarray, "count"]:
    """Numbers of ``count`` frames of ``total``, evenly over all of them: the first, the last and between; one is the
    middle.

    300 frames and 8 give 0, 43, 85, 128, 171, 214, 256, 299.

    Raises:
      UserError: there are fewer frames than are asked for.
    """
    if not 1 <= count <= total:
        raise UserError(f"{count} different frames cannot be had of {total}")
    return np.array([total // 2]) if count == 1 else np.rint(np.linspace(0, total - 1, count)).astype(int)


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
