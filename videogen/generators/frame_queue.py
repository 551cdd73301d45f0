"""FIFO diffusion (Kim et al., 2024): a video of any length in the memory of a clip.

A queue holds frames at rising noise levels. A round takes a few steps with all of them, takes out the first, which has
no noise left, and puts noise behind the last.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.conditioning import Conditioning
from videogen.diffusion.guidance import with_memory
from videogen.diffusion.processes import Step
from videogen.generators.flow_sampling import FlowSampler, check_queue
from videogen.shapes import TokenGrid

Carry = tuple[Any, Any, Int[Array, ""]]
"""The solver's state, the guidance's memory, and the number of the queue's first frame."""


class FrameQueue:
    """Frames as ``FlowTransformer.sample`` draws them with a lag, but each sees only those in the queue with it.

    The queue is as long as a clip at most; a frame has ``lag`` steps in each place of it.

    Args:
      model: a ``FlowTransformer`` with ``times="frame"``.
      grid: of the latents of a training clip.
      conditioning: one entry per example.
      keys: one random key per example.
      sampler: how to draw; its lag is not used.

    Raises:
      UserError: the model knows no times of single frames, or its tokens are of several frames.
    """

    def __init__(
        self, model: nnx.Module, grid: TokenGrid, conditioning: Conditioning, keys: Array, sampler: FlowSampler
    ):
        check_queue(model)
        self.model, self.grid, self.keys = model, grid, keys
        self.denoiser, self.solver = with_memory(model.denoiser(conditioning, sampler)), sampler.build_solver()
        self.points = sampler.points(model.process, model.shift_of(grid))
        self.lag = -(-sampler.steps // grid.time)
        self.slots = -(-sampler.steps // self.lag)

    def begin(self) -> Carry:
        """The queue before its first frame comes out: after the rounds in which its later frames wait as noise."""
        time = jnp.broadcast_to(self.points[0], (len(self.keys), self.slots))
        noise = self.model.noise(self.keys, 0, self.grid.with_time(self.slots), self.points[0])
        carry = self.solver.initialize(noise, time), self.denoiser.initialize(noise), jnp.zeros((), jnp.int32)
        late = self.slots - 1
        return jax.lax.fori_loop(0, late, lambda round_, carry: self._round(carry, round_), carry)

    def advance(self, carry: Carry) -> tuple[Carry, Float[Array, "batch height width channels"]]:
        """The queue one frame on, and the frame that came out of it, as the tokenizer takes it."""
        state, memory, first = self._round(carry, self.slots - 1)
        frame = self.solver.finalize(state)[:, 0]
        time = jnp.broadcast_to(self.points[0], (len(self.keys), 1))
        noise = self.model.noise(self.keys, first + self.slots, self.grid.with_time(1), self.points[0])
        new = self.solver.initialize(noise, time), self.denoiser.initialize(noise)
        moved = jax.tree.map(lambda old, last: jnp.concatenate([old[:, 1:], last], axis=1), (state, memory), new)
        return (*moved, first + 1), self.model.statistics.restore(frame)

    def _round(self, carry: Carry, newest: Int[Array, ""] | int) -> Carry:
        """``lag`` steps with the whole queue; the frame in place ``newest`` takes its first ones, those behind wait."""
        behind = (newest - jnp.arange(self.slots)) * self.lag

        def body(step: Array, carry: Carry) -> Carry:
            return self._step(carry, behind + step)

        return jax.lax.fori_loop(0, self.lag, body, carry)

    def _step(self, carry: Carry, index: Int[Array, "slots"]) -> Carry:
        """A step of every frame from its own point of the grid to the next one; before the first point it waits."""
        state, memory, first = carry
        points, shape = jnp.asarray(self.points), (len(self.keys), self.slots)
        time, later = (jnp.broadcast_to(points[jnp.clip(index + k, 0, len(points) - 1)], shape) for k in (0, 1))
        sample, process = self.solver.finalize(state), self.model.process

        def denoise(noisy: Array, t: Array) -> Array:
            nonlocal memory
            value, memory = self.denoiser(noisy, t, memory)
            return process.data(value, noisy, t)

        fresh = self._fresh(first, index, sample.shape[2:])
        state = self.solver.update(state, denoise, Step.of(process, time, later, sample), fresh)
        return state, memory, first

    def _fresh(self, first: Array, index: Array, shape: tuple[int, ...]) -> Array:
        """Noise for stochastic solvers, of each frame and each of its steps."""

        def one(key: jax.Array, frame: Array, step: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 1 + step), frame), shape)

        frames = first + jnp.arange(self.slots)
        return jax.vmap(lambda key: jax.vmap(lambda f, s: one(key, f, s))(frames, jnp.maximum(index, 0)))(self.keys)
