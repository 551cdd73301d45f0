"""Which noise levels training sees: distributions of the time, and its shift."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videogen.building import check_fields
from videogen.diffusion.processes import Gaussian
from videogen.errors import UserError
from videogen.ranges import Finite, Positive


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every time equally often."""

    def __call__(self, uniform: Float[Array, "*times"], process: Gaussian) -> Float[Array, "*times"]:
        """Uniform numbers in (0, 1) -> times: the distribution's quantiles (of ``Mode``: a falling map)."""
        return uniform


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(mean + deviation·n): the middle most often (Esser et al., 2024).

    Attributes:
      mean: above 0 favours noise.
      deviation: width.
    """

    mean: Finite = 0.0
    deviation: Positive = 1.0

    def __post_init__(self):
        check_fields(self)

    def __call__(self, uniform: Float[Array, "*times"], process: Gaussian) -> Float[Array, "*times"]:
        return jax.nn.sigmoid(self.mean + self.deviation * jax.scipy.special.ndtri(uniform))


@dataclasses.dataclass(frozen=True)
class Mode:
    """t = 1 - u - scale·(cos²(πu/2) - 1 + u): more middle times as ``scale`` > 0 grows (Esser et al., 2024).

    Attributes:
      scale: in [-1, 2 / (π - 2)], where the map is monotone; 0 is uniform.
    """

    scale: Finite = 0.81

    def __post_init__(self):
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise UserError(f"the scale of the mode distribution is in [-1, {2 / (math.pi - 2):.2f}], got {self.scale}")

    def __call__(self, uniform: Float[Array, "*times"], process: Gaussian) -> Float[Array, "*times"]:
        return 1 - uniform - self.scale * (jnp.cos(0.5 * jnp.pi * uniform) ** 2 - 1 + uniform)


@dataclasses.dataclass(frozen=True)
class LogNormalSigma:
    """log(sigma / alpha) ~ N(mean, deviation²) (Karras et al., 2022); on a rectified flow this is ``LogitNormal``.

    Attributes:
      mean: of the logarithm.
      deviation: of the logarithm.
    """

    mean: Finite = -1.2
    deviation: Positive = 1.2

    def __post_init__(self):
        check_fields(self)

    def __call__(self, uniform: Float[Array, "*times"], process: Gaussian) -> Float[Array, "*times"]:
        return process.time_of(-self.mean - self.deviation * jax.scipy.special.ndtri(uniform))


TimeDistribution = Uniform | LogitNormal | Mode | LogNormalSigma


def draw_times(
    distribution: TimeDistribution,
    process: Gaussian,
    key: jax.Array,
    shape: Sequence[int],
    *,
    shift: float = 1.0,
    stratified: bool = False,
) -> Float[Array, "*shape"]:
    """Times of a training batch, float32.

    Args:
      distribution: how often each time.
      process: what the times are of.
      key: random key.
      shape: ``[batch]``, or ``[batch, time]`` for independent frames.
      shift: see ``shift_time``; applied to the times that are drawn.
      stratified: spread the batch evenly over the distribution: one draw in each 1/batch of its mass. The time of each
        example still follows the distribution, and frames of an example stay independent.
    """
    if stratified:
        strata = jnp.arange(shape[0]) / shape[0]
        if len(shape) > 1:
            # Each frame deals its strata out anew, or two frames would lie equally far apart in all examples.
            strata = jnp.broadcast_to(strata.reshape(-1, *(1 for _ in shape[1:])), shape)
            strata = jax.random.permutation(jax.random.fold_in(key, 1), strata, independent=True)
        uniform = (jax.random.uniform(key, shape[1:]) + strata) % 1.0
    else:
        uniform = jax.random.uniform(key, shape)
    # At exactly 0 and 1 the normal distributions are infinite and some losses undefined.
    return shift_time(distribution(jnp.clip(uniform, 1e-6, 1 - 1e-6), process), shift)


def shift_time(t: Float[Array, "*times"], shift: float) -> Float[Array, "*times"]:
    """``c·t / (1 + (c - 1)·t)``: a rectified flow's signal-to-noise ratio divided by c²; c = 1 changes nothing.

    Larger pictures hide less at the same noise, so they need c > 1, in training and in sampling alike.
    """
    return shift * t / (1 + (shift - 1) * t)


def shift_by_exponent(
    tokens: int, low: tuple[int, float] = (1024, 0.95), high: tuple[int, float] = (4096, 2.05)
) -> float:
    """exp(mu), mu linear through two points (tokens, mu); the defaults are LTX-Video's."""
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return math.exp(low[1] + slope * (tokens - low[0]))


def shift_by_frames(tokens_per_frame: int, frames: int) -> float:
    """Open-Sora 2's: 1 at 256 tokens per frame, 3 at 4096, in between and beyond linear; times √(latent frames)."""
    return (1 + 2 * (tokens_per_frame - 256) / (4096 - 256)) * math.sqrt(frames)
