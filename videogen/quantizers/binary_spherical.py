"""Binary spherical quantization: signs on the unit sphere (Zhao et al., 2024)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.nn import Mean, l2_normalize, whole
from videogen.quantizers.base import Quantized, count_levels, weighted
from videogen.quantizers.binary import BinaryQuantizer, bit_entropies
from videogen.quantizers.estimators import straight_through
from videogen.ranges import Count, Positive, Weight


class BinarySphericalQuantizer(BinaryQuantizer):
    """BSQ: ``u = z / |z|``, ``q = sign(u) / √bits``; the error ``|u - q|²`` is at most ``2 - 2/√bits``.

    The entropy loss is that of LFQ with ``p(c|u)`` the softmax of ``2 u·c / temperature``, so that
    ``p(+1) = sigmoid(4 u / (temperature √bits))``; there is no commitment loss, for the sphere bounds the latents.
    The straight-through gradient is the identity with respect to u; public code takes it before the scaling by
    ``1/√bits``, which makes it smaller by that.

    Args:
      bits: code width; 18 and 36 in the paper.
      levels: ids per place: the bits are split evenly. One id holds at most 24 bits.
      entropy_weight: weight of the entropy loss.
      diversity: weight of the batch entropy inside it.
      temperature: softmax temperature.
      group_bits: the batch entropy is exact up to this many bits, beyond it that of groups of bits.
    """

    def __init__(
        self,
        bits: Count,
        *,
        levels: Count = 1,
        entropy_weight: Weight = 0.1,
        diversity: Weight = 1.0,
        temperature: Positive = 1.0,
        group_bits: Count = 9,
        rngs: nnx.Rngs | None = None,
    ):
        super().__init__(bits, levels, group_bits, rngs)
        self.entropy_weight, self.diversity, self.temperature = entropy_weight, diversity, temperature

    def lookup(self, indices: Int[Array, "... levels"]) -> Float[Array, "... width"]:
        """The unit vectors of ids."""
        return self.signs(indices) * self.width**-0.5

    def entropy_loss(
        self, u: Float[Array, "... width"], mean: Mean = whole, exists: Bool[Array, "..."] | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean entropy of one unit latent's distribution, and the entropy of the batch mean, in nats."""
        return bit_entropies((4.0 / (self.temperature * self.width**0.5)) * u, self.largest_group, mean, exists)

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Normalises and takes signs; ``mean`` gives the batch's entropy, ``key`` and ``train`` change nothing."""
        u = l2_normalize(latents.astype(jnp.float32))
        codes, ids = jnp.where(u > 0, 1.0, -1.0) * self.width**-0.5, self.ids(u)
        sample, batch = self.entropy_loss(u, mean, exists)
        losses = weighted({"entropy": (self.entropy_weight, sample - self.diversity * batch)})
        counts, figures = count_levels(ids, self.vocabulary, exists), self.figures(sample, batch)
        return Quantized(straight_through(u, codes), ids, losses, {"counts": counts}, figures=figures)
