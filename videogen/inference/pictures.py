"""Clips as files: those of an evaluation, and single ones as mp4, gif, png or npz."""

import io
from collections.abc import Callable

import numpy as np
from etils import epath
from PIL import Image

from videogen.data.clip import check_frames
from videogen.data.video_io import Frames, side_by_side, write_video

CLIPS = "clips.npz"
COLUMNS = ("originals", "given", "deterministic", "reconstructions", "videos")
"""Arrays of clips, in the order in which those of one place stand beside each other."""


def write_pictures(directory: epath.PathLike, pictures: dict[str, np.ndarray], fps: float) -> None:
    """Writes ``clips.npz`` with every array, and the clips as mp4: side by side where there are several of each."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(str(directory / CLIPS), **pictures)
    columns = [pictures[name] for name in COLUMNS if name in pictures]
    kind = "reconstruction" if "reconstructions" in pictures else "sample"
    for i, row in enumerate(zip(*columns, strict=True)):
        write_video(directory / f"{kind}_{i}.mp4", side_by_side(row), fps)


def write_gif(path: epath.PathLike, frames: Frames, fps: float, scale: int = 1) -> None:
    """Writes an animated gif that repeats, of 256 colours chosen for each frame; rates beyond 50 play at 50."""
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in _enlarged(frames, scale)]
    content = io.BytesIO()
    # Gif counts hundredths of a second, and players slow down what is shown for less than two.
    times = np.maximum(np.diff(np.round(np.arange(len(frames) + 1) * 100 / fps)), 2) * 10
    pictures[0].save(
        content, "gif", save_all=True, append_images=pictures[1:], duration=times.astype(int).tolist(), loop=0
    )
    epath.Path(path).write_bytes(content.getvalue())


def write_png(path: epath.PathLike, frames: Frames, fps: float, scale: int = 1) -> None:
    """Writes the frames of a clip beside each other, from left to right."""
    content = io.BytesIO()
    Image.fromarray(np.concatenate(list(_enlarged(frames, scale)), axis=1)).save(content, "png")
    epath.Path(path).write_bytes(content.getvalue())


def write_arrays(path: epath.PathLike, videos: np.ndarray, fps: float) -> None:
    """Writes ``videos`` uint8 [videos, time, height, width, 3] and ``fps``, to be read by ``numpy.load``."""
    content = io.BytesIO()
    np.savez_compressed(content, videos=videos, fps=fps)
    epath.Path(path).write_bytes(content.getvalue())


def _enlarged(frames: Frames, scale: int) -> Frames:
    check_frames(frames)
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


WRITERS: dict[str, Callable[[epath.PathLike, Frames, float, int], None]] = {
    ".mp4": write_video,
    ".gif": write_gif,
    ".png": write_png,
    ".npz": lambda path, frames, fps, scale: write_arrays(path, frames[None], fps),
}
"""Ending of a file -> what writes one clip there: (path, frames, frames per second, whole factor of enlargement)."""
