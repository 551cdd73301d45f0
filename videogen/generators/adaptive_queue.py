"""Adaptive FIFO diffusion (TokensGen, 2025): a queue of frames denoised by overlapping windows, each of which is told
the tokens that cover its time in the video."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videogen.diffusion.guidance import with_memory
from videogen.diffusion.processes import Step
from videogen.errors import UserError
from videogen.generators.chunks import Windows
from videogen.generators.flow_sampling import check_queue, frame_noise
from videogen.generators.stepping import Stepper
from videogen.shapes import Latents
from videogen.tokens import Tokens

RENOISED = 0.012
"""Variance of the noise that is added to the last frame to make the next one: the last beta of latent diffusion."""


class AdaptiveQueue(Stepper):
    """The steps of a ``FlowTransformer`` with ``times="frame"``: one frame each.

    A frame takes one step in every slot of the queue; the sampler's steps are window × partitions (``chunks.Windows``).
    The memory is the state of the solver, whose leaves lead with ``[batch, slots]`` and move with their frames; a frame
    that is new has a first-order step before it. The first frames are those of an ordinary sampling of a window, each
    as far as its slot says. While the queue is not full its windows begin with its first frame at the earliest, so
    that none reads an empty slot.
    """

    def __post_init__(self):
        check_queue(self.model)
        model, sampler, grid = self.model, self.sampler, self.layout.only.grid
        self.grid = grid.with_time(model.grid.time)
        self.windows = Windows.of_steps(self.grid.time, sampler.steps)
        self.solver = sampler.build_solver()
        self.points = jnp.asarray(sampler.points(model.process, model.shift_of(self.grid)))

    @property
    def frames(self) -> int:
        return 1

    # The queue -------------------------------------------------------------------------------------------------------

    def begin(self, prefix: Tokens | None) -> Any:
        """The queue before its first frame comes out."""
        if prefix is not None:
            raise UserError("a queue of frames begins with noise and takes no first frames; extension=window does")
        rounds = jnp.zeros(len(self.keys), jnp.int32)

        def body(number: Array, queue: Any) -> Any:
            return self.moved(self.denoised(queue, rounds + number), rounds + number)

        return jax.lax.fori_loop(0, self.windows.rounds_before, body, self.filled())

    def advance(self, memory: Any, at: Int[Array, "*batch"]) -> tuple[Any, Tokens]:
        """The queue one frame on, and the frame ``at`` that came out of it."""
        rounds = jnp.broadcast_to(at, len(self.keys)) + self.windows.rounds_before
        queue = self.denoised(memory, rounds)
        frame = self.model.statistics.restore(self.solver.finalize(queue)[:, self.windows.ahead])
        return self.moved(queue, rounds), Tokens.single(frame, self.layout.with_time(1))

    def filled(self) -> Any:
        """The queue with the first window of frames behind empty slots: in each slot the frame has taken as many steps
        of an ordinary sampling as the slot says."""
        batch, window = len(self.keys), self.grid.time
        zero = jnp.zeros((batch, window), jnp.int32)
        start = self.model.noise(self.keys, 0, self.grid, jnp.broadcast_to(self.points[0], (batch, window)))
        state = self.solver.initialize(start, jnp.broadcast_to(self.points[0], (batch, window)))
        at = jnp.zeros(batch, jnp.int32)

        def step(state: Any, number: Array) -> tuple[Any, Any]:
            return self._step(state, zero + number, at), state

        last, before = jax.lax.scan(step, state, jnp.arange(window - 1))
        states = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), before, last)
        # Frame j has taken window - 1 - j steps.
        frames = jnp.arange(window)
        diagonal = jax.tree.map(lambda x: jnp.moveaxis(x[window - 1 - frames, :, frames], 0, 1), states)
        empty = [(0, 0), (self.windows.first_start, 0)]
        return jax.tree.map(lambda x: jnp.pad(x, empty + [(0, 0)] * (x.ndim - 2)), diagonal)

    def denoised(self, queue: Any, rounds: Int[Array, "batch"], over: Callable[..., Any] = jax.lax.map) -> Any:
        """The queue after one step of all its frames.

        Args:
          queue: state of the solver; no window sees what another has written in this round.
          rounds: how many rounds each example has behind it.
          over: maps a function over the windows, one after another or all at once.
        """
        windows = self.windows
        first = jnp.maximum(windows.first_start - rounds, 0)

        def run(start: Array) -> tuple[Any, Array]:
            begins = jnp.maximum(start, first)
            return self._window(queue, begins, rounds), begins

        results, begins = over(run, jnp.asarray(windows.starts))
        parts = [jax.tree.map(lambda x: x[:, : windows.ahead], queue)]
        for number, (low, high) in enumerate(zip(windows.bounds, windows.bounds[1:], strict=False)):
            slot = jnp.arange(low, high)
            inside = slot >= first[:, None]
            place = jnp.clip(slot - begins[number][:, None], 0, windows.window - 1)

            def written(new: Array, old: Array, low=low, high=high, inside=inside, place=place, number=number) -> Array:
                return jnp.where(_like(inside, old), _taken(new[number], place), old[:, low:high])

            parts.append(jax.tree.map(written, results, queue))
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *parts)

    def moved(self, queue: Any, rounds: Int[Array, "batch"]) -> Any:
        """The queue one slot on. The new frame is the last one with a little noise added, so that it stays like it."""
        noise = self._white(rounds + self.windows.window)
        last = self.solver.finalize(queue)[:, -1:]
        renoised = (1 - RENOISED) ** 0.5 * last + RENOISED**0.5 * noise
        new = self.solver.initialize(renoised, jnp.broadcast_to(self.points[0], (len(self.keys), 1)))
        return jax.tree.map(lambda old, fresh: jnp.concatenate([old[:, 1:], fresh], axis=1), queue, new)

    # A window --------------------------------------------------------------------------------------------------------

    def _window(self, queue: Any, begins: Int[Array, "batch"], rounds: Int[Array, "batch"]) -> Any:
        """The state of the frames of a window that begins with a slot, one step on."""
        slots = begins[:, None] + jnp.arange(self.windows.window)
        state = jax.tree.map(lambda x: _taken(x, slots), queue)
        # A slot of clean frames has no step left.
        taken = self.windows.steps - 1 - (slots - self.windows.ahead)
        return self._step(state, taken, begins - self.windows.first_start + rounds)

    def _step(self, state: Any, taken: Int[Array, "batch time"], at: Int[Array, "batch"]) -> Any:
        """A step of every frame of a window that begins with frame ``at``; each has taken so many before."""
        process, sample = self.model.process, self.solver.finalize(state)
        ends = len(self.points) - 1
        time, later = (self.points[jnp.clip(taken + k, 0, ends)] for k in (0, 1))
        told = self.conditioning.beside
        said = self.conditioning
        if told is not None:
            said = dataclasses.replace(said, beside=dataclasses.replace(told, at=jnp.maximum(at, 0)))
        denoiser = with_memory(self.model.denoiser(said, self.sampler))
        memory = denoiser.initialize(sample)
        if jax.tree.leaves(memory):
            raise UserError("a queue of windows takes no guidance with a memory; take guidance.name=classifier_free")

        def denoise(noisy: Latents, t: Array) -> Latents:
            return process.data(denoiser(noisy, t, memory)[0], noisy, t)

        frames = at[:, None] + jnp.arange(sample.shape[1])
        fresh = self._fresh(frames, taken)
        moved = self.solver.update(state, denoise, Step.of(process, time, later, sample), fresh)
        # A clean frame waits as it is, whatever the solver makes of a step of no length.
        return jax.tree.map(lambda new, old: jnp.where(_like(time > 0, old), new, old), moved, state)

    def _fresh(self, frames: Int[Array, "batch time"], taken: Int[Array, "batch time"]) -> Latents:
        """Noise of each frame and each of its steps."""
        shape = (self.grid.height, self.grid.width, self.model.channels)

        def one(key: jax.Array, frame: Array, step: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 1 + step), frame), shape)

        steps = jnp.clip(taken, 0)
        return jax.vmap(lambda key, f, s: jax.vmap(lambda a, b: one(key, a, b))(f, s))(self.keys, frames, steps)

    def _white(self, frame: Int[Array, "batch"]) -> Float[Array, "batch one height width channels"]:
        """White noise of one frame."""
        return frame_noise(self.keys, frame[:, None], (self.grid.height, self.grid.width, self.model.channels))


def _taken(x: Array, index: Int[Array, "batch time"]) -> Array:
    """Entries along the second axis, of each example its own."""
    return jnp.take_along_axis(x, _like(index, x), axis=1)


def _like(small: Array, large: Array) -> Array:
    """``[batch, time]`` with as many axes as another array."""
    return small.reshape(*small.shape, *(1,) * (large.ndim - 2))
