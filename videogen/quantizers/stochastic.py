"""Stochastic vector quantization (LARP): codes are sampled in training, the nearest is taken otherwise."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.losses.commitment import codebook_loss, commitment
from videogen.nn import Mean, example_keys, l2_normalize, parameter, truncated_normal, whole
from videogen.quantizers.base import Quantized, Quantizer, count_codes, product, require_key, weighted
from videogen.quantizers.estimators import get_estimator
from videogen.ranges import Count, Positive, Weight


class StochasticVectorQuantizer(Quantizer):
    """Unit codes drawn from ``softmax(cos(z, e) / temperature)`` (Wang et al., 2024).

    Args:
      size: number of codes.
      width: code width (16 in LARP).
      temperature: of the draw; towards 0 it becomes the nearest code.
      commitment_weight: weight of ``mean (z - sg(e))²``.
      codebook_weight: weight of ``mean (sg(z) - e)²``.
      estimator: gradient estimator, ``"straight_through"`` or ``"rotation"``.
    """

    remedy = "raise the temperature, use fewer codes or a smaller code width"

    def __init__(
        self,
        size: Count,
        width: Count,
        *,
        temperature: Positive = 0.03,
        commitment_weight: Weight = 0.025,
        codebook_weight: Weight = 0.1,
        estimator: str = "straight_through",
        rngs: nnx.Rngs,
    ):
        self.size, self.width, self.temperature = size, width, temperature
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.estimator = get_estimator(estimator)
        self.codebook = parameter(rngs, (size, width), ("codebook", None), truncated_normal(width**-0.5))

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of the one level."""
        return (self.size,)

    def lookup(self, indices: Int[Array, "... 1"]) -> Float[Array, "... width"]:
        """Unit code vectors of ids."""
        return l2_normalize(self.codebook.get_value())[indices[..., 0]]

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Quantises ``latents``; with ``train`` the codes are drawn with ``key``, one or one of each example."""
        z, codes = l2_normalize(latents.astype(jnp.float32)), l2_normalize(self.codebook.get_value())
        scores = jax.lax.stop_gradient(product(z, codes.T))
        if train:
            keys = example_keys(require_key(key, "stochastic quantization"), len(z))
            indices = jax.vmap(jax.random.categorical)(keys, scores / self.temperature)
        else:
            indices = jnp.argmax(scores, axis=-1)
        chosen = codes[indices]
        losses = weighted(
            {
                "commitment": (self.commitment_weight, commitment(z, chosen, exists, mean)),
                "codebook": (self.codebook_weight, codebook_loss(z, chosen, exists, mean)),
            }
        )
        counts = count_codes(indices, self.size, exists)
        return Quantized(self.estimator(z, chosen), indices[..., None], losses, {"counts": counts})
