"""From the grid of codes to the sequence a generator walks along, and back: blocks, delayed levels, factors."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from videogen.errors import UserError
from videogen.shapes import TokenGrid


def block_order(grid: TokenGrid, block: Sequence[int]) -> Int[np.ndarray, "tokens"]:
    """Raster places of a grid in the order of blocks: ``raster[order]`` is a row of blocks, each in raster order.

    Args:
      grid: the grid.
      block: sides ``(time, height, width)`` of a block.

    Raises:
      UserError: a side of the grid is no multiple of the block's.
    """
    counts = []
    for side, length, part in zip(("time", "height", "width"), grid.shape, block, strict=True):
        if part < 1 or length % part:
            raise UserError(f"a grid of {length} along {side} does not divide into blocks of {part}")
        counts.append((length // part, part))
    places = np.arange(grid.tokens).reshape([n for pair in counts for n in pair])
    return places.transpose(0, 2, 4, 1, 3, 5).reshape(-1)


def inverse(order: Int[np.ndarray, "tokens"]) -> Int[np.ndarray, "tokens"]:
    """The permutation that undoes ``order``."""
    return np.argsort(order)


def delay(
    ids: Int[Array, "batch tokens levels"], block: int, filler: Sequence[int]
) -> Int[Array, "batch delayed levels"]:
    """Shifts level l by l blocks, so that a level is predicted when the levels below it are known (MusicGen).

    Args:
      ids: codes in block order.
      block: tokens of a block.
      filler: id of each level at places without a code.

    Returns:
      ``tokens + (levels - 1) · block`` places.
    """
    levels = ids.shape[-1]
    shifted = []
    for level in range(levels):
        pad = ((0, 0), (level * block, (levels - 1 - level) * block))
        shifted.append(jnp.pad(ids[..., level], pad, constant_values=filler[level]))
    return jnp.stack(shifted, axis=-1)


def undelay(ids: Int[Array, "batch delayed levels"], block: int) -> Int[Array, "batch tokens levels"]:
    """The inverse of ``delay``."""
    levels = ids.shape[-1]
    tokens = ids.shape[1] - (levels - 1) * block
    return jnp.stack([ids[:, level * block : level * block + tokens, level] for level in range(levels)], axis=-1)


def factor_vocabulary(vocabulary: Sequence[int], factors: int) -> tuple[int, ...]:
    """Each level of ``vocabulary`` as ``factors`` levels of equal size: (2^18,) as (2^9, 2^9) (MAGVIT-v2, section 4).

    Raises:
      UserError: a level is no ``factors``-th power.
    """
    levels = []
    for size in vocabulary:
        base = round(size ** (1 / factors))
        if base**factors != size:
            raise UserError(f"a vocabulary of {size} is no power of {factors}: it does not split into equal factors")
        levels += [base] * factors
    return tuple(levels)


def split_factors(
    ids: Int[Array, "batch tokens levels"], vocabulary: Sequence[int], factors: int
) -> Int[Array, "batch tokens factored_levels"]:
    """Codes as digits, the most significant first."""
    parts = []
    for level, size in enumerate(vocabulary):
        base = round(size ** (1 / factors))
        parts += [ids[..., level] // base**power % base for power in reversed(range(factors))]
    return jnp.stack(parts, axis=-1)


def merge_factors(
    ids: Int[Array, "batch tokens factored_levels"], vocabulary: Sequence[int], factors: int
) -> Int[Array, "batch tokens levels"]:
    """The inverse of ``split_factors``."""
    merged = []
    for level, size in enumerate(vocabulary):
        base = round(size ** (1 / factors))
        digits = ids[..., level * factors : (level + 1) * factors]
        merged.append(jnp.sum(digits * np.array([base**power for power in reversed(range(factors))]), axis=-1))
    return jnp.stack(merged, axis=-1).astype(jnp.int32)


def tokens_of(block: Sequence[int]) -> int:
    """Tokens of a block."""
    return math.prod(block)
