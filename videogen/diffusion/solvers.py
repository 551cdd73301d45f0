"""Solvers of the reverse process and the loop that runs them. They see a denoiser and never a network.

All are written in alpha, sigma and ``h``, the rise of half the log signal-to-noise ratio in a step, so that they run on
every process; a step to sigma = 0 returns the denoiser's data. A sample's time may differ from frame to frame, and a
frame whose time does not fall in a step stays as it is.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from videogen.building import check_fields
from videogen.diffusion.guidance import with_memory
from videogen.diffusion.processes import Gaussian, Process, Sample, Step, broadcast_right
from videogen.errors import UserError
from videogen.nn import draw
from videogen.ranges import Share

Denoise = Callable[[Sample, Array], Sample]
"""(x_t, t) -> the data in it."""


@dataclasses.dataclass(frozen=True)
class Solver:
    """``initialize``, then ``update`` for every step, then ``finalize``. By default the state is the sample."""

    calls = 1
    """How often a step asks the denoiser."""

    def initialize(self, sample: Sample, time: Array) -> Any:
        """The state before the first step; ``time`` is ``[batch]`` or ``[batch, time]``."""
        return sample

    def update(self, state: Any, denoise: Denoise, step: Step, noise: Sample) -> Any:
        """The state after ``step``; ``noise`` is fresh, and costs nothing where it is not used."""
        raise NotImplementedError

    def finalize(self, state: Any) -> Sample:
        """The sample of the last state."""
        return state


def _flow_velocity(sample: Sample, clean: Sample, alpha: Array, sigma: Array) -> Sample:
    return (sample - (alpha + sigma) * clean) / sigma


@dataclasses.dataclass(frozen=True)
class Euler(Solver):
    """Straight steps along the velocity e - x of a rectified flow, to which every process is scaled; order 1."""

    def update(self, state: Sample, denoise: Denoise, step: Step, noise: Sample) -> Sample:
        velocity = _flow_velocity(state, denoise(state, step.time), step.alpha, step.sigma)
        return step.move(state, self._straight(state, velocity, step))

    def _straight(self, sample: Sample, velocity: Sample, step: Step) -> Sample:
        total, next_total = step.alpha + step.sigma, step.next_alpha + step.next_sigma
        return next_total * (sample / total + (step.next_sigma / next_total - step.sigma / total) * velocity)


@dataclasses.dataclass(frozen=True)
class Heun(Euler):
    """The mean of the velocities at both ends of the step; order 2, two calls a step. A step to data is Euler's."""

    calls = 2

    def update(self, state: Sample, denoise: Denoise, step: Step, noise: Sample) -> Sample:
        first = _flow_velocity(state, denoise(state, step.time), step.alpha, step.sigma)
        guess = step.move(state, self._straight(state, first, step))
        second = _flow_velocity(guess, denoise(guess, step.next_time), step.next_alpha, step.next_sigma)
        velocity = jnp.where(step.next_sigma > 0, 0.5 * (first + second), first)
        return step.move(state, self._straight(state, velocity, step))


@dataclasses.dataclass(frozen=True)
class DDIM(Solver):
    """Data and noise estimated and mixed anew (Song et al., 2021); order 1.

    Attributes:
      eta: 0 deterministic, 1 ancestral (DDPM).
    """

    eta: Share = 0.0

    def __post_init__(self):
        check_fields(self)

    def update(self, state: Sample, denoise: Denoise, step: Step, noise: Sample) -> Sample:
        return step.mix(state, denoise(state, step.time), noise, self.eta)


class DPMState(NamedTuple):
    """The sample, and the data estimated and ``h`` of the step that led to it (0 before the first)."""

    sample: Sample
    clean: Sample
    h: Array


def _extrapolate(clean: Sample, before: Sample, h: Array, h_before: Array) -> Sample:
    """The data half a step on, from the last two estimates; the newest alone without a past or on the way to data."""
    return clean + jnp.where((h_before > 0) & jnp.isfinite(h), h / (2 * h_before), 0) * (clean - before)


def _exponential_step(sample: Sample, clean: Sample, step: Step) -> Sample:
    """The exact step were the data estimate constant in it."""
    return step.next_sigma / step.sigma * sample + step.next_alpha * (1 - step.decay) * clean


