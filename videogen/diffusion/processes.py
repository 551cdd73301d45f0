"""What a noise process is, and the Gaussian ones: ``x_t = alpha(t)·x + sigma(t)·e`` with ``e ~ N(0, 1)``.

Time ``t`` runs from 0 (data) to 1 (noise), float32, ``[batch]`` or ``[batch, time]`` (every frame at its own noise
level, diffusion forcing), or a scalar. All solvers, weights and losses use these definitions.
Training knows of a process ``corrupt`` and ``loss`` alone, whatever its family.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from videogen.building import check_fields
from videogen.diffusion.predictions import (
    EDM_DATA_DEVIATION,
    PREDICTIONS,
    WEIGHTS,
    Scales,
    edm_deviation,
    error_ratio,
    prediction_scales,
)
from videogen.errors import UserError, near_matches
from videogen.nn import draw
from videogen.ranges import Number, OneOf, Positive

Sample = Float[Array, "batch ..."]


def broadcast_right(t: Float[Array, "*times"], sample: Shaped[Array, "batch ..."]) -> Float[Array, "..."]:
    """``t`` with as many trailing axes of length 1 as ``sample`` has more axes."""
    t = jnp.asarray(t)
    return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (sample.ndim - t.ndim))


NO_SCALES = (
    "this process has no signal-to-noise ratio: take grid.name uniform, power or linear_quadratic, and "
    "time_distribution.name uniform, logit_normal or mode"
)


class Noisy(NamedTuple):
    """What ``Process.corrupt`` makes of data.

    Attributes:
      values: x_t.
      noise: what was drawn to get there: white noise, or which bits are flipped.
    """

    values: Shaped[Array, "batch ..."]
    noise: Shaped[Array, "batch ..."]


@dataclasses.dataclass(frozen=True)
class Process:
    """What the families share: how data are corrupted, what a network learns of them, and a step back.

    Attributes:
      solved: solvers run along it (``solvers.integrate``); others go back by their own ``step`` (``ancestral``).
    """

    solved: ClassVar[bool] = False

    def __post_init__(self):
        check_fields(self)

    def corrupt(self, clean: Shaped[Array, "batch ..."], t: Float[Array, "*times"], keys: Array) -> Noisy:
        """x_t of the data ``clean``, drawn with a random key for each example, ``[batch]``."""
        raise NotImplementedError

    def loss(
        self, output: Float[Array, "batch ..."], clean: Shaped[Array, "batch ..."], noisy: Noisy, t: Array
    ) -> Float[Array, "batch ..."]:
        """The loss of every number of a network's output, float32; 0 where ``t`` is 0, since nothing is corrupted.

        Args:
          output: of the network, for ``noisy.values`` at ``t``.
          clean: the data.
          noisy: what ``corrupt`` made of them.
          t: its times.
        """
        raise NotImplementedError

    def step(
        self, state: Shaped[Array, "batch ..."], output: Float[Array, "batch ..."], t: Array, later: Array, keys: Array
    ) -> Shaped[Array, "batch ..."]:
        """A draw of the samples at the times ``later`` on, nearer to the data; what has ``later`` = ``t`` stays.

        Args:
          state: x_t.
          output: of the network, for it.
          t: its times.
          later: at most ``t``.
          keys: a random key for each example, ``[batch]``.
        """
        raise NotImplementedError

    def network_input(self, noisy: Shaped[Array, "batch ..."], t: Array) -> Float[Array, "batch ..."]:
        """``x_t`` as the network takes it."""
        raise NotImplementedError

    def start(self, white: Float[Array, "batch ..."], t: Array) -> Shaped[Array, "batch ..."]:
        """What samples begin with at ``t``, where nothing of the data is left, of white noise."""
        raise NotImplementedError

    def half_log_snr(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        """lambda = log(alpha / sigma), falling in ``t``."""
        raise UserError(NO_SCALES)

    def time_of(self, half_log_snr: Float[Array, "*times"]) -> Float[Array, "*times"]:
        """The inverse of ``half_log_snr``."""
        raise UserError(NO_SCALES)


@dataclasses.dataclass(frozen=True)
class Step:
    """A step from ``time`` to ``next_time``, ``[batch]`` or ``[batch, time]``; the scales broadcast with the sample."""

    time: Array
    next_time: Array
    alpha: Array
    sigma: Array
    next_alpha: Array
    next_sigma: Array

    @classmethod
    def of(cls, process: "Gaussian", time: Array, next_time: Array, sample: Sample) -> "Step":
        """The step of a process between two times; its scales have the axes of ``sample``."""
        scales = (*process.scales(time), *process.scales(next_time))
        return cls(time, next_time, *(broadcast_right(scale, sample) for scale in scales))

    @property
    def decay(self) -> Array:
        """exp(-h), without logarithms: 0 when the step leaves pure noise or reaches data."""
        return self.alpha * self.next_sigma / (self.sigma * self.next_alpha)

    @property
    def h(self) -> Array:
        """Infinite when the step leaves pure noise or reaches data, not a number while a frame waits there."""
        return -jnp.log(self.decay)

    def move(self, sample: Sample, moved: Sample) -> Sample:
        """``moved`` where the time falls."""
        return jnp.where(broadcast_right(self.next_time < self.time, sample), moved, sample)

    def mix(self, sample: Sample, clean: Sample, noise: Sample, share: float) -> Sample:
        """Data and the noise in ``sample``, mixed anew (Song et al., 2021).

        Args:
          sample: x_t.
          clean: the data in it, as estimated.
          noise: fresh noise.
          share: how much of the noise is drawn anew: 0 none, 1 as much as in DDPM's posterior.
        """
        estimated = (sample - self.alpha * clean) / self.sigma
        fresh = share * jnp.sqrt(jnp.maximum(1 - self.decay**2, 0))
        mixed = jnp.sqrt(1 - fresh**2) * estimated + fresh * noise
        return self.move(sample, self.next_alpha * clean + self.next_sigma * mixed)


@dataclasses.dataclass(frozen=True)
class Gaussian(Process):
    """The Gaussian family; each process adds ``scales``.

    Attributes:
      data_deviation: standard deviation of the data; only the prediction ``edm`` looks at it.
      prediction: what the network predicts, a name in ``PREDICTIONS``.
      weighting: how much the error counts, a name in ``WEIGHTS``; empty is the plain error of the prediction.
    """

    solved: ClassVar[bool] = True
    data_deviation: Positive = dataclasses.field(default=EDM_DATA_DEVIATION, kw_only=True)
    prediction: str = dataclasses.field(default="velocity", kw_only=True)
    weighting: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        names = (("prediction", self.prediction, PREDICTIONS), ("loss weighting", self.weighting, ("", *WEIGHTS)))
        for what, name, known in names:
            if name not in known:
                raise UserError(f"unknown {what} {name!r}{near_matches(name, [*filter(None, known)])}")

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

    # Training --------------------------------------------------------------------------------------------------------

    def corrupt(self, clean: Sample, t: Float[Array, "*times"], keys: Array) -> Noisy:
        noise = draw(jax.random.normal, keys, clean.shape)
        return Noisy(self.add_noise(clean, noise, t), noise)

    def loss(self, output: Sample, clean: Sample, noisy: Noisy, t: Float[Array, "*times"]) -> Sample:
        """The weighted squared error of the prediction."""
        weight = jnp.where(t > 0, self.loss_weight(t), 0.0)
        return broadcast_right(weight, output) * (output - self.target(clean, noisy.noise, t)) ** 2

    def loss_weight(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        """The weight of the prediction's squared error that amounts to ``WEIGHTS[weighting]`` on x0; t in (0, 1)."""
        if self.weighting in ("", self.prediction):
            return jnp.ones_like(t)
        scales = (*self.scales(t), self.data_deviation)
        return WEIGHTS[self.weighting](*scales) / error_ratio(self.prediction, *scales) ** 2

    def add_noise(self, clean: Sample, noise: Sample, t: Float[Array, "*times"]) -> Sample:
        """``x_t``."""
        alpha, sigma = (broadcast_right(scale, clean) for scale in self.scales(t))
        return alpha * clean + sigma * noise

    def target(self, clean: Sample, noise: Sample, t: Float[Array, "*times"]) -> Sample:
        """What the network should return for ``x_t``."""
        alpha, sigma = (broadcast_right(scale, clean) for scale in self.scales(t))
        of_clean, of_noise = prediction_scales(self.prediction, alpha, sigma, self.data_deviation)
        return of_clean * clean + of_noise * noise

    def network_input(self, noisy: Sample, t: Float[Array, "*times"]) -> Sample:
        """For the prediction ``edm`` with unit variance (c_in), else as it is."""
        if self.prediction != "edm":
            return noisy
        return noisy / edm_deviation(*(broadcast_right(scale, noisy) for scale in self.scales(t)), self.data_deviation)

    # Sampling --------------------------------------------------------------------------------------------------------

    def start(self, white: Sample, t: Float[Array, "*times"]) -> Sample:
        return broadcast_right(self.scales(t)[1], white) * white

    def step(
        self, state: Sample, output: Sample, t: Float[Array, "*times"], later: Float[Array, "*times"], keys: Array
    ) -> Sample:
        """DDPM's posterior, the data being those that the network estimates (Ho et al., 2020); solvers have others."""
        noise = draw(jax.random.normal, keys, state.shape)
        return Step.of(self, t, later, state).mix(state, self.data(output, state, t), noise, 1.0)

    def data(self, output: Sample, noisy: Sample, t: Float[Array, "*times"]) -> Sample:
        """The data in ``x_t`` by the network's ``output``."""
        return self.convert(output, noisy, t, self.prediction, "x0")

    def convert(self, value: Sample, noisy: Sample, t: Float[Array, "*times"], source: str, target: str) -> Sample:
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
        alpha, sigma = (broadcast_right(scale, noisy) for scale in self.scales(t))
        p, q = prediction_scales(source, alpha, sigma, self.data_deviation)
        to_clean, to_noise = prediction_scales(target, alpha, sigma, self.data_deviation)
        if source == target:
            return value
        determinant = alpha * q - sigma * p
        clean = (q * noisy - sigma * value) / determinant
        if target == "x0":
            return clean
        return to_clean * clean + to_noise * (alpha * value - p * noisy) / determinant


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Gaussian):
    """alpha = 1 - t, sigma = t: straight lines from data to noise (Liu et al., 2022; Lipman et al., 2022)."""

    def scales(self, t: Float[Array, "*times"]) -> Scales:
        return 1 - t, t


@dataclasses.dataclass(frozen=True)
class EDM(Gaussian):
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
class VariancePreserving(Gaussian):
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
