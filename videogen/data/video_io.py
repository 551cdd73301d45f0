"""Whole video files, in and out: results to look at, pictures to animate."""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from etils import epath
from jaxtyping import UInt8

from videogen.data.decode import PIXEL_BUDGET
from videogen.errors import UserError

Frames = UInt8[np.ndarray, "time height width 3"]
SMALLEST_SIDE = 128
"""Smaller clips are enlarged by a whole factor when written: encoders and eyes dislike 32-pixel videos."""


def write_video(path: epath.PathLike, frames: Frames, fps: float, scale: int | None = None) -> None:
    """Writes an H.264 mp4 (yuv420p); odd sides are padded by repeating the edge.

    Args:
      path: the file; its directory must exist.
      frames: the clip.
      fps: frames per second.
      scale: whole factor every pixel is repeated by; by default small clips grow to at least 128 pixels.
    """
    scale = scale or max(1, -(-SMALLEST_SIDE // min(frames.shape[1:3])))
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    rate = Fraction(float(fps)).limit_denominator(1001)
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    epath.Path(path).write_bytes(content.getvalue())


def read_video(path: epath.PathLike) -> tuple[Frames, float]:
    """Every frame of a video or picture file, upright, and its frame rate (1 where there is none).

    Raises:
      UserError: the file is missing, cannot be decoded, or is too large to be held in memory.
    """
    if not epath.Path(path).exists():
        raise UserError(f"{path} does not exist")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no video stream")
            fps = float(container.streams.video[0].average_rate or 1)
            frames, pixels = [], 0
            for frame in container.decode(video=0):
                pixels += frame.width * frame.height
                if pixels > PIXEL_BUDGET:
                    raise UserError(f"{path} has more than {PIXEL_BUDGET:,} pixels; use fewer or smaller frames")
                # Phones store what they film as the sensor saw it and write down how to turn it.
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be decoded: {error.strerror}") from error
    if not frames:
        raise UserError(f"{path} holds no frame")
    return np.stack(frames), fps


def side_by_side(videos: Sequence[Frames]) -> Frames:
    """Clips of one size next to each other, two white columns between them."""
    gap = np.full((*videos[0].shape[:2], 2, 3), 255, np.uint8)
    pieces = [piece for video in videos for piece in (gap, video)][1:]
    return np.concatenate(pieces, axis=2)
