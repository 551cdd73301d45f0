"""The continuous member of the family: a Gaussian posterior with a KL loss, and no ids."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn import Mean, draw, example_keys, mean_where, whole
from videogen.quantizers.base import Quantized, Quantizer, require_key, weighted


class GaussianQuantizer(Quantizer):
    """A diagonal Gaussian (Kingma and Welling, 2014): sampled in training, its mean otherwise.

    The contract's discrete side is empty: ``vocabulary == ()``, ids of zero levels, no counts; ids cannot be looked
    up. The latents that come in are twice as wide as the code, mean and log variance side by side.

    Args:
      width: code width.
      kl_weight: weight of the KL divergence to N(0, 1) in nats, a mean over dimensions. (Public code of latent
        diffusion takes 1e-6 of the sum over a picture's latents with a reconstruction loss that is a sum over pixels:
        in means that is 1e-6 · latents / pixels.)
    """

    def __init__(self, width: int, *, kl_weight: float = 1e-6, rngs: nnx.Rngs | None = None):
        del rngs  # nothing is learned
        self.width, self.kl_weight = width, kl_weight

    @property
    def input_width(self) -> int:
        """Twice ``width``: mean and log variance."""
        return 2 * self.width

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Empty: latents stay continuous."""
        return ()

    def lookup(self, indices: Int[Array, "... 0"]) -> Float[Array, "... width"]:
        """Raises ``UserError``: continuous latents have no ids."""
        raise UserError(
            "continuous latents have no ids: decode the latents themselves, or quantise the trained latents with "
            "'per_dimension'"
        )

    def __call__(
        self,
        latents: Float[Array, "... posterior"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """The posterior's mean; with ``train`` a sample, drawn with ``key``, one or one of each example."""
        center, log_variance = split_posterior(latents, self.width)
        codes = center
        if train:
            keys = example_keys(require_key(key, "a Gaussian posterior"), len(latents))
            codes = center + jnp.exp(0.5 * log_variance) * draw(jax.random.normal, keys, center.shape)
        kl = 0.5 * mean_where(center**2 + jnp.exp(log_variance) - 1.0 - log_variance, exists, mean)
        indices = jnp.zeros((*center.shape[:-1], 0), jnp.int32)
        return Quantized(codes, indices, weighted({"kl": (self.kl_weight, kl)}), {"counts": jnp.zeros(0)})


def split_posterior(
    latents: Float[Array, "... posterior"], width: int
) -> tuple[Float[Array, "... width"], Float[Array, "... width"]]:
    """Mean and log variance, float32; the log variance is kept in [-30, 20], where its exponential is finite.

    Raises:
      UserError: the latents are not twice as wide as the code.
    """
    if latents.shape[-1] != 2 * width:
        raise UserError(
            f"a Gaussian code of width {width} needs latents of width {2 * width} (mean and log variance, "
            f"quantizer.input_width), got {latents.shape[-1]}"
        )
    mean, log_variance = jnp.split(latents.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)
