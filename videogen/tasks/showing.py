"""Pictures of what a generator draws, for the log of a training."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from videogen.conditioning import TASKS
from videogen.data.token_files import PREFIX
from videogen.tasks.base import Batch, Modules, Picture, to_pixels
from videogen.tasks.generation import VideoGenerator

SHOWN = 4
"""Clips of a picture."""


def samples(task: Any, modules: Modules, batch: Batch, seed: int) -> Picture:
    """One clip for each of the first clips, of its caption, label and given frames, beside that clip."""
    columns, drawn = draw_like(task, modules, VideoGenerator(task, modules), batch, seed)
    labels = ("original", "sample")[1 - len(columns) :]
    return Picture("samples", list(zip(*columns, drawn, strict=True)), [""] * len(drawn), labels)


def draw_like(
    task: Any, modules: Modules, generator: VideoGenerator, batch: Batch, seed: int
) -> tuple[list[UInt8[np.ndarray, "batch time height width 3"]], UInt8[np.ndarray, "batch time height width 3"]]:
    """The first clips of a batch, where they are known, and clips that are drawn of their captions, labels and given
    frames."""
    small = {key: value[:SHOWN] for key, value in batch.items() if key in ("text_ids", "text_mask", "label")}
    columns, first = _originals(task, modules, batch), None
    if task.given_frames:
        first = columns[0][:, : task.given_frames]
    if "video" in batch:
        # A decoder that is told a picture of whom it shows gets the first frame.
        small |= {name: np.asarray(batch["video"])[:SHOWN, 0] for name in task.tokenizer.needs}
    count = len(next(v for k, v in batch.items() if k == "video" or k.startswith(PREFIX))[:SHOWN])
    frames = task.config.data.clip.frames
    return columns, generator.generate(small, frames, seed, count=count, first_frames=first)


def completions(task: Any, modules: Modules, batch: Batch, seed: int) -> Picture:
    """For each task that is trained a clip, what is given of it, and how that was completed."""
    names = [name for name, share in zip(TASKS, task.tasks, strict=True) if share]
    some = np.arange(len(names)) % len(batch["video"])
    story = {key: np.asarray(batch[key])[some] for key in ("text_ids", "text_mask", "label") if key in batch}
    videos = np.asarray(batch["video"])[some]
    drawn, filled = VideoGenerator(task, modules).complete(names, videos, seed, story)
    rows, labels = list(zip(videos, filled, drawn, strict=True)), ("original", "given", "completed")
    return Picture("tasks", rows, names, labels)


def _originals(task: Any, modules: Modules, batch: Batch) -> list[UInt8[np.ndarray, "batch time height width 3"]]:
    """The first clips of a batch, or of a token cache what their codes stand for where frames of them are given."""
    if "video" in batch:
        return [np.asarray(batch["video"])[:SHOWN]]
    if not task.given_frames:
        return []
    first = {name: array[:SHOWN] for name, array in batch.items() if name.startswith(PREFIX)}
    return [to_pixels(task.detokenize(modules, task.tokens(modules, first)))]
