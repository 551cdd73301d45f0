"""A mixture of Gaussians over continuous tokens."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.heads.base import Features, FloatHead, Mask, Sums
from videogen.heads.sampling import HeadSampler, sample_categorical
from videogen.nn import Linear, draw, named_key, truncated_normal
from videogen.ranges import Count

SMALLEST_VARIANCE = 1e-5
"""Variances are clamped to at least this (Divot, section 4; DiCoDe, section 4)."""


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


class GaussianMixture(FloatHead):
    """Components with diagonal covariances (GIVT; Tschannen et al., 2023; Divot, section 4).

    A draw takes one component for all channels of a place. The temperature multiplies the variances, after the clamp,
    and leaves the weights of the components; log-densities are those at temperature 1. Guidance at scale s
    draws from ``p·(p / p_null)^(s - 1)``, the density-based guidance of GIVT, here by importance resampling: of
    ``candidates`` draws from ``p`` one is taken with probabilities in proportion to ``(p / p_null)^(s - 1)``.

    Args:
      channels: of the normalised latents.
      width: of features and inputs.
      components: of the mixture.
      candidates: draws that guidance chooses from.
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
        hidden: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(channels, width, hidden=hidden, dtype=dtype, rngs=rngs)
        self.components, self.candidates = components, candidates
        settings = dict(axes=("embed", None), initializer=truncated_normal(0.02))
        self.parameters_of = Linear(width, components * (1 + 2 * channels), **settings, dtype=dtype, rngs=rngs)

    def mixture(self, features: Features) -> Mixture:
        """The distribution of each place."""
        numbers = self.parameters_of(features).astype(jnp.float32)
        logits, means, variances = jnp.split(numbers, [self.components, self.components * (1 + self.channels)], axis=-1)
        shape = (*logits.shape, self.channels)
        variances = jnp.maximum(jax.nn.softplus(variances.reshape(shape)), SMALLEST_VARIANCE)
        return Mixture(jax.nn.log_softmax(logits), means.reshape(shape), variances)

    def loss(
        self,
        features: Features,
        targets: Float[Array, "batch *places channels"],
        mask: Mask,
        key: jax.Array | None,
        *,
        train: bool = True,
        measured: Mask | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Sums]]:
        """Negative log-density in nats, counted by numbers (places × channels); it may be negative."""
        nll = -self.mixture(features).log_density(targets.astype(jnp.float32))
        return jnp.where(mask, nll, 0.0).sum(), mask.sum() * float(self.channels), {}

    def draw(
        self, features: Features, null_features: Features | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Float[Array, "batch *places channels"], Float[Array, "batch *places"]]:
        mixture = self.mixture(features)
        count = 1 if null_features is None else self.candidates
        places = features.shape[:-1]
        own = (places[0], count, *places[1:])
        uniform = jnp.moveaxis(draw(jax.random.uniform, named_key(keys, "component"), own), 1, 0)
        noise = jnp.moveaxis(draw(jax.random.normal, named_key(keys, "noise"), (*own, self.channels)), 1, 0)
        log_weights = jnp.broadcast_to(mixture.log_weights, (*uniform.shape, self.components))
        component = sample_categorical(uniform, log_weights)
        values = self._of(mixture.means, component)
        values = values + jnp.sqrt(self._of(mixture.variances, component) * sampler.temperature) * noise
        chosen = values[0]
        if null_features is not None:
            ratio = mixture.log_density(values) - self.mixture(null_features).log_density(values)
            which = draw(jax.random.uniform, named_key(keys, "candidate"), places)
            which = sample_categorical(which, jnp.moveaxis((sampler.guidance_scale - 1) * ratio, 0, -1))
            chosen = jnp.take_along_axis(values, which[None, ..., None], axis=0)[0]
        return chosen, mixture.log_density(chosen)

    def _of(
        self, table: Float[Array, "batch *places components channels"], component: Array
    ) -> Float[Array, "candidates *batch_places channels"]:
        """The rows of the drawn components."""
        table = jnp.broadcast_to(table, (component.shape[0], *table.shape))
        return jnp.take_along_axis(table, component[..., None, None], axis=-2)[..., 0, :]