@dataclasses.dataclass(frozen=True)
class DPMSolver2M(Solver):
    """DPM-Solver++ 2M (Lu et al., 2022): a multistep of order 2, one call a step.

    Attributes:
      stochastic: its form for the stochastic process, which adds fresh noise at every step.
    """

    stochastic: bool = False

    def initialize(self, sample: Sample, time: Array) -> DPMState:
        return DPMState(sample, jnp.zeros_like(sample), jnp.zeros_like(broadcast_right(time, sample)))

    def update(self, state: DPMState, denoise: Denoise, step: Step, noise: Sample) -> DPMState:
        clean, h = denoise(state.sample, step.time), step.h
        estimate = _extrapolate(clean, state.clean, h, state.h)
        if self.stochastic:
            kept, lost = step.decay * step.next_sigma / step.sigma, 1 - step.decay**2
            fresh = step.next_sigma * jnp.sqrt(jnp.maximum(lost, 0)) * noise
            moved = kept * state.sample + step.next_alpha * lost * estimate + fresh
        else:
            moved = _exponential_step(state.sample, estimate, step)
        return DPMState(step.move(state.sample, moved), clean, h)

    def finalize(self, state: DPMState) -> Sample:
        return state.sample


class UniPCState(NamedTuple):
    """The sample and what its correction needs: of the step that led to it, and of the one before that."""

    sample: Sample
    start: Sample
    sigma_ratio: Array
    clean: Sample
    h: Array
    clean_before: Sample
    h_before: Array


@dataclasses.dataclass(frozen=True)
class UniPC(Solver):
    """UniPC-2 with B(h) = exp(-h) - 1 (Zhao et al., 2023): 2M, each step corrected with the call that follows it."""

    def initialize(self, sample: Sample, time: Array) -> UniPCState:
        zero = jnp.zeros_like(broadcast_right(time, sample))
        return UniPCState(sample, sample, zero, jnp.zeros_like(sample), zero, jnp.zeros_like(sample), zero)

    def update(self, state: UniPCState, denoise: Denoise, step: Step, noise: Sample) -> UniPCState:
        clean, h = denoise(state.sample, step.time), step.h
        start = self._correct(state, clean, step)
        moved = _exponential_step(start, _extrapolate(clean, state.clean, h, state.h), step)
        return UniPCState(step.move(start, moved), start, step.next_sigma / step.sigma, clean, h, state.clean, state.h)

    def finalize(self, state: UniPCState) -> Sample:
        return state.sample

    def _correct(self, state: UniPCState, clean: Sample, step: Step) -> Sample:
        """The step that led here once more, now that the data at its end are known."""
        growth = jnp.expm1(-state.h)
        phi = -growth / state.h - 1
        first, second = phi / growth, 2 * (-phi / state.h - 0.5) / growth
        ratio = -state.h_before / state.h
        past = state.h_before > 0
        weight_past = jnp.where(past, (first - second) / (1 - ratio), 0)
        weight_new = jnp.where(past, first - weight_past, 0.5)
        slope_past = jnp.where(past, (state.clean_before - state.clean) / ratio, 0)
        estimate = state.clean + weight_past * slope_past + weight_new * (clean - state.clean)
        corrected = state.sigma_ratio * state.start - step.alpha * growth * estimate
        # A frame that waited has nothing to correct, and data that were reached stay.
        return jnp.where((state.h > 0) & (step.sigma > 0), corrected, state.sample)


def sample(
    denoiser: Callable[..., Any],
    process: Gaussian,
    solver: Solver,
    times: Float[np.ndarray, "points"] | Float[np.ndarray, "points time"],
    keys: jax.Array,
    shape: Sequence[int],
    *,
    start: Sample | None = None,
) -> Sample:
    """Draws samples in one compiled loop. Each example depends on its own key alone, not on the batch around it.

    Args:
      denoiser: ``(x_t, t) -> prediction`` with t ``[batch]`` or ``[batch, time]``. One with a memory, such as
        guidance, has ``initialize(x_t) -> memory`` and is ``(x_t, t, memory) -> (prediction, memory)``.
      process: the noise process it was trained on, which knows what it predicts.
      solver: how to step.
      times: a grid of ``grids``; concrete numbers, also inside a jitted function.
      keys: a random key per example, ``[batch]``.
      shape: of one example.
      start: the samples at ``times[0]``; by default noise. Frames whose time is 0 from the first are conditions.

    Returns:
      ``[batch, *shape]``, float32 (the dtype of ``start``) whatever the denoiser's.

    Raises:
      UserError: the times rise, or the noise is to be predicted where there is nothing else.
    """
    times = np.asarray(times, np.float32)
    check_times(times, process)
    per_example = (len(keys), *times.shape[1:])
    grid = jnp.broadcast_to(jnp.asarray(times)[:, None], (len(times), *per_example))

    if start is None:
        white = fresh_noise(keys, shape, 0)
        start = broadcast_right(process.scales(grid[0])[1], white) * white
    return integrate(denoiser, process, solver, grid, start, lambda step: fresh_noise(keys, shape, step + 1))


