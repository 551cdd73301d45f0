"""What a language model says of a video file."""

import json
from typing import Any

import numpy as np
from etils import epath

from videogen.configuration import replace_text
from videogen.errors import UserError
from videogen.inference.sampling import read_clip
from videogen.training.loading import Loaded

CAPTIONS = "captions.json"
"""The file of texts in the folder that a command names."""


def caption_video(
    loaded: Loaded, video: str, *, seed: int, count: int = 1, sampler: dict[str, Any] | None = None
) -> list[str]:
    """Texts of the first clip of a video file, which is as long as those of training.

    Args:
      loaded: a stage whose model writes texts of clips.
      video: the file.
      seed: decides every draw.
      count: texts.
      sampler: overrides of the config's sampler.

    Raises:
      UserError: the model writes no texts, or the file has fewer frames than a clip.
    """
    generator = loaded.generator(sampler)
    if not loaded.task.writes:
        raise UserError(f"{loaded.directory} draws videos and writes no texts: leave --caption out")
    clip = read_clip(loaded, video, generator.window, generator.window)
    return generator.captions(np.repeat(clip[None], count, axis=0), seed)


def write_texts(out: epath.PathLike, texts: list[str], loaded: Loaded, video: str, seed: int) -> epath.Path:
    """Writes ``captions.json`` into a folder: the texts and what they were made from; returns its path."""
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"video": video, "captions": texts, "seed": seed, "checkpoint": str(loaded.directory)}
    record |= {"step": loaded.step, "hash": loaded.hash, "sampler": loaded.config.sampler.to_dict()}
    replace_text(folder / CAPTIONS, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return folder / CAPTIONS
