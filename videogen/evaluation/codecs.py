"""JPEG, WebP, H.264, HEVC and down-sampling at any strength, and tokenizers as codecs."""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from av.error import FFmpegError
from flax import nnx
from PIL import Image

from videogen.data.video_io import Frames, read_video, write_video
from videogen.errors import UserError, near_matches
from videogen.shapes import VideoShape
from videogen.tasks import reconstructor

Codec = Callable[[Frames], Frames]
"""Frames -> what is left of them, in the same shape."""


class Coded(NamedTuple):
    """A clip after a codec.

    Attributes:
      frames: what is left of it, in the same shape.
      size: bytes of its files, headers included; ``None`` where there is no file.
    """

    frames: Frames
    size: int | None = None


def identity(frames: Frames, strength: int) -> Coded:
    """The frames themselves."""
    return Coded(frames)


def _pictures(frames: Frames, kind: str, quality: int) -> Coded:
    """Every frame through a file of its own."""
    size, found = 0, []
    for frame in frames:
        content = io.BytesIO()
        Image.fromarray(frame).save(content, kind, quality=quality)
        size += len(content.getvalue())
        found.append(np.asarray(Image.open(content).convert("RGB")))
    return Coded(np.stack(found), size)


def jpeg(frames: Frames, quality: int) -> Coded:
    """Every frame through a JPEG file of this quality, 1 to 95."""
    return _pictures(frames, "jpeg", quality)


def webp(frames: Frames, quality: int) -> Coded:
    """Every frame through a lossy WebP file of this quality, 1 to 100."""
    return _pictures(frames, "webp", quality)


def _video(frames: Frames, encoder: str, crf: int) -> Coded:
    """The clip through an mp4 file; colours have half the sides."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        try:
            write_video(path, frames, 8.0, scale=1, crf=crf, encoder=encoder)
            decoded, _ = read_video(path)
        except FFmpegError as error:
            raise UserError(f"this FFmpeg cannot write and read a clip by {encoder} at {crf}: {error}") from error
        return Coded(decoded[:, : frames.shape[1], : frames.shape[2]], path.stat().st_size)


def h264(frames: Frames, crf: int) -> Coded:
    """The clip through an H.264 file of this constant rate factor, 0 (best) to 51; colours have half the sides."""
    return _video(frames, "libx264", crf)


def hevc(frames: Frames, crf: int) -> Coded:
    """The same of HEVC, which not every build of FFmpeg can write."""
    return _video(frames, "libx265", crf)


def downsample(frames: Frames, factor: int) -> Coded:
    """Every frame with its sides divided by this factor, and back: averages, then bilinear."""

    def one(frame: np.ndarray) -> np.ndarray:
        picture, (height, width) = Image.fromarray(frame), frame.shape[:2]
        small = picture.resize((max(width // factor, 1), max(height // factor, 1)), Image.Resampling.BOX)
        return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))

    return Coded(np.stack([one(frame) for frame in frames]))


CODECS: dict[str, tuple[Callable[[Frames, int], Coded], int, int]] = {
    "identity": (identity, 0, 0),
    "jpeg": (jpeg, 1, 95),
    "webp": (webp, 1, 100),
    "h264": (h264, 0, 51),
    "hevc": (hevc, 0, 51),
    "downsample": (downsample, 1, 64),
}
"""Name -> the codec, and the smallest and largest strength."""


def build(text: str) -> Codec:
    """The codec of ``NAME:STRENGTH``, such as ``jpeg:10``, ``h264:40``, ``downsample:4`` or ``identity``.

    Raises:
      UserError: an unknown name, or no such strength.
    """
    name, _, strength = text.partition(":")
    if name not in CODECS:
        raise UserError(f"unknown codec {name!r}{near_matches(name, CODECS)}")
    run, low, high = CODECS[name]
    if (
        not (strength or str(low)).isdecimal()
        or not low <= int(strength or low) <= high
        or (low < high and not strength)
    ):
        raise UserError(
            f"--codec={text}: write {name}:N with N from {low} to {high}, such as {name}:{(low + high) // 2}"
        )
    return lambda frames: run(frames, int(strength or low)).frames


FILLED = 64
"""Frames that are added at most to make a number that a tokenizer takes."""


def of_tokenizer(model: nnx.Module, window: int) -> Codec:
    """A tokenizer as a codec.

    Longer videos are cut into windows. Where a tokenizer does not take as many frames as there are (a picture has one),
    the last one is repeated up to the next number that it takes, and what is reconstructed of these is left out.

    Args:
      model: the tokenizer.
      window: frames that are coded together at most.
    """
    run = reconstructor(model)

    def codec(frames: Frames) -> Frames:
        parts = []
        for start in range(0, len(frames), window):
            part = frames[start : start + window]
            rest = _frames(model, VideoShape(*part.shape[:3])) - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], rest, axis=0)])
            parts.append(run(filled[None])[0, : len(part)])
        return np.concatenate(parts)

    return codec


def _frames(model: nnx.Module, shape: VideoShape) -> int:
    """The fewest frames, from those of the shape on, of which the tokenizer takes a clip of these sides."""
    refused = None
    for frames in range(shape.frames, shape.frames + FILLED):
        try:
            model.layout(VideoShape(frames, shape.height, shape.width))
            return frames
        except UserError as error:
            refused = refused or error
    raise refused
