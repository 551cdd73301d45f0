"""Data whose denoiser is known in closed form."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videogen.diffusion import Gaussian, broadcast_right


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Independent numbers from a mixture of Gaussians; one component is a Gaussian."""

    weights: tuple[float, ...] = (1.0,)
    means: tuple[float, ...] = (0.5,)
    deviations: tuple[float, ...] = (0.3,)

    def clean(self, process: Gaussian, noisy: Float[Array, "batch ..."], t: Array) -> Float[Array, "batch ..."]:
        """E[x0 | x_t]."""
        alpha, sigma = (broadcast_right(scale, noisy)[..., None] for scale in process.scales(t))
        means, variances = jnp.array(self.means), jnp.array(self.deviations) ** 2
        total = alpha**2 * variances + sigma**2
        away = noisy[..., None] - alpha * means
        logits = jnp.log(jnp.array(self.weights)) - 0.5 * (jnp.log(total) + away**2 / total)
        share = jnp.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        return (share * (means + alpha * variances / total * away)).sum(-1)

    def denoiser(self, process: Gaussian):
        """The perfect network."""
        return lambda noisy, t: process.convert(self.clean(process, noisy, t), noisy, t, "x0", process.prediction)

    def deviation(self, process: Gaussian, t: float) -> float:
        """Standard deviation of x_t."""
        alpha, sigma = (float(scale) for scale in process.scales(jnp.float32(t)))
        mean = np.dot(self.weights, self.means)
        variance = np.dot(self.weights, np.square(self.deviations) + np.square(np.array(self.means) - mean))
        return float(np.sqrt(alpha**2 * variance + sigma**2))

    def flow(self, process: Gaussian, noisy: Array, t: float, later: float) -> Array:
        """The exact solution of the probability flow from ``t`` to ``later``; of one Gaussian only."""
        (mean,) = self.means
        before, after = (float(process.scales(jnp.float32(time))[0]) for time in (t, later))
        growth = self.deviation(process, later) / self.deviation(process, t)
        return after * mean + growth * (noisy - before * mean)
