"""The times a sampler visits: falling grids from noise to data, and grids in which frames follow one another."""

import dataclasses
from typing import Annotated

import jax
import numpy as np
from jaxtyping import Float

from videogen.building import check_fields
from videogen.diffusion.processes import Gaussian
from videogen.diffusion.times import shift_time
from videogen.errors import UserError
from videogen.ranges import Number, Positive

Times = Float[np.ndarray, "points"]
Time = Annotated[float, Number(float, 0, 1, above=True)]
"""A time that is not that of data."""

Inside = Annotated[float, Number(float, 0, 1, above=True, below=True)]
"""A number between 0 and 1, neither of them."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """What the grids share; each adds ``__call__``."""

    def __post_init__(self):
        check_fields(self)

    def __call__(self, steps: int, process: Gaussian, shift: float = 1.0) -> Times:
        """``steps + 1`` falling times, the last of them 0.

        Args:
          steps: of the sampler.
          process: what the times are of.
          shift: of the time (``times.shift_time``); grids in sigma have none.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class UniformGrid(Grid):
    """Equal steps of time, then shifted, then stretched.

    Attributes:
      start: first time before the shift; Wan's UniPC starts at 0.999.
      shift: see ``times.shift_time``; multiplied with that of the model.
      last: stretches the grid so that its last time before 0 is this (LTX-Video: 0.1); ``None`` leaves it.
      end: time before the shift that the equal steps lead to; 0 stands in its place (diffusers' UniPC for flows: 0.001,
        from a start of 1).
    """

    start: Time = 1.0
    shift: Positive = 1.0
    last: Inside | None = None
    end: Annotated[float, Number(float, 0, 1)] = 0.0

    def __call__(self, steps: int, process: Gaussian, shift: float = 1.0) -> Times:
        times = shift_time(np.linspace(self.start, self.end, steps + 1), self.shift * shift)
        times[-1] = 0.0
        if self.last is not None and steps > 1:
            times[:-1] = 1 - (1 - times[:-1]) * (1 - self.last) / (1 - times[-2])
        return times.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class PowerGrid(Grid):
    """``(1 - i / steps)^rho``, then shifted (Instella-T2I).

    Attributes:
      rho: above 1 steps crowd near the data.
    """

    rho: Positive = 1.0

    def __call__(self, steps: int, process: Gaussian, shift: float = 1.0) -> Times:
        return shift_time(np.linspace(1.0, 0.0, steps + 1) ** self.rho, shift).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LinearQuadraticGrid(Grid):
    """Half of the steps in the first ``share`` of the time, the others ever larger (Movie Gen, 2024), then shifted.

    Attributes:
      share: of the time that the first half of the steps covers.
    """

    share: Inside = 0.025

    def __call__(self, steps: int, process: Gaussian, shift: float = 1.0) -> Times:
        linear = max(steps // 2, 1)
        late = np.maximum(np.arange(steps + 1) - linear, 0)
        slope = self.share / linear
        quadratic = (1 - slope * steps) / max(steps - linear, 1) ** 2
        times = 1 - slope * np.arange(steps + 1) - quadratic * late**2
        times[-1] = 0.0
        return shift_time(times, shift).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class KarrasGrid(Grid):
    """Equal steps of ``(sigma / alpha)^(1 / rho)``, then 0 (Karras et al., 2022), on any process.

    Attributes:
      sigma_max: first sigma / alpha; at most that of the process at t = 1.
      sigma_min: last before 0.
      rho: how much the steps crowd near the data.
    """

    sigma_max: Positive = 80.0
    sigma_min: Positive = 0.002
    rho: Positive = 7.0

    def __call__(self, steps: int, process: Gaussian, shift: float = 1.0) -> Times:
        sigma = np.linspace(self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho), steps) ** self.rho
        return _times_of(process, -np.log(sigma))


@dataclasses.dataclass(frozen=True)
class LogSNRGrid(Grid):
    """Equal steps of the logarithm of the signal-to-noise ratio, then 0.

    Attributes:
      start: first time; below 1 where alpha(1) is 0.
      last: last time before 0.
    """

    start: Time = 0.999
    last: Inside = 0.001

    def __call__(self, steps: int, process: Gaussian, shift: float = 1.0) -> Times:
        with jax.ensure_compile_time_eval():
            ends = [float(process.half_log_snr(t)) for t in np.float32([self.start, self.last])]
        if not np.isfinite(ends).all():
            raise UserError("a log_snr grid needs 0 < last < start, and start below 1 where the process has no signal")
        return _times_of(process, np.linspace(*ends, steps))


def _times_of(process: Gaussian, half_log_snr: np.ndarray) -> Times:
    # A grid is a constant of the compiled sampler, also when it is asked for inside a jitted function.
    with jax.ensure_compile_time_eval():
        return np.append(np.asarray(process.time_of(half_log_snr), np.float32), np.float32(0))


def stagger(times: Times, frames: int, lag: int) -> Float[np.ndarray, "more_points frames"]:
    """A grid per frame, every frame ``lag`` steps behind the one before it.

    ``lag`` 0 denoises all frames together, ``lag`` = steps one after another (autoregression), between lies the
    pyramid of diffusion forcing. There are ``steps + lag·(frames - 1)`` steps; a frame waits as noise, then as data.
    """
    points = len(times) + lag * (frames - 1)
    return times[np.clip(np.arange(points)[:, None] - lag * np.arange(frames), 0, len(times) - 1)]
