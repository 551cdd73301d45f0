"""Patches that did not change are not projected: a gate in front of the first layer of an encoder (GRT, stage 1; S4).

The result is always the whole grid: nothing is lost, and what is saved is work of the encoder.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videogen.building import check_fields
from videogen.encoders.vit import Patches
from videogen.errors import UserError
from videogen.nn import patchify
from videogen.ranges import Count, Finite, OneOf
from videogen.reducers.base import Report
from videogen.shapes import Video

Pieces = Float[Array, "batch time places pixels"]
"""Flat patches of clips in [-1, 1]: of every frame, in raster order."""


def structural_change(now: Pieces, before: Pieces, channels: int = 3) -> Float[Array, "batch time places"]:
    """1 - SSIM of two patches, each one window, mean over channels: 0 where they are equal, at most 2.

    Pixels count in [0, 1]; the constants are ``0.01²`` and ``0.03²``.
    """
    x, y = (
        ((p.astype(jnp.float32) + 1) / 2).reshape(*p.shape[:3], p.shape[3] // channels, channels) for p in (now, before)
    )
    mean_x, mean_y = x.mean(-2), y.mean(-2)
    dx, dy = x - mean_x[..., None, :], y - mean_y[..., None, :]
    variances, covariance = (dx * dx).mean(-2) + (dy * dy).mean(-2), (dx * dy).mean(-2)
    light = (2 * mean_x * mean_y + 1e-4) / (mean_x * mean_x + mean_y * mean_y + 1e-4)
    return jnp.mean(1 - light * (2 * covariance + 9e-4) / (variances + 9e-4), axis=-1)


def pixel_change(now: Pieces, before: Pieces, channels: int = 3) -> Float[Array, "batch time places"]:
    """The Euclidean length of the difference of two patches, pixels in [0, 1]."""
    return jnp.linalg.norm((now.astype(jnp.float32) - before.astype(jnp.float32)) / 2, axis=-1)


CHANGES = {"ssim": structural_change, "l2": pixel_change}
"""Name -> how much a patch differs from the one at the same place a frame before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchGate:
    """Which patches are projected: those of the first frame, and those that changed since the frame before.

    Attributes:
      threshold: of the change; a patch is projected above it, so below 0 all are. 0.3 and 0.01 in two releases.
      by: ``ssim``, 1 - SSIM of the patch, or ``l2``, the length of its difference.
      budget: patches of a frame that are projected at most, the most changed ones; ``None``: all places, which saves
        nothing and is what budgets are compared with.
      refresh: every so many frames a whole frame is projected; ``None``: only the first.
    """

    threshold: Finite = 0.3
    by: Annotated[str, OneOf(*CHANGES)] = "ssim"
    budget: Count | None = None
    refresh: Count | None = None

    def __post_init__(self):
        check_fields(self)

    def __call__(
        self,
        project: Callable[[Pieces], Float[Array, "batch time places embed"]],
        patches: Pieces,
        compared: Pieces | None = None,
        channels: int = 3,
    ) -> tuple[Float[Array, "batch time places embed"], Report]:
        """The embeddings of all patches, of which those that are not projected repeat the one before them.

        Args:
          project: one patch at a time, such as a linear layer.
          patches: what is projected.
          compared: the same patches of clips in [-1, 1], which the gate looks at; ``None``: these are they.
          channels: of a pixel.

        Returns:
          The embeddings; and, as means over clips, the patches that were ``projected``, and those ``over`` the budget.
        """
        batch, time, places, _ = patches.shape
        length = min(self.refresh or time, time)
        # Every stretch from one whole frame to the next stands alone; the last frame fills up the last of them.
        stretches = math.ceil(time / length)

        def cut(x: Array) -> Array:
            filled = jnp.pad(x, ((0, 0), (0, stretches * length - time), (0, 0), (0, 0)), mode="edge")
            return filled.reshape(batch * stretches, length, places, x.shape[-1])

        seen = cut(patches if compared is None else compared)
        changed = CHANGES[self.by](seen[:, 1:], seen[:, :-1], channels)
        opened = changed > self.threshold
        if self.budget is None or self.budget >= places:
            chosen, x = opened, cut(project(patches))
            found = jax.vmap(_carried)(x[:, 0], x[:, 1:], chosen)
        else:
            value, index = jax.lax.top_k(jnp.where(opened, changed, -jnp.inf), self.budget)
            there, parts = jnp.isfinite(value), cut(patches)
            first = project(parts[:, :1])[:, 0]
            few = project(jnp.take_along_axis(parts[:, 1:], index[..., None], axis=2))
            found = jax.vmap(_scattered)(first, few, index, there)
            chosen = there
        report = _counted(chosen, opened, batch, stretches, length, time, places)
        return found.reshape(batch, stretches * length, places, -1)[:, :time], report


def _carried(
    first: Float[Array, "places embed"], x: Float[Array, "later places embed"], chosen: Bool[Array, "later places"]
) -> Float[Array, "time places embed"]:
    """All frames, of which those after the first replace what was chosen."""

    def step(last: Array, now: tuple) -> tuple[Array, Array]:
        x, chosen = now
        found = jnp.where(chosen[:, None], x, last)
        return found, found

    return jnp.concatenate([first[None], jax.lax.scan(step, first, (x, chosen))[1]])


def _scattered(first: Array, few: Array, index: Array, there: Array) -> Float[Array, "time places embed"]:
    """All frames, of which those after the first replace the few places that were projected."""

    def step(last: Array, now: tuple) -> tuple[Array, Array]:
        x, index, there = now
        # What is not there is written beyond the end.
        found = last.at[jnp.where(there, index, len(last))].set(x, mode="drop")
        return found, found

    return jnp.concatenate([first[None], jax.lax.scan(step, first, (few, index, there))[1]])


def _counted(
    chosen: Array, opened: Array, batch: int, stretches: int, length: int, time: int, places: int
) -> dict[str, Array]:
    whole = float(batch * stretches * places)
    later = jnp.arange(1, length)[None] + length * jnp.arange(stretches)[:, None] < time

    def total(flags: Array) -> Array:
        return jnp.sum(flags.reshape(batch, stretches, length - 1, flags.shape[-1]) & later[None, :, :, None])

    projected = whole + total(chosen)
    return {"projected": projected / batch, "over": (total(opened) - total(chosen)) / batch}


def gated_patches(
    gate: PatchGate,
    patches: Patches,
    pixels: Float[Array, "batch time height width channel"],
    clips: Video | None = None,
) -> tuple[Float[Array, "batch t h w embed"], Report]:
    """What the first layer of a vision transformer makes of clips, its linear layer behind a gate.

    Args:
      gate: which patches are projected.
      patches: the layer.
      pixels: preprocessed clips, whole frames.
      clips: the same in [-1, 1], as large, which the gate looks at; ``None``: ``pixels`` are in [-1, 1].

    Raises:
      UserError: frames do not divide into patches.
    """
    if any(side % step for side, step in zip(pixels.shape[1:4], patches.size, strict=True)):
        raise UserError(f"clips of {list(pixels.shape[1:4])} do not divide into patches of {list(patches.size)}")
    sides = [n // step for n, step in zip(pixels.shape[1:4], patches.size, strict=True)]

    def flat(x: Array) -> Array:
        return patchify(x, patches.size).reshape(len(x), sides[0], sides[1] * sides[2], -1)

    compared = None if clips is None else flat(clips)
    x, report = gate(patches.linear, flat(pixels), compared, pixels.shape[-1])
    return x.reshape(len(x), *sides, -1), report
