"""IBQ: the gradient goes through the softmax over all codes, so that every code learns at every step."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.losses.commitment import codebook_loss, commitment, distance
from videogen.losses.entropy import entropy_penalty
from videogen.nn import Mean, parameter, truncated_normal, whole
from videogen.quantizers.base import Quantized, Quantizer, count_codes, product
from videogen.ranges import Count, Weight


class IndexBackpropagationQuantizer(Quantizer):
    """``q = (hard + p - sg(p)) E`` with ``p = softmax(z·E)`` and hard its largest (Shi et al., 2024).

    A code is chosen by its product with the latent, not by distance. The loss is
    ``mean (q - z)² + mean (sg(e) - z)² + commitment_weight · mean (e - sg(z))²`` with e the chosen code.
    Memory: a table of tokens × codes.

    Args:
      size: number of codes.
      width: code width.
      loss_weight: weight of the sum above.
      commitment_weight: weight of its last term.
      entropy_weight: weight of ``E[H(p)] - H(E[p])``.
    """

    remedy = "raise entropy_weight, or lower the learning rate"

    def __init__(
        self,
        size: Count,
        width: Count,
        *,
        loss_weight: Weight = 1.0,
        commitment_weight: Weight = 0.25,
        entropy_weight: Weight = 0.0,
        rngs: nnx.Rngs,
    ):
        self.size, self.width = size, width
        self.loss_weight, self.commitment_weight, self.entropy_weight = loss_weight, commitment_weight, entropy_weight
        self.codebook = parameter(rngs, (size, width), ("codebook", None), truncated_normal(width**-0.5))

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of the one level."""
        return (self.size,)

    def lookup(self, indices: Int[Array, "... 1"]) -> Float[Array, "... width"]:
        """Code vectors of ids."""
        return self.codebook.get_value()[indices[..., 0]]

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Quantises ``latents``; ``mean`` gives the batch's entropy, ``key`` and ``train`` change nothing."""
        z, codes = latents.astype(jnp.float32), self.codebook.get_value()
        logits = product(z.reshape(-1, self.width), codes.T)
        indices = jnp.argmax(logits, axis=-1).reshape(z.shape[:-1])
        chosen = codes[indices]
        # The soft mixture adds its gradient to the chosen code and, to the bit, nothing to its value.
        mixture = product(jax.nn.softmax(logits, axis=-1), jax.lax.stop_gradient(codes)).reshape(z.shape)
        quantized = chosen + (mixture - jax.lax.stop_gradient(mixture))
        loss = distance(quantized, z, exists, mean) + commitment(z, chosen, exists, mean)
        loss = loss + self.commitment_weight * codebook_loss(z, chosen, exists, mean)
        losses = {"codebook": self.loss_weight * loss}
        if self.entropy_weight:
            losses["entropy"] = self.entropy_weight * entropy_penalty(logits, mean=mean, exists=exists)
        return Quantized(quantized, indices[..., None], losses, {"counts": count_codes(indices, self.size, exists)})
