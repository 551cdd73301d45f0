"""Clips of an evaluation as files: one npz for the report, mp4 files to look at."""

import numpy as np
from etils import epath

from videogen.data.video_io import side_by_side, write_video

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
