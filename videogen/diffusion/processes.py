"""Noise processes ``x_t = alpha(t)·x + sigma(t)·e`` with ``e ~ N(0, 1)``, and what a network may predict of them.

Time ``t`` runs from 0 (data) to 1 (noise), float32, ``[batch]`` or ``[batch, time]`` (every frame at its own noise
level, diffusion forcing), or a scalar. All solvers, laws, weights and losses use these definitions and no others.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videogen.building import check_fields
from videogen.errors import UserError, near_matches
from videogen.ranges import Number, OneOf, Positive

Scales = tuple[Array, Array]

EDM_DATA_DEVIATION = 0.5
"""Standard deviation of the data that EDM's preconditioning assumes unless told: of pixels (Karras et al., 2022)."""


def _edm(alpha: Array, sigma: Array, deviation: float) -> Scales:
    total = _edm_deviation(alpha, sigma, deviation)
    return sigma / (deviation * total), -deviation * alpha / total


def _edm_deviation(alpha: Array, sigma: Array, deviation: float) -> Array:
    return jnp.sqrt(sigma**2 + (deviation * alpha) ** 2)


PREDICTIONS: dict[str, Callable[[Array, Array, float], Scales]] = {
    "x0": lambda alpha, sigma, _: (jnp.ones_like(alpha), jnp.zeros_like(sigma)),
    "epsilon": lambda alpha, sigma, _: (jnp.zeros_like(alpha), jnp.ones_like(sigma)),
    "v": lambda alpha, sigma, _: (-sigma, alpha),
    "velocity": lambda alpha, sigma, _: (-jnp.ones_like(alpha), jnp.ones_like(sigma)),
    "edm": _edm,
}
"""Name -> (p, q) with target = p·x + q·e, given alpha, sigma and the standard deviation of the data.

``x0`` the data, ``epsilon`` the noise, ``v`` (Salimans and Ho, 2022), ``velocity`` that of a rectified flow, ``edm``
the network F in ``x0 = c_skip·x_t + c_out·F(c_in·x_t)``; its c_in is ``Process.network_input``. Being linear in data
and noise, each gives all others: with x_t and one prediction known, data and noise solve two linear equations.
"""


def prediction_scales(name: str, alpha: Array, sigma: Array, deviation: float = EDM_DATA_DEVIATION) -> Scales:
    """(p, q) of ``PREDICTIONS[name]``; an unknown name is a ``UserError``."""
    if name not in PREDICTIONS:
        raise UserError(f"unknown prediction {name!r}{near_matches(name, PREDICTIONS)}")
    return PREDICTIONS[name](alpha, sigma, deviation)


def spread(t: Float[Array, "*times"], sample: Float[Array, "batch ..."]) -> Float[Array, "..."]:
    """``t`` with as many trailing axes of length 1 as ``sample`` has more axes."""
    t = jnp.asarray(t)
    return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (sample.ndim - t.ndim))


