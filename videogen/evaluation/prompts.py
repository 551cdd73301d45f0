"""Prompts that training has not seen, and the clips that they describe."""

import dataclasses
from typing import Any

from videogen import data
from videogen.data.inputs import clip_of, pixel_source
from videogen.errors import UserError
from videogen.training.loading import Loaded


def unseen_prompts(loaded: Loaded, count: int, split: str = "eval", **settings: Any) -> list[str]:
    """``count`` different captions of a split of the shapes source; none of them occurs in training.

    Args:
      loaded: a generator of shapes.
      count: how many.
      split: ``eval`` or ``composition``.
      **settings: of the source, instead of those of the run.

    Raises:
      UserError: the split has fewer.
    """
    # A token cache holds training captions: the prompts come from the shapes that it was made from.
    settings = pixel_source(loaded.config) | settings
    source = data.build(settings, clip=clip_of(loaded.config), seed=loaded.config.seed + 1, split=split)
    listed = source.captions()
    if listed is not None and count > len(listed):
        raise UserError(f"there are {len(listed)} different prompts in the split {split!r}, not {count}; ask for fewer")
    prompts: dict[str, None] = {}
    for index in range(len(source)):
        if len(prompts) == count:
            return list(prompts)
        prompts.setdefault(source.caption(index))
    raise UserError(f"{len(source)} clips of the split {split!r} have {len(prompts)} different prompts, not {count}")


def clips_of_split(loaded: Loaded, split: str, frames: int) -> data.Source:
    """The clips of a split of the pixels that a run learned from, with so many frames."""
    clip = dataclasses.replace(clip_of(loaded.config), frames=frames)
    return data.build(pixel_source(loaded.config), clip=clip, seed=loaded.config.seed + 1, split=split)
