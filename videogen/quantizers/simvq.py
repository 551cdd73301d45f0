"""SimVQ: a frozen random table seen through one learned projection, so that every step moves all codes."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.losses.commitment import codebook_loss, commitment
from videogen.nn import FULL, Linear, Mean, parameter, truncated_normal, whole
from videogen.quantizers.base import Quantized, Quantizer, QuantizerState, count_codes, nearest_euclidean, weighted
from videogen.quantizers.estimators import get_estimator
from videogen.ranges import Count, Weight


class SimVectorQuantizer(Quantizer):
    """Nearest of the codes ``C W`` with C frozen and W learned (Zhu et al., 2024); codes cannot die one by one.

    Args:
      size: number of codes.
      width: code width.
      commitment_weight: weight of ``mean (z - sg(e))²``; that of ``mean (sg(z) - e)²`` is 1.
      estimator: gradient estimator, ``"straight_through"`` or ``"rotation"``.
    """

    euclidean = True
    remedy = "lower the learning rate, use fewer codes or a smaller code width"

    def __init__(
        self,
        size: Count,
        width: Count,
        *,
        commitment_weight: Weight = 0.25,
        estimator: str = "rotation",
        rngs: nnx.Rngs,
    ):
        self.size, self.width, self.commitment_weight = size, width, commitment_weight
        self.estimator = get_estimator(estimator)
        # The projection's initial scale keeps lengths: codes start with about unit length.
        self.table = parameter(rngs, (size, width), (None, None), truncated_normal(width**-0.5), QuantizerState)
        self.projection = Linear(width, width, axes=(None, None), bias=False, precision=FULL, rngs=rngs)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of the one level."""
        return (self.size,)

    def lookup(self, indices: Int[Array, "... 1"]) -> Float[Array, "... width"]:
        """Code vectors of ids."""
        # All codes are projected, as in the forward pass: a product of fewer rows may differ in the last bit.
        return self.projection(self.table.get_value())[indices[..., 0]]

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Quantises ``latents``; ``key`` and ``train`` are part of the contract and change nothing."""
        z = latents.astype(jnp.float32)
        codes = self.projection(self.table.get_value())
        indices = nearest_euclidean(z.reshape(-1, self.width), codes)
        chosen = codes[indices].reshape(z.shape)
        losses = weighted({"commitment": (self.commitment_weight, commitment(z, chosen, exists, mean))})
        losses["codebook"] = codebook_loss(z, chosen, exists, mean)
        ids = indices.reshape(*z.shape[:-1], 1)
        return Quantized(self.estimator(z, chosen), ids, losses, {"counts": count_codes(ids, self.size, exists)})