@dataclasses.dataclass(frozen=True)
class Process:
    """What the processes share; each adds ``scales``.

    Attributes:
      data_deviation: standard deviation of the data; only the prediction ``edm`` looks at it.
    """

    data_deviation: Positive = dataclasses.field(default=EDM_DATA_DEVIATION, kw_only=True)

    def __post_init__(self):
        check_fields(self)

    def scales(self, t: Float[Array, "*times"]) -> tuple[Float[Array, "*times"], Float[Array, "*times"]]:
        """alpha and sigma at ``t``; sigma(0) = 0, sigma / alpha rises."""
        raise NotImplementedError

    def half_log_snr(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        """lambda = log(alpha / sigma), falling in ``t``; infinite where either is 0."""
        alpha, sigma = self.scales(t)
        return jnp.log(alpha) - jnp.log(sigma)

    def time_of(self, half_log_snr: Float[Array, "*times"]) -> Float[Array, "*times"]:
        """The inverse of ``half_log_snr``, by bisection to the last float32 digit; clipped to [0, 1]."""
        target = jnp.asarray(half_log_snr, jnp.float32)

        def halve(_: int, ends: Scales) -> Scales:
            low, high = ends
            middle = 0.5 * (low + high)
            earlier = self.half_log_snr(middle) > target
            return jnp.where(earlier, middle, low), jnp.where(earlier, high, middle)

        low, high = jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(target), jnp.ones_like(target)))
        return 0.5 * (low + high)

    def add_noise(
        self, clean: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], t: Float[Array, "*times"]
    ) -> Float[Array, "batch ..."]:
        """``x_t``."""
        alpha, sigma = (spread(scale, clean) for scale in self.scales(t))
        return alpha * clean + sigma * noise

    def target(
        self,
        prediction: str,
        clean: Float[Array, "batch ..."],
        noise: Float[Array, "batch ..."],
        t: Float[Array, "*times"],
    ) -> Float[Array, "batch ..."]:
        """What a network with this ``prediction``, a name in ``PREDICTIONS``, should return for ``x_t``."""
        alpha, sigma = (spread(scale, clean) for scale in self.scales(t))
        of_clean, of_noise = prediction_scales(prediction, alpha, sigma, self.data_deviation)
        return of_clean * clean + of_noise * noise

    def convert(
        self,
        value: Float[Array, "batch ..."],
        noisy: Float[Array, "batch ..."],
        t: Float[Array, "*times"],
        source: str,
        target: str,
    ) -> Float[Array, "batch ..."]:
        """A prediction as another one.

        Not a number where the source does not determine the target: data from ``epsilon`` where alpha is 0, noise
        from ``x0`` where sigma is 0.

        Args:
          value: the prediction ``source``, made for ``noisy`` = x_t at ``t``.
          noisy: x_t.
          t: its time.
          source: a name in ``PREDICTIONS``.
          target: another.
        """
        alpha, sigma = (spread(scale, noisy) for scale in self.scales(t))
        p, q = prediction_scales(source, alpha, sigma, self.data_deviation)
        to_clean, to_noise = prediction_scales(target, alpha, sigma, self.data_deviation)
        if source == target:
            return value
        determinant = alpha * q - sigma * p
        clean = (q * noisy - sigma * value) / determinant
        if target == "x0":
            return clean
        return to_clean * clean + to_noise * (alpha * value - p * noisy) / determinant

    def network_input(
        self, noisy: Float[Array, "batch ..."], t: Float[Array, "*times"], prediction: str
    ) -> Float[Array, "batch ..."]:
        """``x_t`` as the network takes it: for ``edm`` with unit variance (c_in), else as it is."""
        if prediction != "edm":
            return noisy
        return noisy / _edm_deviation(*(spread(scale, noisy) for scale in self.scales(t)), self.data_deviation)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Process):
    """alpha = 1 - t, sigma = t: straight lines from data to noise (Liu et al., 2022; Lipman et al., 2022)."""

    def scales(self, t: Float[Array, "*times"]) -> Scales:
        return 1 - t, t


@dataclasses.dataclass(frozen=True)
class EDM(Process):
    """alpha = 1, sigma = sigma_max·t^rho (Karras et al., 2022): equal steps of ``t`` are their steps of sigma.

    Their network's time is ``-half_log_snr(t) / 4``.

    Attributes:
      sigma_max: noise at t = 1.
      rho: how much the steps crowd near the data.
    """

    sigma_max: Positive = 80.0
    rho: Positive = 7.0

    def scales(self, t: Float[Array, "*times"]) -> Scales:
        return jnp.ones_like(t), self.sigma_max * t**self.rho


def _cosine_betas(steps: int) -> np.ndarray:
    """Nichol and Dhariwal (2021), offset 0.008."""
    signal = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999)


BETAS: dict[str, Callable[[int], np.ndarray]] = {
    "cosine": _cosine_betas,
    "linear": lambda steps: np.linspace(1e-4, 0.02, steps),
    "scaled_linear": lambda steps: np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2,
}
"""Schedule -> the variances added by every step of a discrete process, float64: improved DDPM's, DDPM's (Ho et al.,
2020), latent diffusion's (Rombach et al., 2022)."""


@dataclasses.dataclass(frozen=True)
class VariancePreserving(Process):
    """alpha² + sigma² = 1, through the points of a discrete process: its index i lies at t = (i + 1) / steps.

    Between two points alpha and sigma follow the chord, pulled back to the circle.

    Attributes:
      schedule: a name in ``BETAS``.
      steps: steps of the discrete process.
      snr_shift: the signal-to-noise ratio is divided by this (CogVideoX: 1 or 3), before the next.
      zero_terminal_snr: bend alpha so that it ends at exactly 0 and starts unchanged (Lin et al., 2023).
    """

    schedule: Annotated[str, OneOf(*BETAS)] = "cosine"
    steps: Annotated[int, Number(int, 2)] = 1000
    snr_shift: Positive = 1.0
    zero_terminal_snr: bool = False

    @functools.cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        signal = np.cumprod(1 - BETAS[self.schedule](self.steps))
        alpha = np.sqrt(signal / (self.snr_shift + (1 - self.snr_shift) * signal))
        if self.zero_terminal_snr:
            alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        alpha = np.concatenate([[1.0], alpha])
        return alpha.astype(np.float32), np.sqrt(1 - alpha**2).astype(np.float32)

    def scales(self, t: Float[Array, "*times"]) -> Scales:
        position = jnp.asarray(t) * self.steps
        lower = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, self.steps - 1)
        share = position - lower
        alpha, sigma = ((1 - share) * jnp.asarray(p)[lower] + share * jnp.asarray(p)[lower + 1] for p in self._points)
        length = jnp.hypot(alpha, sigma)
        return alpha / length, sigma / length
