"""Ordered 1-D tokens whose decoder is a rectified flow (FlexTok; Bachmann et al., ICML 2025): fewer tokens leave more
open, and what is open is drawn and not averaged."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building, diffusion
from videogen.denoisers import RegisterDenoiser
from videogen.nn import (
    FULL,
    Linear,
    MicroBatch,
    example_keys,
    named_key,
    parameter,
    patchify,
    read_transformer,
    truncated_normal,
    unpatchify,
)
from videogen.ranges import Count, Finite, Positive, Share, Triple
from videogen.shapes import Latents, Video
from videogen.tokenizers.base import Compared, Encoded
from videogen.tokenizers.one_d import Queried

VELOCITY = "velocity"
"""The pass of a flow: the velocity ``noise - data`` that is predicted, beside the true one."""

EARLY = "early"
"""The feature that stands for early hidden states of a decoder, at the places of its patches."""


def _named(name: str) -> Any:
    """A field that holds a section ``{name, …}``, by default of this name."""
    return dataclasses.field(default_factory=lambda: {"name": name}, hash=False)


@dataclasses.dataclass(frozen=True)
class Flow:
    """How a flow decoder learns and draws; parts are configs ``{name, …}`` of ``diffusion.PARTS``.

    Attributes:
      null_share: share of the training examples whose registers are all the null vector.
      time_distribution: how often each noise level is trained.
      shift: of the times, in training and in drawing (``diffusion.shift_time``).
      steps: of a decoding.
      solver: of a decoding.
      guidance_scale: 1 is none, the prediction from the registers alone.
      guidance: how to guide; its scale is ``guidance_scale``.
    """

    null_share: Share = 0.1
    time_distribution: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "logit_normal"}, hash=False
    )
    shift: Positive = 1.0
    steps: Count = 20
    solver: Mapping[str, Any] = _named("euler")
    guidance_scale: Finite = 7.5
    guidance: Mapping[str, Any] = _named("adaptive_projected")


class OneDFlow(Queried):
    """Clips of one fixed shape become ``queries`` codes, of which any first part decodes to a plausible clip.

    The decoder predicts the velocity of noisy patches from codes as registers. A register whose code is dropped
    (nested dropout, by the length rule) is one learned vector, ``no_code``; in training those of some examples are all
    another one, ``null``, which guidance compares with. Decoding draws: it depends on the codes and on noise keys.

    Args:
      clip: ``(frames, height, width)`` of every clip; an image is a clip of one frame.
      patch: ``(time, height, width)`` of a patch, a divisor of the clip.
      queries: number of codes of a clip.
      encoder: section of the transformer over [patches; queries] (``nn.read_transformer``), with layer norms.
      decoder: section of the transformer over [noisy patches; registers], with layer norms.
      quantizer: quantizer config ``{name, …}``.
      lengths: length rule ``{name, …}``; without one every code is seen.
      query_scale: standard deviation of the fresh queries, and of the fresh places of registers.
      flow: settings of ``Flow``.
      channels: colour channels, or those of latents.
      normalise: what is coded are latents of any scale.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    last_layer = ("decoder", *RegisterDenoiser.last_layer)
    diffuses = True

    def __init__(
        self,
        clip: Triple,
        patch: Triple,
        queries: Count,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        quantizer: Mapping[str, Any],
        *,
        lengths: Mapping[str, Any] | None = None,
        query_scale: Positive = 0.02,
        flow: Mapping[str, Any] | None = None,
        channels: Count = 3,
        normalise: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.flow = building.build({"flow": Flow}, {"name": "flow", **(flow or {})}, "section")
        self.process = diffusion.RectifiedFlow()
        self.times_of = diffusion.build("time_distribution", self.flow.time_distribution)
        self.solver = diffusion.build("solver", self.flow.solver)
        self.guidance(self.flow.guidance_scale)
        read, write = (read_transformer(section, norm="layer") for section in (encoder, decoder))
        made_with = dict(remat=remat, dtype=dtype, rngs=rngs)
        about = dict(lengths=lengths, query_scale=query_scale, channels=channels, normalise=normalise)
        super().__init__(clip, patch, queries, read, quantizer, **about, **made_with)
        self.from_code = Linear(
            self.quantizer.width, write.width, axes=(None, "embed"), precision=FULL, dtype=dtype, rngs=rngs
        )
        self.no_code = parameter(rngs, (write.width,), (None,), truncated_normal(0.02))
        self.null = parameter(rngs, (write.width,), (None,), truncated_normal(0.02))
        self.decoder = RegisterDenoiser(self.places, self.area, queries, write, order_scale=query_scale, **made_with)

    @property
    def features(self) -> dict[str, int]:
        return {**super().features, EARLY: self.no_code.get_value().shape[0]}

    def guidance(self, scale: float) -> diffusion.Guidance:
        """The guidance at a scale."""
        return diffusion.build_guidance(self.flow.guidance, scale)

    def registers(
        self, latents: Latents, kept: Bool[Array, "batch queries"] | None = None
    ) -> Float[Array, "batch queries width"]:
        """What the decoder sees of codes; of those that are not kept it sees ``no_code``."""
        registers = self.from_code(latents)
        if kept is None:
            return registers
        return jnp.where(kept[..., None], registers, self.no_code.get_value().astype(registers.dtype))

    def nulls(self, batch: int) -> Float[Array, "batch queries width"]:
        """The registers of an example of which nothing is said."""
        null = self.null.get_value().astype(self.dtype)
        return jnp.broadcast_to(null, (batch, len(self.queries.get_value()), len(null)))

    def velocity(
        self, noisy: Video, t: Float[Array, "batch"], registers: Float[Array, "batch queries width"]
    ) -> tuple[Video, Float[Array, "batch time height width embed"]]:
        """The velocity of normalised clips at times ``t``, and ``EARLY`` hidden states of the decoder."""
        patches = patchify(noisy.astype(self.dtype), self.patch)
        found = self.decoder(patches.reshape(len(noisy), math.prod(self.places), -1), t, registers)
        values, early = (x.reshape(len(noisy), *self.places, -1) for x in found)
        return unpatchify(values, self.patch), early

    # Training --------------------------------------------------------------------------------------------------------

    def compare(
        self,
        encoded: Encoded,
        latents: Latents,
        video: Video,
        key: jax.Array,
        micro: MicroBatch | None = None,
        kept: Bool[Array, "batch queries"] | None = None,
    ) -> Compared:
        """The velocity of the noisy clip beside the true one, and the clip that follows from it."""
        micro, batch = micro or MicroBatch(), len(video)

        def times(size: int) -> Float[Array, "size"]:
            own = named_key(key, "time")
            return diffusion.draw_times(
                self.times_of, self.process, own, (size,), shift=self.flow.shift, stratified=True
            )

        clean, t = self.normalised_input(video), micro.rows(times, batch)
        noisy = self.process.corrupt(clean, t, micro.keys(named_key(key, "noise"), batch))
        dropped = micro.draw(jax.random.uniform, named_key(key, "null"), (batch, 1, 1)) < self.flow.null_share
        registers = jnp.where(dropped, self.nulls(batch), self.registers(latents, kept))
        value, early = self.velocity(noisy.values, t, registers)
        pair = value, self.process.target(clean, noisy.noise, t)
        seen = self.restored(self.process.data(value, noisy.values, t))
        sums = {} if self.statistics is None else self.statistics.sums(video)
        return Compared(seen, {VELOCITY: pair}, {EARLY: early}, sums)

    def denoise(
        self,
        latents: Latents,
        video: Video,
        key: jax.Array,
        micro: MicroBatch | None = None,
        kept: Bool[Array, "batch queries"] | None = None,
    ) -> Video:
        return self.compare(Encoded(latents), latents, video, key, micro, kept).video

    # Drawing ---------------------------------------------------------------------------------------------------------

    def denoiser(
        self, latents: Latents, kept: Bool[Array, "batch queries"] | None = None, guidance_scale: float = 1.0
    ) -> Any:
        """``(x_t, t) -> velocity`` of normalised clips, guided or not, for ``diffusion.sample``."""
        registers = self.registers(latents, kept)
        if guidance_scale == 1:
            return lambda noisy, t: self.velocity(noisy, t, registers)[0]
        both = jnp.concatenate([registers, self.nulls(len(latents))])

        def pair(noisy: Video, t: Array) -> tuple[Video, Video]:
            return tuple(jnp.split(self.velocity(jnp.concatenate([noisy] * 2), jnp.concatenate([t] * 2), both)[0], 2))

        return diffusion.Guided(pair, self.guidance(guidance_scale))

    def decode(
        self,
        latents: Latents,
        kept: Bool[Array, "batch queries"] | None = None,
        *,
        keys: jax.Array | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Video:
        """Draws the clips of quantised latents; no example depends on the others.

        Args:
          latents: ``[batch, queries, width]``.
          kept: those that may be seen; ``None``: all.
          keys: of the noise, one or one of each example; ``None``: the same noise for every clip, always.
          steps: of the solver; ``None`` takes the setting.
          guidance_scale: 1 is none; ``None`` takes the setting.
        """
        batch, shape = len(latents), (self.clip.frames, self.clip.height, self.clip.width, self.channels)
        keys = jnp.broadcast_to(jax.random.key(0), (batch,)) if keys is None else example_keys(keys, batch)
        scale = self.flow.guidance_scale if guidance_scale is None else guidance_scale
        times = diffusion.UniformGrid()(steps or self.flow.steps, self.process, self.flow.shift)
        denoiser = self.denoiser(latents, kept, scale)
        return self.restored(diffusion.sample(denoiser, self.process, self.solver, times, keys, shape))
