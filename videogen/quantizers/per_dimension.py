"""Post-training quantization: every dimension of trained continuous latents becomes one id (TokenBridge)."""

from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError, near_matches
from videogen.nn import Mean, draw, example_keys, whole
from videogen.quantizers.base import Quantized, Quantizer, QuantizerState, count_levels
from videogen.quantizers.estimators import straight_through
from videogen.quantizers.gaussian import split_posterior
from videogen.ranges import Count, Positive

GAUSSIAN_LIMIT = 3.0
"""The Gaussian bins are those of N(0, 1) truncated to ± this."""

BINS = ("gaussian", "uniform")


def gaussian_values(bins: int) -> Float[np.ndarray, "bins"]:
    """Mean of N(0, 1) in each of ``bins`` intervals of equal probability, the outermost ending at ±3."""
    normal = NormalDist()
    most = int(1 / normal.cdf(-GAUSSIAN_LIMIT))
    if bins > most:
        raise UserError(f"of {bins} Gaussian bins the outermost lie beyond ±3; take at most {most}, or spacing=uniform")
    inner = [normal.inv_cdf(i / bins) for i in range(1, bins)]
    edges = np.clip([-GAUSSIAN_LIMIT, *inner, GAUSSIAN_LIMIT], -GAUSSIAN_LIMIT, GAUSSIAN_LIMIT)
    density = np.exp(-0.5 * edges**2) / np.sqrt(2 * np.pi)
    values = (density[:-1] - density[1:]) / np.diff([normal.cdf(edge) for edge in edges])
    return 0.5 * (values - values[::-1])  # exactly antisymmetric


def uniform_values(bins: int) -> Float[np.ndarray, "bins"]:
    """Centres of ``bins`` equal intervals of [-1, 1]."""
    return (2 * np.arange(bins) + 1 - bins) / bins


class PerDimensionQuantizer(Quantizer):
    """Each dimension, normalised by its own mean and deviation, takes the nearest of ``bins`` fixed values.

    Nothing is trained: mean and deviation are measured on the latents of all steps that come with ``train``, each of
    which is quantised with what was measured before it. A
    trained tokenizer with continuous latents gets ids by a stage that starts from it with this quantizer and all its
    weights frozen (``videogen.configs.tokenbridge``), or at once by
    ``model.quantizer = PerDimensionQuantizer(width); model.quantizer.fit(latents)``.
    Ids of dimensions are levels; a generator must model them jointly.

    Args:
      width: code width.
      bins: values per dimension.
      spacing: ``"gaussian"`` (denser where N(0, 1) is) or ``"uniform"``.
      reach: the normalised latents' range ±reach is mapped to that of the bins; what lies beyond goes to the
        outermost bin. 3 makes Gaussian bins nearly equally likely, 5 (TokenBridge) spends them on the tails.
      posterior: the latents that come in hold mean and log variance, as those of a Gaussian quantizer.
      drawn: of a posterior a draw is quantised where there is a key (TokenBridge), else the mean.
    """

    remedy = "measure the latents on more data, or lower the reach"

    def __init__(
        self,
        width: Count,
        *,
        bins: Count = 64,
        spacing: str = "gaussian",
        reach: Positive = 5.0,
        posterior: bool = True,
        drawn: bool = False,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs  # nothing is learned
        if spacing not in BINS:
            raise UserError(f"unknown spacing {spacing!r}{near_matches(spacing, BINS)}")
        if bins < 2 or reach <= 0:
            raise UserError(f"per-dimension quantization needs bins >= 2 and reach > 0, got {bins} and {reach}")
        if drawn and not posterior:
            raise UserError("drawn is for latents with a posterior: leave it out")
        self.width, self.bins, self.posterior, self.drawn = width, bins, posterior, drawn
        self.spacing, self.reach = spacing, reach
        self.mean = QuantizerState(jnp.zeros(width))
        self.deviation = QuantizerState(jnp.ones(width))
        self.measured = QuantizerState(jnp.zeros(()))

    def _values(self) -> Float[np.ndarray, "bins"]:
        """The values, in deviations."""
        if self.spacing == "gaussian":
            return gaussian_values(self.bins) * (self.reach / GAUSSIAN_LIMIT)
        return uniform_values(self.bins) * self.reach

    @property
    def input_width(self) -> int:
        """Twice ``width`` where the latents are a posterior, else ``width``."""
        return 2 * self.width if self.posterior else self.width

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of each channel."""
        return (self.bins,) * self.width

    def _latents(self, latents: Float[Array, "... input"]) -> Float[Array, "... width"]:
        return split_posterior(latents, self.width)[0] if self.posterior else latents.astype(jnp.float32)

    def fit(self, latents: Float[Array, "... input"]) -> None:
        """Measures mean and deviation of every dimension on latents of the data, all earlier ones forgotten."""
        z = self._latents(latents).reshape(-1, self.width)
        # About the latents' own mean: squares of large numbers would leave few digits for the deviation.
        self.mean.set_value(jnp.mean(z, axis=0))
        self.measured.set_value(jnp.zeros(()))
        self.update(self._sums(z), {})

    def _sums(self, z: Float[Array, "... width"], exists: Bool[Array, "..."] | None = None) -> dict[str, Array]:
        """Number, sum and sum of squares of the latents that exist, about the mean so far."""
        z = jax.lax.stop_gradient(z).reshape(-1, self.width) - self.mean.get_value()
        count = jnp.full((), float(len(z)))
        if exists is not None:
            z, count = jnp.where(exists.reshape(-1, 1), z, 0.0), jnp.sum(exists, dtype=jnp.float32)
        return {"count": count, "first": z.sum(0), "second": jnp.sum(z**2, axis=0)}

    def update(self, sums: Any, candidates: Any, key: jax.Array | None = None) -> None:
        """Adds latents to those that mean and deviation are of (Chan, Golub and LeVeque, 1979)."""
        before, count = self.measured.get_value(), jnp.maximum(sums["count"], 1.0)
        total = before + sums["count"]
        share = sums["count"] / (before + count)
        step = sums["first"] / count
        variance = jnp.maximum(sums["second"] / count - step**2, 0.0)
        variance = (1 - share) * (self.deviation.get_value() ** 2 + share * step**2) + share * variance
        self.mean.set_value(self.mean.get_value() + share * step)
        self.deviation.set_value(jnp.maximum(jnp.sqrt(variance), 1e-6))
        self.measured.set_value(total)

    def lookup(self, indices: Int[Array, "... width"]) -> Float[Array, "... width"]:
        """The values of ids."""
        values = jnp.asarray(self._values(), jnp.float32)[indices]
        return values * self.deviation.get_value() + self.mean.get_value()

    def __call__(
        self,
        latents: Float[Array, "... input"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Takes the nearest value; with ``train`` the latents are measured, ``mean`` changes nothing.

        ``key``, one or one of each example, is for what is ``drawn``.
        """
        z = self._latents(latents)
        if self.drawn and key is not None:
            deviation = jnp.exp(0.5 * split_posterior(latents, self.width)[1])
            z = z + deviation * draw(jax.random.normal, example_keys(key, len(z)), z.shape)
        values = self._values()
        borders = jnp.asarray((values[1:] + values[:-1]) / 2, jnp.float32)
        normalised = (z - self.mean.get_value()) / self.deviation.get_value()
        indices = jnp.searchsorted(borders, normalised).astype(jnp.int32)
        counts = count_levels(indices, self.vocabulary, exists)
        sums = self._sums(z, exists) if train else {}
        return Quantized(straight_through(z, self.lookup(indices)), indices, {}, {"counts": counts}, sums)
