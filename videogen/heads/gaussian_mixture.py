"""A mixture of Gaussians over continuous tokens."""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.heads.base import Features
from videogen.heads.densities import SMALLEST_VARIANCE, DensityHead, Layers, Numbers
from videogen.heads.sampling import HeadSampler, guide, sample_categorical
from videogen.nn import draw, named_key
from videogen.ranges import Count, OneOf

GUIDANCES = ("density", "vectors")
"""What is guided: the density that is drawn from, or the drawn vectors (DiCoDe, section 6)."""


class Mixture(NamedTuple):
    """Parameters of the mixture of each place, float32.

    Attributes:
      log_weights: log-probabilities of the components.
      means: of each component and channel.
      variances: of each component and channel.
    """

    log_weights: Float[Array, "batch *places components"]
    means: Float[Array, "batch *places components channels"]
    variances: Float[Array, "batch *places components channels"]

    def log_density(self, values: Float[Array, "*more places channels"]) -> Float[Array, "*more places"]:
        """The log-density of one vector per place in nats, over all its channels; it may be positive."""
        squares = (values[..., None, :] - self.means) ** 2 / self.variances
        of_component = -0.5 * jnp.sum(squares + jnp.log(self.variances) + math.log(2 * math.pi), axis=-1)
        return jax.nn.logsumexp(self.log_weights + of_component, axis=-1)


class GaussianMixture(DensityHead):
    """Components with diagonal covariances (GIVT; Tschannen et al., 2023; Divot, section 4).

    The parameters of a place are, in this order, the logits of the components, their means and their variances before
    softplus and clamp: components · (1 + 2 · channels) numbers.

    A draw takes one component for all channels of a place. The temperature multiplies the variances, after the clamp,
    and leaves the weights of the components (0 draws one of the means); log-densities are those at temperature 1.
    Guidance of the ``density`` at scale s draws from ``p·(p / p_null)^(s - 1)`` as GIVT does, here by importance
    resampling: of ``candidates`` draws from ``p`` one is taken with probabilities in proportion to
    ``(p / p_null)^(s - 1)``. Guidance of ``vectors`` draws one vector from each, by the same random numbers, and gives
    ``null + s·(conditional - null)`` (DiCoDe, section 6).

    Args:
      channels: of the normalised latents.
      width: of features and inputs.
      components: of the mixture.
      candidates: draws that guidance of the density chooses from.
      guidance: a name in ``GUIDANCES``.
      layers: of the embedding of values and of the output, 1 or 2 each (Divot, section 2.3).
      hidden: whether values may be hidden: a learned vector then stands in their place.
      remat: of heads with layers.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        components: Count = 16,
        candidates: Count = 16,
        guidance: Annotated[str, OneOf(*GUIDANCES)] = "density",
        layers: Layers = 1,
        hidden: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(channels, width, hidden=hidden, layers=layers, dtype=dtype, rngs=rngs)
        self.components, self.candidates, self.guidance = components, candidates, guidance
        outputs = components * (1 + 2 * channels)
        self.parameters_of = Numbers(width, outputs, layers=layers, dtype=dtype, rngs=rngs)

    def mixture(self, features: Features) -> Mixture:
        """The distribution of each place."""
        numbers = self.parameters_of(features)
        logits, means, variances = jnp.split(numbers, [self.components, self.components * (1 + self.channels)], axis=-1)
        shape = (*logits.shape, self.channels)
        variances = jnp.maximum(jax.nn.softplus(variances.reshape(shape)), SMALLEST_VARIANCE)
        return Mixture(jax.nn.log_softmax(logits), means.reshape(shape), variances)

    def log_density(
        self, features: Features, values: Float[Array, "batch *places channels"]
    ) -> Float[Array, "batch *places"]:
        return self.mixture(features).log_density(values)

    def draw(
        self, features: Features, null_features: Features | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Float[Array, "batch *places channels"], Float[Array, "batch *places"]]:
        mixture = self.mixture(features)
        null = None if null_features is None else self.mixture(null_features)
        density = null is not None and self.guidance == "density"
        values = self._drawn(mixture, keys, self.candidates if density else 1, sampler)
        chosen = values[0]
        if density:
            ratio = mixture.log_density(values) - null.log_density(values)
            which = draw(jax.random.uniform, named_key(keys, "candidate"), features.shape[:-1])
            which = sample_categorical(which, jnp.moveaxis((sampler.guidance_scale - 1) * ratio, 0, -1))
            chosen = jnp.take_along_axis(values, which[None, ..., None], axis=0)[0]
        elif null is not None:
            chosen = guide(chosen, self._drawn(null, keys, 1, sampler)[0], sampler.guidance_scale)
        return chosen, mixture.log_density(chosen)

    def _drawn(
        self, mixture: Mixture, keys: jax.Array, count: int, sampler: HeadSampler
    ) -> Float[Array, "candidates batch *places channels"]:
        """``count`` vectors of each place."""
        places = mixture.log_weights.shape[:-1]
        own = (places[0], count, *places[1:])
        uniform = jnp.moveaxis(draw(jax.random.uniform, named_key(keys, "component"), own), 1, 0)
        noise = jnp.moveaxis(draw(jax.random.normal, named_key(keys, "noise"), (*own, self.channels)), 1, 0)
        log_weights = jnp.broadcast_to(mixture.log_weights, (*uniform.shape, self.components))
        component = sample_categorical(uniform, log_weights)
        deviation = jnp.sqrt(self._of(mixture.variances, component) * sampler.temperature)
        return self._of(mixture.means, component) + deviation * noise

    def _of(
        self, table: Float[Array, "batch *places components channels"], component: Array
    ) -> Float[Array, "candidates *batch_places channels"]:
        """The rows of the drawn components."""
        table = jnp.broadcast_to(table, (component.shape[0], *table.shape))
        return jnp.take_along_axis(table, component[..., None, None], axis=-2)[..., 0, :]
