"""Whether a student of few steps still draws what its teacher draws: its videos move, and are as colourful and as
different from one another. The loss of a student does not tell (docs/diffusion.md)."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from videogen.metrics.fidelity import UnitVideo, check_pair
from videogen.metrics.temporal import flicker

LOW, HIGH = 0.5, 1.5
"""Ratios that are sound; ours."""

NOTHING = 1e-4
"""A mean difference of pixels in [0, 1] that is none: a fortieth of a grey level."""

MOST = 1000.0
"""The ratio to nothing."""


def motion(video: UnitVideo) -> Float[Array, "batch"]:
    """Mean absolute difference of neighbouring frames; 0 for a still, and for clips of one frame."""
    return jnp.zeros(len(video)) if video.shape[1] < 2 else 1 - flicker(video)


def saturation(video: UnitVideo) -> Float[Array, "batch"]:
    """Mean saturation of the pixels (HSV): the range of their channels over the largest; 0 for grey and black."""
    video, _ = check_pair(video, video)
    highest, lowest = video.max(-1), video.min(-1)
    return jnp.mean(jnp.where(highest > 0, (highest - lowest) / jnp.maximum(highest, 1 / 255), 0.0), axis=(1, 2, 3))


def seed_distance(video: UnitVideo, other: UnitVideo) -> Float[Array, "batch"]:
    """Mean absolute difference of two videos that were drawn of the same text by different seeds."""
    video, other = check_pair(video, other)
    return jnp.mean(jnp.abs(video - other), axis=(1, 2, 3, 4))


def collapse_ratios(student: Sequence[UnitVideo], teacher: Sequence[UnitVideo]) -> dict[str, float]:
    """Motion, saturation and distance between seeds of a student over those of its teacher; 1 is as the teacher.

    Args:
      student: videos by two seeds, of the same texts; by one where nothing is drawn, and then there is no distance.
      teacher: videos of these texts by the same seeds.

    Returns:
      ``motion_ratio``, ``saturation_ratio`` and ``seed_distance_ratio``, each of means over all videos, from 0 to
      ``MOST``; and ``collapse``, how far the worst of them is from 1: 0 is not at all, 1 is half or twice as much.
    """
    both = {"student": student, "teacher": teacher}
    found = {}
    for name, measure in (("motion", motion), ("saturation", saturation)):
        means = {who: float(jnp.mean(jnp.stack([measure(video) for video in seeds]))) for who, seeds in both.items()}
        found[f"{name}_ratio"] = _ratio(means["student"], means["teacher"])
    if len(student) > 1:
        apart = {who: float(seed_distance(*seeds).mean()) for who, seeds in both.items()}
        found["seed_distance_ratio"] = _ratio(apart["student"], apart["teacher"])
    worst = max(abs(math.log2(max(value, 1 / MOST))) for value in found.values())
    return {**found, "collapse": worst}


def _ratio(value: float, reference: float) -> float:
    """1 where both are nothing."""
    if reference < NOTHING:
        return 1.0 if value < NOTHING else MOST
    return 0.0 if value < NOTHING * reference else min(value / reference, MOST)


def collapsed(values: dict[str, float]) -> list[str]:
    """Which ratios are outside ``LOW`` to ``HIGH``, each in words."""
    names = {"motion_ratio": "motion", "saturation_ratio": "saturation", "seed_distance_ratio": "distance of seeds"}
    return [
        f"the {said} is {values[name]:.2f} of the teacher's"
        for name, said in names.items()
        if name in values and not LOW <= values[name] <= HIGH
    ]
