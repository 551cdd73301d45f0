"""Mean and standard deviation of latents, measured in the first steps of training."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.shapes import Latents

SMALLEST_DEVIATION = 1e-4
"""A channel that hardly moves is divided by this."""


class LatentStatistic(nnx.Variable):
    """A statistic of latents, which is not trained by gradients."""


class NormalisedLatents(nnx.Module):
    """In the place of ``LatentStatistics`` where latents come normalised: they stay as they are."""

    @staticmethod
    def sums(latents: Latents) -> dict[str, Array]:
        """Nothing is measured."""
        return {}

    def normalise(self, latents: Latents) -> Latents:
        """Float32."""
        return latents.astype(jnp.float32)

    def restore(self, normalised: Latents) -> Latents:
        """The same."""
        return normalised


class LatentStatistics(nnx.Module):
    """Brings every channel of latents to mean 0 and variance 1, as processes of ``videogen.diffusion`` expect.

    The statistics are means over all latents of the first ``updates`` batches of training and stay from then on, so
    that a run needs no pass over the data before it, and every frozen tokenizer, whatever its scale, does.

    Args:
      channels: of the latents.
      updates: batches that count.
    """

    def __init__(self, channels: int, updates: int = 500):
        self.channels, self.updates = channels, updates
        self.mean = LatentStatistic(jnp.zeros(channels))
        self.square = LatentStatistic(jnp.ones(channels))
        self.count = LatentStatistic(jnp.zeros((), jnp.int32))
        self.seen = LatentStatistic(jnp.zeros(()))

    @staticmethod
    def sums(latents: Latents) -> dict[str, Array]:
        """What ``update`` needs of latents; that of several micro-batches, of videos and images, is added up."""
        latents = jax.lax.stop_gradient(latents.astype(jnp.float32))
        count = jnp.full((), float(math.prod(latents.shape[:-1])))
        axes = tuple(range(latents.ndim - 1))
        return {"count": count, "mean": latents.sum(axes), "square": (latents**2).sum(axes)}

    def update(self, sums: dict[str, Array]) -> None:
        """Takes the latents of a step in: every one counts the same. Sums span the mesh."""
        count, new = self.count.get_value(), sums["count"]
        counts = count < self.updates
        rate = jnp.where(counts, new / (self.seen.get_value() + new), 0.0)
        self.seen.set_value(self.seen.get_value() + jnp.where(counts, new, 0.0))
        for name, variable in (("mean", self.mean), ("square", self.square)):
            old = variable.get_value()
            variable.set_value(old + rate * (sums[name] / new - old))
        self.count.set_value(jnp.minimum(count + 1, self.updates))

    @property
    def deviation(self) -> Float[Array, "channels"]:
        """Standard deviation of every channel."""
        variance = self.square.get_value() - self.mean.get_value() ** 2
        return jnp.sqrt(jnp.maximum(variance, SMALLEST_DEVIATION**2))

    def normalise(self, latents: Latents) -> Latents:
        """Latents of the tokenizer -> normalised ones, float32."""
        return (latents.astype(jnp.float32) - self.mean.get_value()) / self.deviation

    def restore(self, normalised: Latents) -> Latents:
        """The inverse of ``normalise``."""
        return normalised * self.deviation + self.mean.get_value()