def fresh_noise(keys: jax.Array, shape: Sequence[int], stream: int | Array) -> Sample:
    """White noise of ``shape`` for each example by its key: stream 0 is for the start, i + 1 for step i."""
    own = jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys)
    return draw(jax.random.normal, own, (len(keys), *shape))


def check_times(times: Float[np.ndarray, "points ..."], process: Gaussian) -> None:
    """Refuses times that no sample can be drawn along.

    Raises:
      UserError: the times rise, stand still or are no numbers, or the noise is to be predicted where there is nothing
        else.
    """
    falls = np.diff(times, axis=0)
    if len(times) < 2 or not (np.isfinite(times).all() and (falls <= 0).all() and (falls < 0).any()):
        raise UserError("sampling needs a grid of two or more times that never rises")
    with jax.ensure_compile_time_eval():
        if process.prediction == "epsilon" and float(process.scales(times.max())[0]) == 0:
            raise UserError(
                "a prediction of the noise leaves the data open where there is only noise: predict v, x0 or velocity, "
                "or let the grid start below 1"
            )


def integrate(
    denoiser: Callable[..., Any],
    process: Gaussian,
    solver: Solver,
    grid: Float[Array, "points batch"] | Float[Array, "points batch time"],
    start: Sample,
    noise: Callable[[Array], Sample] | None = None,
) -> Sample:
    """Runs a solver along times of every example, or of every frame of it, in one compiled loop.

    Args:
      denoiser: see ``sample``.
      process: the noise process it was trained on, which knows what it predicts.
      solver: how to step.
      grid: times that never rise; unlike those of ``sample`` they may be traced.
      start: the samples at ``grid[0]``.
      noise: number of a step -> its fresh noise; ``None`` for solvers that use none.
    """
    return integrate_with_memory(denoiser, process, solver, grid, start, noise)[0]


def integrate_with_memory(
    denoiser: Callable[..., Any],
    process: Gaussian,
    solver: Solver,
    grid: Float[Array, "points batch"] | Float[Array, "points batch time"],
    start: Sample,
    noise: Callable[[Array], Sample] | None = None,
) -> tuple[Sample, Any]:
    """``integrate``, and the memory of the denoiser after its last call."""
    denoiser = with_memory(denoiser)

    def body(index: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, memory = carry

        def denoise(noisy: Sample, t: Array) -> Sample:
            nonlocal memory
            value, memory = denoiser(noisy, t, memory)
            return process.data(value.astype(noisy.dtype), noisy, t)

        step = Step.of(process, grid[index], grid[index + 1], start)
        fresh = jnp.zeros_like(start) if noise is None else noise(index)
        return solver.update(state, denoise, step, fresh), memory

    carry = (solver.initialize(start, grid[0]), denoiser.initialize(start))
    state, memory = jax.lax.fori_loop(0, len(grid) - 1, body, carry)
    return solver.finalize(state), memory


def ancestral(
    denoiser: Callable[..., Any],
    process: Process,
    grid: Float[Array, "points batch"] | Float[Array, "points batch time"],
    start: Shaped[Array, "batch ..."],
    keys: jax.Array,
) -> Shaped[Array, "batch ..."]:
    """Draws by ``process.step`` from time to time, in one compiled loop: what processes of any family can do.

    Args:
      denoiser: see ``sample``; of bits, ``(x_t, t) -> logits``.
      process: the noise process it was trained on.
      grid: times that never rise, of every example or of every frame of it.
      start: the samples at ``grid[0]``.
      keys: a random key per example.
    """
    denoiser = with_memory(denoiser)

    def body(index: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, memory = carry
        output, memory = denoiser(state, grid[index], memory)
        own = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        return process.step(state, output, grid[index], grid[index + 1], own), memory

    # A guidance remembers outputs, which are floats also where the samples are bits.
    carry = start, denoiser.initialize(start.astype(jnp.float32))
    return jax.lax.fori_loop(0, len(grid) - 1, body, carry)[0]
