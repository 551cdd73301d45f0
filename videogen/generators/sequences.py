"""From the grid of codes or latents to the sequence a generator walks along, and back: blocks, delayed levels."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

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


def delay(values: Shaped[Array, "batch tokens levels"], block: int) -> Shaped[Array, "batch delayed levels"]:
    """Shifts level l by l blocks, so that a level is predicted when the levels below it are known (MusicGen).

    Args:
      values: of each place, in block order.
      block: tokens of a block.

    Returns:
      ``tokens + (levels - 1) · block`` places, with 0 where a level has no value (``absent``).
    """
    levels = values.shape[-1]
    shifted = []
    for level in range(levels):
        pad = ((0, 0), (level * block, (levels - 1 - level) * block))
        shifted.append(jnp.pad(values[..., level], pad))
    return jnp.stack(shifted, axis=-1)


def absent(tokens: int, levels: int, block: int) -> Bool[np.ndarray, "delayed levels"]:
    """Which levels of the places of a delayed sequence have no value; arguments as for ``delay``."""
    place = np.arange(tokens + (levels - 1) * block)[:, None] - block * np.arange(levels)
    return (place < 0) | (place >= tokens)


def undelay(values: Shaped[Array, "batch delayed levels"], block: int) -> Shaped[Array, "batch tokens levels"]:
    """The inverse of ``delay``."""
    levels = values.shape[-1]
    tokens = values.shape[1] - (levels - 1) * block
    return jnp.stack([values[:, level * block : level * block + tokens, level] for level in range(levels)], axis=-1)


def tokens_of(block: Sequence[int]) -> int:
    """Tokens of a block."""
    return math.prod(block)
