"""Finite scalar quantization: each dimension is rounded to a few levels; no codebook, no loss, no collapse."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.errors import UserError
from videogen.quantizers.base import Quantized, count_codes, straight_through

EPSILON = 1e-3
"""Keeps the bound just outside the last level, so that it can be reached (FSQ, Mentzer et al., 2023)."""


class FiniteScalarQuantizer(nnx.Module):
    """FSQ: ``z_i`` is bounded by tanh to ``levels[i]`` integers and rounded with a straight-through gradient.

    Codes are scaled to [-1, 1]; the id is mixed-radix with the first dimension fastest.

    Args:
      levels: levels per dimension, each at least 3; their product is the vocabulary. Typical: [8, 6, 5] ≈ 2^8,
        [8, 5, 5, 5] ≈ 2^10, [8, 8, 8, 6, 5] ≈ 2^14.
    """

    def __init__(self, levels: Sequence[int], *, rngs: nnx.Rngs | None = None):
        del rngs  # nothing is learned
        levels = tuple(int(level) for level in levels)
        if not levels or min(levels) < 3:
            raise UserError(f"FSQ needs at least one dimension and levels >= 3, got {list(levels)}")
        self.levels = levels
        self.size, self.width = math.prod(levels), len(levels)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        return (self.size,)

    def _bound(self, z: Float[Array, "... width"]) -> Float[Array, "... width"]:
        levels = np.array(self.levels, np.float32)
        half = (levels - 1) * (1 + EPSILON) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0).astype(np.float32)
        shift = np.arctanh(offset / half)
        return jnp.tanh(z + shift) * half - offset

    def _basis(self) -> np.ndarray:
        return np.concatenate([[1], np.cumprod(self.levels[:-1])]).astype(np.int32)

    def lookup(self, indices: Int[Array, "... 1"]) -> Float[Array, "... width"]:
        """Code vectors in [-1, 1] of ids."""
        levels = np.array(self.levels, np.int32)
        half = levels // 2
        digits = indices // self._basis() % levels
        return ((digits - half) / half).astype(jnp.float32)

    def __call__(
        self, latents: Float[Array, "... width"], *, key: jax.Array | None = None, train: bool = False
    ) -> Quantized:
        """Rounds ``latents``; ``key`` and ``train`` are part of the contract and change nothing here."""
        half = np.array(self.levels, np.int32) // 2
        bounded = self._bound(latents.astype(jnp.float32))
        digits = straight_through(bounded, jnp.round(bounded))
        ids = jnp.sum((jnp.round(bounded).astype(jnp.int32) + half) * self._basis(), -1, keepdims=True)
        return Quantized(digits / half, ids, {}, {"counts": count_codes(ids, self.size)})
