"""Clips of an evaluation as files: one npz for the report, mp4 files to look at."""

import numpy as np
from etils import epath

from videogen.data.video_io import side_by_side, write_video

CLIPS = "clips.npz"


def write_pictures(directory: epath.PathLike, pictures: dict[str, np.ndarray], fps: float) -> None:
    """Writes ``clips.npz`` with every array, and the clips as mp4: originals beside reconstructions, or samples."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(str(directory / CLIPS), **pictures)
    if "reconstructions" in pictures:
        pairs = zip(pictures["originals"], pictures["reconstructions"], strict=True)
        named = {f"reconstruction_{i}.mp4": side_by_side(pair) for i, pair in enumerate(pairs)}
    else:
        named = {f"sample_{i}.mp4": video for i, video in enumerate(pictures["videos"])}
    for name, video in named.items():
        write_video(directory / name, video, fps)
