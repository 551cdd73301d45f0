"""How clips are drawn from a diffusion transformer: noise, solver, times, guidance, and which frames come first."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen import building, diffusion
from videogen.diffusion.latent_statistics import LatentStatistics
from videogen.errors import UserError, near_matches
from videogen.generators.bit_values import BitsOfIds
from videogen.generators.chunks import Windows
from videogen.generators.sampling import Sampler
from videogen.generators.shortcuts import ATTENTIONS, CACHES, Shortcut
from videogen.generators.stepping import Stepper
from videogen.nn import named_key
from videogen.ranges import Count, Finite, Natural, OneOf, Positive
from videogen.shapes import TokenGrid
from videogen.tokens import Tokens

EXTENSIONS = ("window", "queue", "adaptive_queue")
"""How a video becomes longer than a clip: by windows that begin with the last frames, by a queue of frames, or by a
queue of more frames that windows are denoised of (``adaptive_queue``)."""


SHIFTS: dict[str, Callable[[TokenGrid], float]] = {
    "exponent": lambda grid: diffusion.shift_by_exponent(grid.tokens),
    "frames": lambda grid: diffusion.shift_by_frames(grid.tokens_per_frame, grid.time),
}
"""Shifts of the time that follow the size of the clip: LTX-Video's and Open-Sora 2's, of transformer tokens."""


@dataclasses.dataclass(frozen=True)
class TrainingNoise:
    """What training does with noise; parts are configs ``{name, …}`` of ``diffusion.PARTS``.

    Attributes:
      process: the noise process: of latents, or of the bits of codes (``bernoulli``).
      prediction: what the network predicts of it; of bits ``flip`` or ``x0``.
      time_distribution: how often each noise level is trained.
      weighting: how much it counts; empty is the plain error of the prediction.
      shift: of the times (``diffusion.shift_time``): a number or a name in ``SHIFTS``.
    """

    process: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "rectified_flow"})
    prediction: str = "velocity"
    time_distribution: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "logit_normal"})
    weighting: str = ""
    shift: float | str = 1.0

    def __post_init__(self):
        if isinstance(self.shift, str) and self.shift not in SHIFTS:
            raise UserError(f"unknown shift {self.shift!r}{near_matches(self.shift, SHIFTS)}")

    @property
    def of_bits(self) -> bool:
        """Whether the process is one of bits."""
        return self.process.get("name") in diffusion.BIT_PROCESSES

    def build_process(self) -> diffusion.Process:
        """The process. Latents are normalised: their deviation is 1, and not that of pixels."""
        if self.of_bits and self.weighting:
            raise UserError("errors of bits have one weight: leave model.noise.weighting empty")
        if self.of_bits:
            return diffusion.build("bit_process", self.process, prediction=self.prediction)
        learned = dict(prediction=self.prediction, weighting=self.weighting)
        return diffusion.build("process", {"data_deviation": 1.0, **self.process}, **learned)

    def build_values(self, vocabulary: Sequence[int], channels: int) -> LatentStatistics | BitsOfIds:
        """Between tokens and what the process is of: normalised latents of so many channels, or bits of ids.

        Raises:
          UserError: the process is not one of such tokens.
        """
        if vocabulary and not self.of_bits:
            raise UserError(
                "a flow generator models continuous latents, and this tokenizer makes codes; take one with a Gaussian "
                "bottleneck (config.parts.tokenizer.model.quantizer.name = gaussian), or noise on the bits of codes "
                "(config.model.noise.process.name = bernoulli)"
            )
        if self.of_bits and not vocabulary:
            raise UserError(
                "this noise is on bits, and the tokenizer makes continuous latents; take one of codes, or a process of "
                "floats (config.model.noise.process.name = rectified_flow)"
            )
        return BitsOfIds(vocabulary) if vocabulary else LatentStatistics(channels)

    def build_time_distribution(self) -> Any:
        """The distribution of the times."""
        return diffusion.build("time_distribution", self.time_distribution)


@dataclasses.dataclass(frozen=True)
class FlowSampler(Sampler):
    """How to draw latents or bits; the parts are configs ``{name, …}`` of ``diffusion.PARTS``.

    Attributes:
      steps: of the solver.
      solver: the solver; ``None`` is Euler's. Bits have none: a step draws them.
      grid: the times it visits, before the shift.
      shift: of the times; ``None`` takes that of the model's training. Grids in sigma have none.
      guidance_scale: 1 is none, the conditional prediction alone.
      guidance: how to guide; its scale is ``guidance_scale``.
      lag: steps that every frame stays behind the one before it; 0 draws all frames at once, ``steps`` one after
        another (only for models with ``times="frame"``).
      extension: a name in ``EXTENSIONS``.
      temperature: of bits: divides their logits.
      attention: a config ``{name, …}`` of ``shortcuts.ATTENTIONS``; ``None`` is dense.
      cache: a config ``{name, …}`` of ``shortcuts.CACHES``; ``None`` computes every call.
    """

    steps: Count = 50
    solver: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    grid: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "uniform"}, hash=False)
    shift: Positive | None = None
    guidance_scale: Finite = 5.0
    guidance: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "classifier_free"}, hash=False)
    lag: Natural = 0
    extension: Annotated[str, OneOf(*EXTENSIONS)] = "window"
    temperature: Positive = 1.0
    attention: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    cache: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self):
        super().__post_init__()
        self.build_solver(), self.build_guidance(), self.build_shortcut(), diffusion.build("grid", self.grid)

    def check(self, model: nnx.Module) -> None:
        """Refuses a ``FlowTransformer`` whose training clips it cannot draw.

        Raises:
          UserError: frames are to have times of their own in a model without, the times do not fall, or there is a
            solver for bits or a temperature for latents.
        """
        if model.process.solved and self.temperature != 1:
            raise UserError("latents are drawn without a temperature: leave sampler.temperature at 1")
        if not model.process.solved and self.solver is not None:
            raise UserError("bits are drawn step by step without a solver: leave sampler.solver empty")
        if self.lag and not model.frame_times:
            raise UserError('frames follow one another (sampler.lag) only in a model with times="frame"')
        if self.queued:
            check_queue(model)
        if (shortcut := self.build_shortcut()) is not None:
            shortcut.check(model, self.queued)
        if self.extension == "adaptive_queue":
            Windows.of_steps(model.grid.time, self.steps)
        points = self.points(model.process, model.shift_of(model.grid))
        diffusion.check_times(points, model.process)

    @property
    def queued(self) -> bool:
        """Whether frames come out of a queue one by one."""
        return self.extension in ("queue", "adaptive_queue")

    def build_solver(self) -> diffusion.Solver:
        """The solver."""
        return diffusion.build("solver", {"name": "euler"} if self.solver is None else self.solver)

    def build_shortcut(self) -> Shortcut | None:
        """What is left out; ``None``: nothing.

        Raises:
          UserError: attention and layers are both to be saved: k-means follows tokens from call to call.
        """
        if self.attention is not None and self.cache is not None:
            raise UserError("sampler.attention and sampler.cache do not go together: leave one of them out")
        if self.cache is not None:
            return building.build(CACHES, self.cache, "cache")
        return None if self.attention is None else building.build(ATTENTIONS, self.attention, "attention")

    def times_of(self, model: nnx.Module) -> list[float]:
        return [round(float(time), 6) for time in self.points(model.process, model.shift_of(model.grid))]

    def prepare(self, model: nnx.Module) -> None:
        if (shortcut := self.build_shortcut()) is not None:
            shortcut.verify(model)

    @property
    def compared(self) -> Sampler | None:
        shortcut = self.build_shortcut()
        return dataclasses.replace(self, attention=None, cache=None) if shortcut and shortcut.compare else None

    def build_guidance(self) -> diffusion.Guidance:
        """The guidance with its scale."""
        return diffusion.build_guidance(self.guidance, self.guidance_scale)

    def points(self, process: diffusion.Gaussian, shift: float) -> Float[np.ndarray, "points"]:
        """The times of a frame, falling to 0.

        Args:
          process: the model's.
          shift: the model's; it holds where the sampler has none.
        """
        return diffusion.build("grid", self.grid)(self.steps, process, shift if self.shift is None else self.shift)

    def times(
        self, process: diffusion.Gaussian, shift: float, frames: int, unit: int = 1
    ) -> Float[np.ndarray, "points"] | Float[np.ndarray, "points frames"]:
        """The times of a clip: of all frames, or where they differ of each one.

        Args:
          process: the model's.
          shift: the model's.
          frames: latent frames to draw.
          unit: frames that share a time.
        """
        points = self.points(process, shift)
        return np.repeat(diffusion.stagger(points, frames // unit, self.lag), unit, axis=1) if self.lag else points


def check_queue(model: nnx.Module) -> None:
    """Refuses a ``FlowTransformer`` that knows no times of single frames, or whose tokens are of several frames."""
    if not model.process.solved:
        raise UserError("a queue of frames is of latents, not of bits: leave sampler.extension at window")
    if not model.frame_times or model.patch[0] > 1:
        raise UserError('a queue of frames needs a model with times="frame" and patches of one frame')


def check_prefix(model: nnx.Module, known: int, frames: int) -> None:
    """Refuses ``known`` given latent frames of ``frames``: see ``FlowTransformer.prefixes``."""
    if known and not model.frame_times and not model.prefix_share:
        raise UserError(
            "first frames can be given only to a model that was trained with some (model.prefix_share above 0) or with "
            'times="frame"; without, a video has at most the frames of a training clip'
        )
    if known not in model.prefixes(frames):
        raise UserError(
            f"a prefix must hold whole patches of {model.patch[0]} latent frames and fewer than {frames}, got {known}"
        )


def read_window(window: Sequence[int], causal: bool, unit: int) -> tuple[int, int] | None:
    """A window of ``(frames, sinks)`` latent frames in tokens along time; ``None`` where it is empty.

    Args:
      window: how many of the last frames a frame sees, itself included, and how many of the first.
      causal: whether frames see the past only.
      unit: latent frames of a token.

    Raises:
      UserError: it cannot be.
    """
    if not len(window):
        return None
    frames, sinks = tuple(window) if len(window) == 2 else (0, 0)
    if frames < 1 or sinks < 0 or frames % unit or sinks % unit:
        raise UserError(
            "model.window is (frames, sinks), such as (4, 1): 1 or more frames, 0 or more sinks, both in whole patches "
            f"of {unit} latent frames; got {tuple(window)}"
        )
    if not causal:
        raise UserError("model.window is for frames that see the past only: set model.causal, or leave it empty")
    return frames // unit, sinks // unit


def frame_noise(
    keys: Array, frames: Int[Array, "*batch time"], shape: tuple[int, ...]
) -> Float[Array, "batch time ..."]:
    """White noise of ``shape`` for each of these frames of every example, which each have a stream of their own."""

    def one(key: Array, frame: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 0), frame), shape)

    frames = jnp.broadcast_to(frames, (len(keys), frames.shape[-1]))
    return jax.vmap(lambda key, own: jax.vmap(lambda frame: one(key, frame))(own))(keys, frames)


class FlowWindow(Stepper):
    """The one step of a ``FlowTransformer`` over a window: all of it, from a latent frame on.

    Its memory are the latents of the given frames, ``None`` without. Each example may begin at a frame of its own, of
    those that are given.
    """

    @property
    def frames(self) -> int:
        return self.layout.only.grid.time - self.known

    def begin(self, prefix: Tokens | None) -> Float[Array, "batch time height width channels"] | None:
        self.sampler.check(self.model)
        check_prefix(self.model, self.known, self.layout.only.grid.time)
        return None if prefix is None else prefix.only.values

    def advance(self, memory: Array | None, at: Int[Array, "*batch"]) -> tuple[Array | None, Tokens]:
        model, grid, known = self.model, self.layout.only.grid, self.known
        times = self._times(at)
        start = model.noise(self.keys, 0, grid, times[0])
        given = diffusion.broadcast_right(jnp.arange(known) < jnp.broadcast_to(at, len(start))[:, None], start)
        if memory is not None:
            first = jnp.where(given, model.statistics.normalise(memory), start[:, :known])
            start = start.at[:, :known].set(first)
        latents = model.statistics.restore(self._drawn(start, times))
        if memory is not None:
            latents = latents.at[:, :known].set(jnp.where(given, memory, latents[:, :known]))
        return memory, Tokens.single(latents, self.layout)

    def _drawn(self, start: Array, times: Array) -> Array:
        """What a solver makes of noise, or steps of the process of coins."""
        model, sampler = self.model, self.sampler
        solver = sampler.build_solver()
        calls = (len(times) - 1) * solver.calls
        denoiser = model.denoiser(self.conditioning, sampler, calls)
        if not model.process.solved:
            return diffusion.ancestral(denoiser, model.process, times, start, named_key(self.keys, "steps"))

        def fresh(step: Array) -> Array:
            return diffusion.fresh_noise(self.keys, start.shape[1:], step + 1)

        drawn, memory = diffusion.integrate_with_memory(denoiser, model.process, solver, times, start, fresh)
        if (shortcut := sampler.build_shortcut()) is not None:
            self.measured = shortcut.report(memory[0], calls, model.stack.depth)
        return drawn

    def _times(self, at: Int[Array, "*batch"]) -> Float[Array, "points batch"] | Float[Array, "points batch time"]:
        """The times of the clips, or of their frames: 0 of those that are given, of the others from ``at`` on."""
        model, frames, batch = self.model, self.layout.only.grid.time, len(self.keys)
        drawn = frames - (0 if at.ndim else self.known)
        times = self.sampler.times(model.process, model.shift_of(self.layout.only.grid), drawn, model.patch[0])
        if not self.known and times.ndim == 1:
            return jnp.broadcast_to(jnp.asarray(times)[:, None], (len(times), batch))
        # A constant of the program where the frame is known to it.
        with jax.ensure_compile_time_eval():
            place = jnp.arange(frames) - jnp.broadcast_to(at, batch)[:, None]
            own = jnp.asarray(times)
            own = own[:, jnp.clip(place, 0, drawn - 1)] if own.ndim > 1 else own[:, None, None]
            return jnp.where(place >= 0, own, 0.0)
