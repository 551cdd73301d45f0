"""Continuous tokens as an encoder gives them, without a posterior (Divot, DiCoDe)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn import Mean, whole
from videogen.quantizers.base import Quantized, Quantizer
from videogen.ranges import Count


class Unquantized(Quantizer):
    """Latents stay as they are, in float32: no ids, no noise, no loss.

    Args:
      width: of a latent.
    """

    def __init__(self, width: Count, *, rngs: nnx.Rngs | None = None):
        del rngs  # nothing is learned
        self.width = width

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Empty: latents stay continuous."""
        return ()

    def lookup(self, indices: Int[Array, "... 0"]) -> Float[Array, "... width"]:
        """Raises ``UserError``: continuous latents have no ids."""
        raise UserError("continuous latents have no ids: decode the latents themselves")

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """The latents themselves."""
        indices = jnp.zeros((*latents.shape[:-1], 0), jnp.int32)
        return Quantized(latents.astype(jnp.float32), indices, {}, {"counts": jnp.zeros(0)})
