"""How far videos that were drawn with a shortcut (``generators.shortcuts``) are from those drawn without it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8

from videogen.metrics import psnr, ssim
from videogen.metrics.temporal import pulse
from videogen.tasks import VideoGenerator
from videogen.training.loading import Loaded

Pixels = UInt8[np.ndarray, "videos time height width 3"]

CONSTANT = 1
"""Grey levels: the values of each channel of a constant frame differ by no more."""


def constant_frames(videos: Pixels) -> int:
    """How many frames are of one colour: black, or another, as a network makes them whose attention went wrong."""
    if not videos.size:
        return 0
    low, high = (reduce(videos, axis=(2, 3)).astype(int) for reduce in (np.min, np.max))
    return int(((high - low).max(-1) <= CONSTANT).sum())


def compare(
    loaded: Loaded,
    shortcut: VideoGenerator,
    sampler: Mapping[str, Any],
    tile: tuple[int, int] | None,
    size: tuple[int, int] | None,
    draw: Callable[[VideoGenerator], Pixels],
) -> dict[str, np.ndarray]:
    """Draws the first batch with and without the shortcut, by the same seed.

    Returns:
      Numbers: ``psnr`` (dB) and ``ssim`` of the first video with the shortcut against that without; ``density`` of the
      attention, or ``computed_calls``; ``seconds`` and ``seconds_without`` of the batch, without compilation.
    """
    exact = loaded.generator({**sampler, "attention": None, "cache": None}, tile, size)
    found, seconds = {}, {}
    for name, generator in (("seconds", shortcut), ("seconds_without", exact)):
        draw(generator)
        start = time.perf_counter()
        found[name] = draw(generator)[:1].astype(np.float32) / 255
        seconds[name] = time.perf_counter() - start
    measured = jax.tree.map(lambda *windows: np.mean([window[0] for window in windows]), *shortcut.measured)
    pair = found["seconds"], found["seconds_without"]
    return {"psnr": psnr(*pair)[0], "ssim": _ssim(*pair), **measured, **seconds}


def _ssim(video: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """NaN of frames that are smaller than the window of the metric."""
    return ssim(video, reference)[0] if min(video.shape[2:4]) >= 11 else np.float32(np.nan)


def pulse_of(videos: Pixels, starts: Sequence[int]) -> float:
    """``metrics.temporal.pulse``, mean over the videos whose frames change elsewhere; 1 where none does."""
    values = [float(pulse(video[None].astype(np.float32) / 255, starts)[0]) for video in videos]
    finite = [value for value in values if np.isfinite(value)]
    return float(f"{np.mean(finite):.5g}") if finite else 1.0


def record_of(numbers: Mapping[str, np.ndarray], videos: Pixels) -> dict[str, Any]:
    """What the record of a sample says of its shortcut; constant frames are logged as well."""
    constant, total = constant_frames(videos), len(videos) * videos.shape[1] if videos.size else 0
    if constant:
        logging.warning(
            "%d of %d frames are of one colour: draw without the shortcut to see whose fault it is", constant, total
        )
    said = {name: float(f"{float(value):.5g}") for name, value in numbers.items() if np.isfinite(value)}
    return {**said, "constant_frames": constant}
