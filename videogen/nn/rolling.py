"""Tokens that change places between frames: temporal mixing without a parameter (All-in-one; Wang et al., 2023; A3)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError

Frames = Float[Array, "batch time tokens width"]


def _parts(x: Frames, first: int, patches: int | None, fold: int) -> tuple[int, int, int]:
    """First patch, how many move to each side, and the end (exclusive) of the patches."""
    count = x.shape[2] - first if patches is None else patches
    if not 0 < count <= x.shape[2] - first or fold < 2:
        raise UserError(
            f"{count} patches from token {first} on, in parts of 1/{fold}, are no part of {x.shape[2]} tokens"
        )
    return first, count // fold, first + count


def rolled(
    x: Frames, *, fold: int = 8, first: int = 1, patches: int | None = None, causal: bool = False, repeat: bool = False
) -> Frames:
    """Of every frame the first ``patches // fold`` patches are those of the frame before, the last as many those of the
    frame behind; around the ends of the clip.

    Args:
      x: tokens of frames: [CLS] and the like, patches, words.
      fold: parts of the patches, of which two move.
      first: the first patch; what stands before it stays.
      patches: how many there are, what stands behind stays; ``None``: all others.
      causal: only the patches of the frame before move, and none around the ends: the first frame has zeros there …
      repeat: … or its own.
    """
    start, count, stop = _parts(x, first, patches, fold)
    before = jnp.roll(x[:, :, start : start + count], 1, axis=1)
    if causal:
        own = x[:, :1, start : start + count]
        before = before.at[:, :1].set(own if repeat else jnp.zeros_like(own))
        return x.at[:, :, start : start + count].set(before)
    after = jnp.roll(x[:, :, stop - count : stop], -1, axis=1)
    return x.at[:, :, start : start + count].set(before).at[:, :, stop - count : stop].set(after)


def unrolled(x: Frames, *, fold: int = 8, first: int = 1, patches: int | None = None) -> Frames:
    """The inverse of ``rolled`` that is not causal."""
    start, count, stop = _parts(x, first, patches, fold)
    before = jnp.roll(x[:, :, start : start + count], -1, axis=1)
    after = jnp.roll(x[:, :, stop - count : stop], 1, axis=1)
    return x.at[:, :, start : start + count].set(before).at[:, :, stop - count : stop].set(after)


class Rolled(nnx.Module):
    """A block that takes the frames of a batch one by one, with ``rolled`` before it; scanned by ``nn.block_stack``.

    Args:
      block: the block.
      fold, first, patches: as for ``rolled``.
    """

    def __init__(self, block: nnx.Module, *, fold: int = 8, first: int = 1, patches: int | None = None):
        self.block, self.fold, self.first, self.patches = block, fold, first, patches

    def __call__(
        self, x: Float[Array, "frames tokens width"], *, frames: int | None = None, **call: Any
    ) -> Float[Array, "frames tokens width"]:
        """The block behind the roll; ``frames`` are those of a clip, ``None``: these are no frames, nothing moves."""
        if frames is not None:
            moved = dict(fold=self.fold, first=self.first, patches=self.patches)
            x = rolled(x.reshape(-1, frames, *x.shape[1:]), **moved).reshape(x.shape)
        return self.block(x, **call)
