"""Finite scalar quantization: each dimension is rounded to a few levels; no codebook, no loss, no collapse."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError, near_matches
from videogen.nn import Mean, whole
from videogen.quantizers.base import Quantized, Quantizer, count_levels
from videogen.quantizers.estimators import straight_through

EPSILON = 1e-3
"""Keeps the bound just outside the last level, so that it can be reached (FSQ, Mentzer et al., 2023)."""

LARGEST_EXCESS = np.float32(0.49)
"""The bound goes no further beyond the last level, in levels."""

BOUNDS = ("tanh", "symmetric", "clamp")

LARGEST = 2**24
"""Codes of one id: how often each occurs is counted, and the counts must fit in memory."""


class FiniteScalarQuantizer(Quantizer):
    """FSQ: ``z_i`` is bounded to ``levels[i]`` values and rounded with a straight-through gradient.

    Codes are scaled to [-1, 1]; the id is mixed-radix with the first dimension fastest. Of more than ``LARGEST`` codes
    there is no id: every dimension is a level of its own.

    Args:
      levels: levels per dimension, each at least 3 (2 when symmetric); their product is the vocabulary. Typical:
        [8, 6, 5] ≈ 2^8, [8, 5, 5, 5] ≈ 2^10, [8, 8, 8, 6, 5] ≈ 2^14.
      bound: ``"tanh"`` (Mentzer et al., 2023: an even number of levels has one more below zero than above),
        ``"symmetric"`` (tanh, with levels evenly spaced from -1 to 1 even where 0 is none of them; Parker et al.,
        2024) or ``"clamp"`` (symmetric without the tanh: the code is the nearest to the latent itself, so that what
        remains can be coded again by a residual quantizer).
    """

    remedy = "use fewer levels, or normalise the encoder's output: tanh is saturated"

    def __init__(self, levels: Sequence[int], *, bound: str = "tanh", rngs: nnx.Rngs | None = None):
        del rngs  # nothing is learned
        levels = tuple(int(level) for level in levels)
        if bound not in BOUNDS:
            raise UserError(f"unknown FSQ bound {bound!r}{near_matches(bound, BOUNDS)}")
        smallest = 3 if bound == "tanh" else 2
        if not levels or min(levels) < smallest:
            raise UserError(f"FSQ ({bound}) needs at least one dimension and levels >= {smallest}, got {list(levels)}")
        self.levels, self.bound, self.euclidean = levels, bound, bound == "clamp"
        self.size, self.width = math.prod(levels), len(levels)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of the one level, the product of the dimensions' levels; of very many codes those of each dimension."""
        return (self.size,) if self.size <= LARGEST else self.levels

    def _bounded(self, z: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Latents in units of levels; level d of L reaches from d - 1/2 to d + 1/2."""
        levels = np.array(self.levels, np.float32)
        if self.bound != "tanh":
            z = jnp.tanh(z) if self.bound == "symmetric" else jnp.clip(z, -1.0, 1.0)
            return (levels - 1) * (z + 1) / 2
        # Of many levels the share beyond the last one is kept below half a level, or the rounding would pass it.
        half = np.minimum((levels - 1) * (1 + EPSILON) / 2, (levels - 1) / 2 + LARGEST_EXCESS)
        offset = np.where(levels % 2 == 0, 0.5, 0.0).astype(np.float32)
        shift = np.arctanh(offset / half)
        return jnp.tanh(z + shift) * half - offset

    def _scaled(self, digits: Array) -> Float[Array, "... width"]:
        """Codes in [-1, 1] of digits as ``_bounded`` counts them: from 0, with tanh from -(L // 2)."""
        levels = np.array(self.levels, np.int32)
        # Exact numbers and one division: looking up gives the same bits as quantising.
        return digits / (levels // 2) if self.bound == "tanh" else (2 * digits - (levels - 1)) / (levels - 1)

    def _basis(self) -> np.ndarray:
        return np.concatenate([[1], np.cumprod(self.levels[:-1])]).astype(np.int32)

    def _first(self) -> np.ndarray:
        """The digit that counts as 0 in the id."""
        levels = np.array(self.levels, np.int32)
        return -(levels // 2) if self.bound == "tanh" else 0 * levels

    def lookup(self, indices: Int[Array, "... ids"]) -> Float[Array, "... width"]:
        """Code vectors in [-1, 1] of ids."""
        joint = self.size <= LARGEST
        digits = indices // self._basis() % np.array(self.levels, np.int32) if joint else indices
        return self._scaled(digits + self._first()).astype(jnp.float32)

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Rounds ``latents``; ``exists`` tells which codes count, the other arguments change nothing."""
        bounded = self._bounded(latents.astype(jnp.float32))
        digits = jnp.round(bounded) if self.bound == "tanh" else jnp.floor(bounded + 0.5)
        ids = digits.astype(jnp.int32) - self._first()
        if self.size <= LARGEST:
            ids = jnp.sum(ids * self._basis(), -1, keepdims=True)
        codes = self._scaled(straight_through(bounded, digits))
        return Quantized(codes, ids, {}, {"counts": count_levels(ids, self.vocabulary, exists)})
