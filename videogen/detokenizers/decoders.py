"""Decoders that turn latents of any tokenizer into video: by denoising, and by regression for comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import diffusion
from videogen.detokenizers.networks import ContextDecoder, Denoiser, Grid
from videogen.detokenizers.pyramid import Pyramid
from videogen.diffusion import Heun, Step, UniformGrid, VariancePreserving, draw_times
from videogen.errors import UserError
from videogen.nn import MicroBatch, Stream, draw, example_keys, named_key
from videogen.ranges import Count, Positive, Weight
from videogen.shapes import Compression, Latents, Video

Cache = tuple[Any, ...]

START = 0
"""Stream of random numbers of the sample that decoding begins with; step i uses stream i + 1."""


class ConditionedDecoder(nnx.Module):
    """What the decoders share: a context decoder and a denoiser over one pyramid.

    Args:
      inputs: width of the latents.
      pyramid: settings of ``Pyramid.of``; its strides are the tokenizer's compression.
      widths: channels of the denoiser's levels.
      context_width: channels of the finest features.
      deeper_strides: spatial strides of the denoiser's levels below the latents' resolution.
      channels: colour channels.
      remat: what the backward pass keeps of each block (``nn.REMAT_POLICIES``).
    """

    last_layer = ("denoiser", "output")
    diffuses = False
    """Whether pixels are drawn by a diffusion process, whose number of steps ``decode`` takes as ``steps``."""

    def __init__(
        self,
        inputs: int,
        pyramid: Pyramid | Mapping[str, Any],
        widths: Sequence[Count],
        *,
        context_width: int = 16,
        deeper_strides: Sequence[Count] = (),
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        pyramid = Pyramid.read(pyramid)
        self.compression: Compression = pyramid.compression
        common = dict(remat=remat, dtype=dtype, rngs=rngs)
        self.context = ContextDecoder(inputs, pyramid, context_width, **common)
        self.denoiser = Denoiser(pyramid, self.context.widths, widths, deeper_strides, channels=channels, **common)
        self.channels = channels

    def denoise(self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None) -> Video:
        """What training compares with ``video``: the clean video that the decoder sees in a noisy one.

        Args:
          latents: of the video.
          video: in [-1, 1].
          key: decides noise and noise levels.
          micro: which examples of the batch these are; ``None`` means all.
        """
        raise NotImplementedError

    def decode(self, latents: Latents) -> Video:
        """Latents to pixels, always the same; frame f depends on latents up to ceil(f/t) only."""
        raise NotImplementedError

    def decode_chunk(self, cache: Cache | None, latents: Latents) -> tuple[Cache, Video]:
        """Decodes the next latents of a clip; all chunks together equal ``decode`` of the whole.

        Args:
          cache: what the call before returned; ``None`` begins a clip. Its size does not grow.
          latents: any number of latent frames.

        Returns:
          The cache for the next chunk, and the chunk's frames.
        """
        raise NotImplementedError


class RegressionDecoder(ConditionedDecoder):
    """The same networks without noise: the deterministic decoder that a diffusion decoder is measured against."""

    def denoise(self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None) -> Video:
        return self.decode(latents)

    def decode(self, latents: Latents) -> Video:
        return self._predict(self.context(latents))

    def decode_chunk(self, cache: Cache | None, latents: Latents) -> tuple[Cache, Video]:
        stream = Stream(cache)
        video = self._predict(self.context(latents, stream), stream)
        return stream.cache, video

    def _predict(self, context: Sequence[Grid], stream: Stream | None = None) -> Video:
        blank = jnp.zeros((*context[0].shape[:-1], self.channels))
        return self.denoiser(blank, jnp.ones(len(blank)), context, stream)


class DiffusionDecoder(ConditionedDecoder):
    """A conditional diffusion model of pixels that predicts the clean video; one such prediction is a decoding.

    The process is variance preserving with the cosine schedule. Decoding starts from reduced noise of a fixed key,
    drawn frame by frame and the same for every clip: it depends on nothing but the latents. Chunks keep the left
    context of every diffusion step apart, since each step sees the clip at another noise level.

    Args:
      inputs: width of the latents.
      pyramid: see ``ConditionedDecoder``, also for the settings not named here.
      widths: channels of the denoiser's levels.
      noise_steps: steps of the discrete process.
      time_distribution: which noise levels training draws, ``{name, …}`` (``diffusion.TIME_DISTRIBUTIONS``).
      shift: moves them towards noise, where decoding in one step happens (``diffusion.shift_time``).
      steps: diffusion steps of a decoding; more than one take predictions at falling noise levels.
      temperature: standard deviation of the noise that decoding starts from.
      solver: ``{name, …}`` (``diffusion.SOLVERS``); one that calls the denoiser once a step.
    """

    diffuses = True

    def __init__(
        self,
        inputs: int,
        pyramid: Pyramid | Mapping[str, Any],
        widths: Sequence[Count],
        *,
        noise_steps: Count = 8192,
        time_distribution: Mapping[str, Any] | None = None,
        shift: Positive = 1.0,
        steps: Count = 1,
        temperature: Weight = 0.8,
        solver: Mapping[str, Any] | None = None,
        context_width: int = 16,
        deeper_strides: Sequence[Count] = (),
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.process = VariancePreserving("cosine", noise_steps, prediction="x0")
        self.times_of = diffusion.build("time_distribution", time_distribution or {"name": "uniform"})
        self.solver = diffusion.build("solver", solver or {"name": "ddim"})
        if isinstance(self.solver, Heun):
            raise UserError("heun calls the denoiser twice a step, which decoding in chunks cannot; use dpm_2m or ddim")
        self.shift, self.steps, self.temperature = shift, steps, temperature
        super().__init__(
            inputs,
            pyramid,
            widths,
            context_width=context_width,
            deeper_strides=deeper_strides,
            channels=channels,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )

    def denoise(self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None) -> Video:
        micro = micro or MicroBatch()

        def times(batch: int) -> Float[Array, "batch"]:
            return draw_times(
                self.times_of, self.process, named_key(key, "time"), (batch,), shift=self.shift, stratified=True
            )

        time = micro.rows(times, len(video))
        noisy = self.process.corrupt(video, time, micro.keys(named_key(key, "noise"), len(video)))
        return self.denoiser(noisy.values, time, self.context(latents))

    def decode(self, latents: Latents, *, steps: int | None = None) -> Video:
        """Latents to pixels, always the same; frame f depends on latents up to ceil(f/t) only.

        Args:
          latents: as the decoder was trained on.
          steps: diffusion steps; ``None`` takes the setting.
        """
        video, _ = self._sample(self.context(latents), steps or self.steps, 0, None, chunked=False)
        return video

    def decode_chunk(self, cache: Cache | None, latents: Latents) -> tuple[Cache, Video]:
        begun, features, levels = (0, None, None) if cache is None else cache
        stream = Stream(features)
        video, levels = self._sample(self.context(latents, stream), self.steps, begun, levels, chunked=True)
        return (jnp.asarray(begun + video.shape[1], jnp.int32), stream.cache, levels), video

    def times(self, steps: int) -> Float[np.ndarray, "points"]:
        """The times of a decoding in so many steps, falling to 0."""
        return UniformGrid()(steps, self.process)

    def begin(self, latents: Latents, key: jax.Array) -> tuple[Video, diffusion.Denoise]:
        """What a decoding begins with, where ``key`` decides the noise, and the denoiser ``(x_t, t) -> video``.

        ``key`` is one, or one of each clip.
        """
        context = self.context(latents)
        shape = self._video_shape(context)
        start = self.temperature * draw(jax.random.normal, example_keys(key, shape[0]), shape)
        return start, lambda noisy, t: self.denoiser(noisy, t, context)

    def _video_shape(self, context: Sequence[Grid]) -> tuple[int, ...]:
        return (*context[0].shape[:-1], self.channels)

    def noise(self, stream: int | Array, begun: int | Array, shape: Sequence[int]) -> Float[Array, "time h w channel"]:
        """Standard normal frames ``begun``, ``begun`` + 1, … of a clip; each depends on its own number alone.

        Args:
          stream: ``START``, or the number of a step.
          begun: frames of the clip before these.
          shape: ``(frames, height, width, channels)``.
        """
        key = jax.random.fold_in(jax.random.key(0), stream)
        keys = jax.vmap(lambda frame: jax.random.fold_in(key, frame))(begun + jnp.arange(shape[0]))
        return jax.vmap(lambda key: jax.random.normal(key, tuple(shape[1:])))(keys)

    def _sample(
        self, context: Sequence[Grid], steps: int, begun: int | Array, past: Any, *, chunked: bool
    ) -> tuple[Video, Any]:
        """The frames that the solver finds, and the left context of every step, stacked; ``past`` is that before."""
        shape = self._video_shape(context)
        start = jnp.broadcast_to(self.temperature * self.noise(START, begun, shape[1:]), shape)
        times = jnp.asarray(self.times(steps))

        def step(state: Any, scanned: tuple) -> tuple[Any, Any]:
            index, time, next_time, past = scanned
            stream = Stream(past) if chunked else None

            def denoise(noisy: Video, time: Float[Array, "batch"]) -> Video:
                return self.denoiser(noisy, time, context, stream)

            here, there = (jnp.broadcast_to(t, shape[:1]) for t in (time, next_time))
            fresh = jnp.broadcast_to(self.noise(index + 1, begun, shape[1:]), shape)
            state = self.solver.update(state, denoise, Step.of(self.process, here, there, start), fresh)
            return state, stream.cache if chunked else None

        state = self.solver.initialize(start, jnp.broadcast_to(times[0], shape[:1]))
        scanned = (jnp.arange(steps), times[:-1], times[1:], past)
        state, kept = jax.lax.scan(step, state, scanned, unroll=steps == 1)
        return self.solver.finalize(state), kept
