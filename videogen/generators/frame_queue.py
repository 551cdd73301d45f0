"""FIFO diffusion (Kim et al., 2024): a video of any length in the memory of a clip.

A queue holds frames at rising noise levels. A round takes a few steps with all of them, takes out the first, which has
no noise left, and puts noise behind the last.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from videogen.diffusion.guidance import with_memory
from videogen.diffusion.processes import Step
from videogen.errors import UserError
from videogen.generators.flow_sampling import check_queue
from videogen.generators.stepping import Stepper
from videogen.tokens import Tokens

Memory = tuple[Any, Any]
"""The solver's state and the guidance's memory."""


class FrameQueue(Stepper):
    """The steps of a ``FlowTransformer`` with ``times="frame"``: one frame each, which sees those in the queue with it.

    Frames are as in a window with a lag. The queue is as long as a clip of training at most; a frame has ``lag`` steps
    in each place of it, and the sampler's lag is not used. Each example may be at a frame of its own.
    """

    def __post_init__(self):
        check_queue(self.model)
        grid, model, sampler = self.layout.only.grid, self.model, self.sampler
        self.grid = grid.with_time(min(grid.time, model.grid.time))
        self.denoiser = with_memory(model.denoiser(self.conditioning, sampler))
        self.solver = sampler.build_solver()
        self.points = sampler.points(model.process, model.shift_of(self.grid))
        self.lag = -(-sampler.steps // self.grid.time)
        self.slots = -(-sampler.steps // self.lag)

    @property
    def frames(self) -> int:
        return 1

    def begin(self, prefix: Tokens | None) -> Memory:
        """The queue before its first frame comes out: after the rounds in which its later frames wait as noise."""
        if prefix is not None:
            raise UserError("a queue of frames begins with noise and takes no first frames; extension=window does")
        time = jnp.broadcast_to(self.points[0], (len(self.keys), self.slots))
        noise = self.model.noise(self.keys, 0, self.grid.with_time(self.slots), time)
        memory = self.solver.initialize(noise, time), self.denoiser.initialize(noise)
        at = jnp.zeros(len(self.keys), jnp.int32)
        late = self.slots - 1
        return jax.lax.fori_loop(0, late, lambda round_, memory: self._round(memory, round_, at), memory)

    def advance(self, memory: Memory, at: Int[Array, "*batch"]) -> tuple[Memory, Tokens]:
        """The queue one frame on, and the frame ``at`` that came out of it."""
        at = jnp.broadcast_to(at, len(self.keys))
        state, memory = self._round(memory, self.slots - 1, at)
        frame = self.solver.finalize(state)[:, 0]
        time = jnp.broadcast_to(self.points[0], (len(self.keys), 1))
        noise = self.model.noise(self.keys, at + self.slots, self.grid.with_time(1), time)
        new = self.solver.initialize(noise, time), self.denoiser.initialize(noise)
        moved = jax.tree.map(lambda old, last: jnp.concatenate([old[:, 1:], last], axis=1), (state, memory), new)
        return moved, Tokens.single(self.model.statistics.restore(frame), self.layout.with_time(1))

    def _round(self, memory: Memory, newest: Int[Array, ""] | int, at: Int[Array, "batch"]) -> Memory:
        """``lag`` steps with the whole queue; the frame in place ``newest`` takes its first ones, those behind wait."""
        behind = (newest - jnp.arange(self.slots)) * self.lag

        def body(step: Array, memory: Memory) -> Memory:
            return self._step(memory, behind + step, at)

        return jax.lax.fori_loop(0, self.lag, body, memory)

    def _step(self, memory: Memory, index: Int[Array, "slots"], at: Int[Array, "batch"]) -> Memory:
        """A step of every frame from its own point of the grid to the next one; before the first point it waits."""
        state, memory = memory
        points, shape = jnp.asarray(self.points), (len(self.keys), self.slots)
        time, later = (jnp.broadcast_to(points[jnp.clip(index + k, 0, len(points) - 1)], shape) for k in (0, 1))
        sample, process = self.solver.finalize(state), self.model.process

        def denoise(noisy: Array, t: Array) -> Array:
            nonlocal memory
            value, memory = self.denoiser(noisy, t, memory)
            return process.data(value, noisy, t)

        fresh = self._fresh(at, index, sample.shape[2:])
        return self.solver.update(state, denoise, Step.of(process, time, later, sample), fresh), memory

    def _fresh(self, at: Int[Array, "batch"], index: Int[Array, "slots"], shape: tuple[int, ...]) -> Array:
        """Noise for stochastic solvers, of each frame and each of its steps."""

        def one(key: jax.Array, frame: Array, step: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 1 + step), frame), shape)

        frames, steps = at[:, None] + jnp.arange(self.slots), jnp.maximum(index, 0)
        return jax.vmap(lambda key, own: jax.vmap(lambda f, s: one(key, f, s))(own, steps))(self.keys, frames)
