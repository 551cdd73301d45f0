"""Few-step distillation: a student whose single step over an interval of a fixed grid is many steps of its teacher.

At the start of interval i the student predicts the mean velocity of the teacher's path through that interval (the mean
velocity of MeanFlow, Geng et al., 2025, at the few pairs of times a sampler visits), so that one straight step ends
where the teacher's solver does. As in progressive distillation (Salimans and Ho, 2022) the target comes from running
the teacher, guided, through the interval; unlike there one stage serves, and unlike in consistency models (Song et
al., 2023) and MeanFlow no target depends on the student's own predictions or their derivative by time, and the network
needs no second time as its input. The student learns at the states that its own steps lead to from noise, which are the
states it will meet (backward distillation, Kohler et al., 2024).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videogen.diffusion.processes import Gaussian, Sample, Step, broadcast_right
from videogen.diffusion.solvers import DDIM, Euler, Solver, integrate
from videogen.errors import UserError
from videogen.nn import MicroBatch

Grid = Float[Array, "points batch"] | Float[Array, "points batch time"]
"""The falling times of every example, or of every frame of it; a frame that is given is at 0 from the first."""


def check_student(solver: Solver) -> None:
    """Refuses a solver that does not take the straight steps a student learns; DDIM takes the same as Euler."""
    if type(solver) is not Euler and solver != DDIM():
        raise UserError(f"a distilled student takes straight steps, so its solver is euler or ddim, not {solver}")


def substeps_of(solver: Solver, steps: int, intervals: int) -> int:
    """Steps of a teacher in each of the student's intervals.

    Raises:
      UserError: its steps do not divide among them, or it ends elsewhere every time.
    """
    if steps < intervals or steps % intervals:
        raise UserError(f"the teacher's steps are a multiple of the student's {intervals}, got {steps}")
    if getattr(solver, "eta", 0) or getattr(solver, "stochastic", False):
        raise UserError(f"a teacher with fresh noise has no path to learn; its solver is not {solver}")
    return steps // intervals


def rollout(
    denoiser: Callable[[Sample, Array], Sample], process: Gaussian, grid: Grid, start: Sample
) -> Float[Array, "intervals batch ..."]:
    """The states at which the steps of a few-step sampler begin, from ``start`` on; no gradient goes through them.

    Parameters of the denoiser that carry a gradient elsewhere are better stopped by the caller: preparing for a
    gradient that is not asked for costs memory for every step.
    """

    def step(state: Sample, ends: tuple[Array, Array]) -> tuple[Sample, Sample]:
        state = integrate(denoiser, process, Euler(), jnp.stack(ends), state)
        return state, state

    _, states = jax.lax.scan(step, start, (grid[:-2], grid[1:-1]))
    return jax.lax.stop_gradient(jnp.concatenate([start[None], states]))


def mean_velocity(process: Gaussian, start: Sample, end: Sample, time: Array, next_time: Array) -> Sample:
    """The velocity of the straight step (``solvers.Euler``) from ``start`` to ``end``; not a number without a step."""
    step = Step.of(process, time, next_time, start)
    total, next_total = step.alpha + step.sigma, step.next_alpha + step.next_sigma
    return (end / next_total - start / total) / (step.next_sigma / next_total - step.sigma / total)


def distillation_loss(
    student: Callable[[Sample, Array], Sample],
    teacher: Callable[..., Any],
    process: Gaussian,
    solver: Solver,
    grid: Grid,
    states: Float[Array, "intervals batch ..."],
    key: jax.Array,
    *,
    substeps: int,
    micro: MicroBatch | None = None,
) -> Float[Array, ""]:
    """Mean squared difference of the student's velocity and the mean one of the teacher, at a random step each example.

    Args:
      student: denoiser ``(x_t, t) -> prediction``, what the gradient is taken of.
      teacher: such a denoiser, or a guided one (``guidance.Guided``), as ``solvers.sample`` takes.
      process: that of both, which knows what they predict.
      solver: the teacher's, without fresh noise.
      grid: the student's sampling times; frames whose time does not fall are neither moved nor compared.
      states: where every step of the student begins, from ``rollout``.
      key: decides which step each example learns.
      substeps: equal steps of time that the teacher takes in every interval.
      micro: which examples of the batch these are; ``None`` means all.
    """
    micro, (intervals, batch) = micro or MicroBatch(), states.shape[:2]
    which = micro.draw(lambda key, shape: jax.random.randint(key, shape, 0, intervals), key, (batch,))
    rows = jnp.arange(batch)
    state, time, next_time = states[which, rows], grid[which, rows], grid[which + 1, rows]

    shares = (jnp.arange(substeps + 1) / substeps).reshape(-1, *(1,) * time.ndim)
    within = (1 - shares) * time + shares * next_time
    end = integrate(teacher, process, solver, within, state)
    target = jax.lax.stop_gradient(mean_velocity(process, state, end, time, next_time))

    moves = broadcast_right(next_time < time, state)
    alpha, sigma = (broadcast_right(scale, state) for scale in process.scales(time))
    clean = process.data(student(state, time).astype(state.dtype), state, time)
    # A frame that is given has sigma 0; its quotient is not used, and must not be infinite for the gradient's sake.
    velocity = (state - (alpha + sigma) * clean) / jnp.where(moves, sigma, 1.0)
    error = jnp.where(moves, velocity - target, 0.0) ** 2
    return jnp.sum(error) / micro.mean(jnp.sum(jnp.broadcast_to(moves, error.shape)) * 1.0)
