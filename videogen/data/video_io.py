"""Whole video files, in and out: results to look at, pictures to animate."""

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from etils import epath
from jaxtyping import UInt8

from videogen.data.clip import Clip, check_frames
from videogen.data.decode import Decoded, decode_beginning, decode_fitted, decode_whole
from videogen.data.decode_spread import decode_spread
from videogen.data.decode_stream import decode_stream
from videogen.data.media import PIXEL_BUDGET
from videogen.data.source import SampleError
from videogen.errors import UserError

Frames = UInt8[np.ndarray, "time height width 3"]
SMALLEST_SIDE = 128
"""Smaller clips are enlarged by a whole factor when written: encoders and eyes dislike 32-pixel videos."""


def write_video(
    path: epath.PathLike, frames: Frames, fps: float, scale: int | None = None, crf: int = 12, encoder: str = "libx264"
) -> None:
    """Writes an mp4: yuv420p, BT.709, tagged so; odd sides are padded by repeating the edge.

    Args:
      path: the file; its directory must exist.
      frames: the clip.
      fps: frames per second.
      scale: whole factor every pixel is repeated by; by default small clips grow to at least 128 pixels.
      crf: constant rate factor, 0 (best) to 51.
      encoder: of FFmpeg: ``libx264`` or ``libx265`` (HEVC).

    Raises:
      UserError: ``frames`` are no RGB clip, or no positive rate.
    """
    check_frames(frames)
    if not 0 < fps < math.inf:
        raise UserError(f"frames per second must be a positive number, got {fps}")
    scale = scale or max(1, -(-SMALLEST_SIDE // min(frames.shape[1:3])))
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    rate = Fraction(float(fps)).limit_denominator(1001)
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream(encoder, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), **({"x265-params": "log-level=none"} if encoder == "libx265" else {})}
        # Untagged, players take small videos for BT.601 and large ones for BT.709, and shift the colours of one kind.
        codec = stream.codec_context
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
            )
            picture.color_primaries, picture.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    epath.Path(path).write_bytes(content.getvalue())


def read_video(path: epath.PathLike) -> tuple[Frames, float]:
    """Every frame of a video or picture file, upright with square pixels, and its frame rate (1 of a picture).

    Raises:
      UserError: the file is missing, cannot be decoded, or is too large to be held in memory.
    """
    with _one_line(path):
        return decode_whole(os.fspath(path), str(path), PIXEL_BUDGET)


def read_beginning(path: epath.PathLike, clip: Clip, needed: int | None = None) -> Frames:
    """The first frames of a video or picture file as a clip, chosen by time; no more is read than that.

    Args:
      path: the file.
      clip: how many frames, how large, and at what rate.
      needed: frames that must be there; those beyond may be missing, and repeat the last. By default all.

    Raises:
      UserError: the file is missing, too short or cannot be decoded.
    """
    with _one_line(path):
        return decode_beginning(os.fspath(path), str(path), clip, needed).video


def read_spread(path: epath.PathLike, clip: Clip) -> Decoded:
    """Frames spread over a whole video file, at most at the clip's rate, each with its own time (``decode_spread``).

    Raises:
      UserError: the file is missing, too short or cannot be decoded.
    """
    with _one_line(path):
        return decode_spread(os.fspath(path), str(path), clip, None)


def read_stream(path: epath.PathLike, clip: Clip) -> Iterator[tuple[UInt8[np.ndarray, "height width 3"], float]]:
    """The frames of a video file one after another, at the size and rate of a clip, with the second of each
    (``decode_stream``).

    Raises:
      UserError: the file is missing or cannot be decoded, or not to its end: what is good comes before.
    """
    with _one_line(path):
        yield from decode_stream(os.fspath(path), str(path), clip)


def read_fitted(path: epath.PathLike, clip: Clip) -> tuple[Frames, float]:
    """All frames of a video or picture file at the size and rate of a clip, and that rate.

    Raises:
      UserError: the file is missing, cannot be decoded, or is too long to be held in memory.
    """
    with _one_line(path):
        decoded = decode_fitted(os.fspath(path), str(path), clip)
        return decoded.video, decoded.fps


@contextlib.contextmanager
def _one_line(path: epath.PathLike) -> Iterator[None]:
    if not epath.Path(path).exists():
        raise UserError(f"{path} does not exist")
    try:
        yield
    except SampleError as error:
        raise UserError(f"{path} cannot be used: {error.reason}") from error


def side_by_side(videos: Sequence[Frames]) -> Frames:
    """Clips of one size next to each other, two white columns between them.

    Raises:
      UserError: no clips, or of several sizes.
    """
    for video in videos:
        check_frames(video)
    if len({video.shape for video in videos}) != 1:
        raise UserError(f"clips beside each other must have one size, got {[list(video.shape) for video in videos]}")
    gap = np.full((*videos[0].shape[:2], 2, 3), 255, np.uint8)
    pieces = [piece for video in videos for piece in (gap, video)][1:]
    return np.concatenate(pieces, axis=2)
