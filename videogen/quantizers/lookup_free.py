"""Lookup-free quantization: the sign of each dimension is one bit of the id (MAGVIT-v2, section 3.1)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.losses.commitment import commitment
from videogen.nn import Mean, whole
from videogen.quantizers.base import Quantized, count_levels, weighted
from videogen.quantizers.binary import BinaryQuantizer, bit_entropies
from videogen.quantizers.estimators import straight_through
from videogen.ranges import Count, Positive, Weight

LARGEST_JOINT_BITS = 12
"""The batch entropy is exact up to this many bits."""


class LookupFreeQuantizer(BinaryQuantizer):
    """LFQ: codes are the ±1 corners of a cube.

    The entropy loss is ``weight · (E[H(p(c|z))] - diversity · H(E[p(c|z)]))`` with ``p(c|z)`` the softmax of
    ``2 z·c / temperature`` over all codes, which makes the bits independent: ``p(+1) = sigmoid(4 z / temperature)``.

    Args:
      bits: code width.
      levels: ids per place; 1 gives the vocabulary ``2^bits``, more split the bits evenly (MAGVIT-v2's factorised
        tokens: 18 bits in 2 levels are 2 × 512).
      entropy_weight: weight of the entropy loss.
      diversity: weight of the batch entropy inside it (gamma).
      commitment_weight: weight of ``mean (z - sg(q))²``, which keeps z from growing without bound.
      temperature: softmax temperature (0.01 in public code).
    """

    euclidean = True  # the nearest corner

    def __init__(
        self,
        bits: Count,
        *,
        levels: Count = 1,
        entropy_weight: Weight = 0.1,
        diversity: Weight = 1.0,
        commitment_weight: Weight = 0.25,
        temperature: Positive = 0.01,
        rngs: nnx.Rngs | None = None,
    ):
        super().__init__(bits, levels, LARGEST_JOINT_BITS, rngs)
        self.entropy_weight, self.diversity = entropy_weight, diversity
        self.commitment_weight, self.temperature = commitment_weight, temperature

    def lookup(self, indices: Int[Array, "... levels"]) -> Float[Array, "... width"]:
        """The ±1 vectors of ids."""
        return self.signs(indices)

    def entropy_loss(
        self, z: Float[Array, "... width"], mean: Mean = whole, exists: Bool[Array, "..."] | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean entropy of one latent's distribution, and the entropy of the batch-mean distribution, in nats."""
        return bit_entropies((4.0 / self.temperature) * z, self.largest_group, mean, exists)

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Takes signs; ``mean`` gives the batch's entropy, ``key`` and ``train`` change nothing."""
        z = latents.astype(jnp.float32)
        codes, ids = jnp.where(z > 0, 1.0, -1.0), self.ids(z)
        sample, batch = self.entropy_loss(z, mean, exists)
        losses = weighted(
            {
                "entropy": (self.entropy_weight, sample - self.diversity * batch),
                "commitment": (self.commitment_weight, commitment(z, codes, exists, mean)),
            }
        )
        counts, figures = count_levels(ids, self.vocabulary, exists), self.figures(sample, batch)
        return Quantized(straight_through(z, codes), ids, losses, {"counts": counts}, figures=figures)
