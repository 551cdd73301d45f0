"""One Gaussian over continuous tokens."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.heads.base import Features
from videogen.heads.densities import SMALLEST_VARIANCE, DensityHead, Layers, Numbers
from videogen.heads.sampling import HeadSampler, guide
from videogen.nn import draw, named_key
from videogen.ranges import OneOf

VARIANCES = ("learned", "one")
"""What is predicted: mean and variance, or the mean alone, whose loss is half the squared error and a constant."""


class Gaussian(DensityHead):
    """A Gaussian with a variance of each channel (DiCoDe's variance head, section 4).

    The parameters of a place are the means and, where they are learned, the variances before softplus and clamp. The
    temperature multiplies the variances, after the clamp; 0 draws the mean. Guidance gives
    ``null + s·(conditional - null)`` of two vectors that are drawn by the same random numbers.

    Args:
      channels: of the normalised latents.
      width: of features and inputs.
      variance: a name in ``VARIANCES``.
      layers: of the embedding of values and of the output, 1 or 2 each.
      hidden: whether values may be hidden: a learned vector then stands in their place.
      remat: of heads with layers.
    """

    greedy = True

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        variance: Annotated[str, OneOf(*VARIANCES)] = "learned",
        layers: Layers = 1,
        hidden: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(channels, width, hidden=hidden, layers=layers, dtype=dtype, rngs=rngs)
        self.learned = variance == "learned"
        outputs = channels * (1 + self.learned)
        self.parameters_of = Numbers(width, outputs, layers=layers, dtype=dtype, rngs=rngs)

    def moments(self, features: Features) -> tuple[Float[Array, "batch *places channels"], ...]:
        """Means and variances of each place, float32."""
        numbers = self.parameters_of(features)
        if not self.learned:
            return numbers, jnp.ones_like(numbers)
        mean, variance = jnp.split(numbers, 2, axis=-1)
        return mean, jnp.maximum(jax.nn.softplus(variance), SMALLEST_VARIANCE)

    def log_density(
        self, features: Features, values: Float[Array, "batch *places channels"]
    ) -> Float[Array, "batch *places"]:
        mean, variance = self.moments(features)
        return -0.5 * jnp.sum((values - mean) ** 2 / variance + jnp.log(variance) + math.log(2 * math.pi), axis=-1)

    def draw(
        self, features: Features, null_features: Features | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Float[Array, "batch *places channels"], Float[Array, "batch *places"]]:
        noise = draw(jax.random.normal, named_key(keys, "noise"), (*features.shape[:-1], self.channels))

        def drawn(features: Features) -> Array:
            mean, variance = self.moments(features)
            return mean + jnp.sqrt(variance * sampler.temperature) * noise

        values = drawn(features)
        if null_features is not None:
            values = guide(values, drawn(null_features), sampler.guidance_scale)
        return values, self.log_density(features, values)
