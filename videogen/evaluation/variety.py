"""How much samples of one prompt differ, beside real clips of that prompt: a generator may repeat itself."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from videogen import data

Pixels = UInt8[np.ndarray, "batch time height width 3"]

PROMPTS, OF_EACH = 4, 4
"""How many prompts are looked at, and how many clips of each."""

SEARCHED = 20_000
"""How many clips of a source are searched for those prompts."""

MEASURE = "distance_within_prompts"
"""The name of the metric."""


def distance_within(groups: Sequence[Pixels]) -> float:
    """The root mean square difference of two clips of a group, pixels in [0, 1]: mean over pairs, then groups."""

    def of(clips: Pixels) -> float:
        pairs = itertools.combinations(clips.astype(np.float64) / 255.0, 2)
        return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs]))

    return float(np.mean([of(clips) for clips in groups]))


def same_caption(source: data.Source, captions: Sequence[str]) -> dict[str, list[int]]:
    """The places of the first clips of a source with each caption; captions of fewer than two clips are left out."""
    found: dict[str, list[int]] = {caption: [] for caption in captions}
    for index in range(min(len(source), SEARCHED)):
        places = found.get(source.caption(index))
        if places is not None and len(places) < OF_EACH:
            places.append(index)
        if all(len(places) == OF_EACH for places in found.values()):
            break
    return {caption: places for caption, places in found.items() if len(places) > 1}


def within_prompts(
    source: data.Source, prompts: Sequence[str], draw: Callable[[list[str]], Pixels]
) -> dict[str, dict[str, float]]:
    """``{MEASURE: {"samples", "real"}}`` of the first prompts that a source has several clips of; else nothing.

    Args:
      source: real clips with captions.
      prompts: captions of it, of which the first few count.
      draw: samples of a list of prompts.
    """
    places = same_caption(source, prompts[:PROMPTS])
    if not places:
        return {}
    real = [np.stack([source[i]["video"] for i in own]) for own in places.values()]
    drawn = draw([prompt for prompt in places for _ in range(OF_EACH)])
    samples = drawn.reshape(len(places), OF_EACH, *drawn.shape[1:])
    return {MEASURE: {"samples": distance_within(samples), "real": distance_within(real)}}
