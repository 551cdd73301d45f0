"""The video diffusion transformer: a flow (or any process of ``videogen.diffusion``) over latents, or bits of codes.

It is made of the blocks of the other generators, with a modulation by the noise level. That level may be the clip's or
each frame's own (diffusion forcing; Chen et al., 2024): then frames that are given are frames without noise, and clips
may be drawn frame after frame, in a pyramid or through a queue (``frame_queue``).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building, diffusion
from videogen.conditioning import NULL_LABEL, Conditioning, EncodedText, NullableContext
from videogen.errors import UserError, near_matches
from videogen.generators.deep_text import DeepText
from videogen.generators.flow_sampling import SHIFTS, FlowSampler, FlowWindow, TrainingNoise, frame_noise
from videogen.generators.frame_queue import FrameQueue
from videogen.generators.stepping import At, Generator
from videogen.nn import (
    MODULATIONS,
    BlockCausal,
    Embedding,
    ExtraKeys,
    Full,
    LearnedPositions,
    Linear,
    Mask,
    MicroBatch,
    TimeEmbedding,
    draw,
    lay_out,
    modulate,
    named_key,
    patchify,
    read_transformer,
    rotary_angles,
    unpatchify,
    zeros,
)
from videogen.shapes import Latents, TokenGrid
from videogen.tokens import Layout, Tokens

TEXTS = ("cross", "joint", "deep")
"""How tokens see the text: by a cross-attention in every block, as tokens of the same sequence, or in every block as
what a layer of a language model makes of it (``deep_text``)."""

TIMES = ("clip", "frame")
"""Whose noise level training draws: the clip's, or every latent frame's own (diffusion forcing)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """A conditioning as the transformer takes it; the same in every step of a sampler.

    Attributes:
      text: encoded captions, as wide as the transformer.
      label: rows that are added to the time embedding.
      keys: of the text for every layer, with deep fusion.
    """

    text: EncodedText | None
    label: Float[Array, "batch width"] | None
    keys: ExtraKeys | None = None


class FlowTransformer(Generator):
    """Predicts noise, data or velocity of noisy latents, or flips of bits, ``[batch, time, height, width, channels]``.

    Tokens without a place in the picture lie along ``width``.

    Args:
      channels: of the latents.
      grid: ``(time, height, width)`` of the longest training clip in latents.
      transformer: ``{width, layers, heads, mlp_width, …}`` (``nn.TransformerSection``), with layer norms and rotary
        positions where it says nothing; without rotary ones there is a learned table.
      vocabulary: ids of each level where tokens are codes, whose bits are denoised; then there are no ``channels``.
      patch: ``(time, height, width)`` of latents in a token; with images or given frames time is 1.
      text: a name in ``TEXTS``.
      context_width: width of the text features; ``None`` builds a model without text.
      classes: number of class labels, which are added to the time embedding; ``None`` means a model without labels.
      modulation: ``"zero"`` (an own linear layer in each block) or ``"single"`` (one for all, tables in the blocks).
      times: a name in ``TIMES``.
      causal: a frame sees itself and the past only.
      prefix_share: share of the training examples whose first frames are given: without noise, time 0 and loss.
      noise: ``{process, prediction, time_distribution, weighting, shift}``: see ``TrainingNoise``.
      condition_drop: share of examples trained with the null conditioning (for guidance).
    """

    def __init__(
        self,
        channels: int,
        grid: Sequence[int],
        transformer: Mapping[str, Any],
        *,
        vocabulary: Sequence[int] = (),
        patch: Sequence[int] = (1, 2, 2),
        text: str = "cross",
        context_width: int | None = None,
        classes: int | None = None,
        modulation: str = "zero",
        times: str = "clip",
        causal: bool = False,
        prefix_share: float = 0.0,
        noise: Mapping[str, Any] = MappingProxyType({}),
        condition_drop: float = 0.1,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (
            ("text", text, TEXTS),
            ("times", times, TIMES),
            ("modulation", modulation, MODULATIONS),
        ):
            if value not in known:
                raise UserError(f"unknown {name} {value!r}{near_matches(str(value), known)}")
        noise = building.build({"noise": TrainingNoise}, {"name": "noise", **noise}, "section")
        self.process, self.times_of = noise.build_process(), noise.build_time_distribution()
        self.shift = noise.shift
        section = read_transformer(transformer, norm="layer", rotary=True)
        self.statistics = noise.build_values(vocabulary, channels)
        self.channels, self.patch, self.grid = self.statistics.channels, tuple(patch), TokenGrid(*grid)
        places = self.tokens(self.grid).tokens
        self.joint, self.causal, self.frame_times = text == "joint", causal, times == "frame"
        self.prefix_share, self.dropout, self.condition_drop = prefix_share, section.dropout, condition_drop
        self.width = width = section.width
        self.rotary, self.head_width = section.rotary, section.head_width
        size = self.channels * int(np.prod(patch))
        common = dict(dtype=dtype, rngs=rngs)
        self.embed = Linear(size, width, axes=(None, "embed"), **common)
        self.positions = None if section.rotary else LearnedPositions(places, width, rngs=rngs)
        self.time = TimeEmbedding(width, rngs=rngs)
        self.label = Embedding(classes + 1, width, axes=(None, "embed"), rngs=rngs) if classes else None
        deep, plain = (context_width, None) if text == "deep" else (None, context_width)
        self.context = NullableContext(context_width, layered=bool(deep), rngs=rngs) if context_width else None
        self.text_inner = Linear(context_width, width, axes=(None, "embed"), **common) if plain else None
        self.text_outer = Linear(width, width, axes=("embed", None), **common) if plain else None
        self.deep_text = DeepText(context_width, width, **common) if deep else None
        single = modulation == "single"
        self.shared = Linear(width, 6 * width, axes=("embed", None), rngs=rngs) if single else None
        crossed = width if plain and not self.joint else None
        self.stack = section.stack(context_width=crossed, modulation=modulation, remat=remat, **common)
        self.norm = section.last_norm(affine=False, rngs=rngs)
        self.norm_modulation = MODULATIONS[modulation](width, 2, rngs=rngs)
        self.head = Linear(width, size, axes=("embed", None), initializer=zeros, rngs=rngs)

    sampler = FlowSampler
    steppers = MappingProxyType({"window": FlowWindow, "queue": FrameQueue})
    apart = True
    given_frames = 0
    completes = False
    denoises = True
    ends = False
    """It denoises latents: tokens must be continuous, and few steps can be learned from many (distillation)."""
    label_as_vector = True
    """A label is added to the time embedding, and is no key that is attended to."""

    def prefixes(self, frames: int) -> range:
        """How many latent frames may be given of ``frames``; above 0 only where training has given some."""
        return range(0, frames if self.frame_times or self.prefix_share else 1, self.patch[0])

    # The network -----------------------------------------------------------------------------------------------------

    def tokens(self, grid: TokenGrid) -> TokenGrid:
        """The grid of tokens of a grid of latents; raises ``UserError`` where patches do not tile it."""
        sides = zip(("time", "height", "width"), grid.shape, self.patch, strict=True)
        for side, length, part in sides:
            if length % part:
                raise UserError(f"{length} latents along {side} do not divide into patches of {part}")
        return TokenGrid(*(length // part for length, part in zip(grid.shape, self.patch, strict=True)))

    check_grid = tokens

    def shift_of(self, grid: TokenGrid) -> float:
        """The shift of the time for clips of a grid of latents."""
        return SHIFTS[self.shift](self.tokens(grid)) if isinstance(self.shift, str) else self.shift

    def prepare(self, conditioning: Conditioning) -> Prepared:
        """Text and label once for all calls of ``predict``.

        Raises:
          UserError: there is a label but no table for it.
        """
        text = label = keys = None
        if conditioning.label is not None and self.label is None:
            raise UserError("this generator takes no labels; set 'classes' or leave the label out")
        if self.label is not None:
            index = conditioning.label
            index = jnp.full(conditioning.batch_size, NULL_LABEL) if index is None else index
            label = self.label(jnp.where(index < 0, self.label.size - 1, index))
        if self.context is not None:
            features, mask = self.context(dataclasses.replace(conditioning, label=None))
            if self.deep_text is not None:
                keys = self.deep_text(features, mask, self.stack)
            else:
                text = EncodedText(self.text_outer(jax.nn.gelu(self.text_inner(features))), mask)
        return Prepared(text, label, keys)

    def predict(
        self,
        noisy: Latents,
        t: Float[Array, "batch"] | Float[Array, "batch time"],
        prepared: Prepared,
        *,
        key: jax.Array | None = None,
    ) -> Latents:
        """The prediction for normalised latents, or bits, at times ``t`` in [0, 1], of clips or of frames; float32."""
        grid = self.tokens(TokenGrid(*noisy.shape[1:4]))
        noisy = self.process.network_input(noisy, t)
        x = self.embed(patchify(noisy, self.patch))
        if self.positions is not None:
            x = x + self.positions(grid.tokens).reshape(*grid.shape, -1).astype(x.dtype)
        rows = t[:, None] if t.ndim == 1 else t[:, :: self.patch[0]]
        condition = self._condition(rows, prepared)
        rotary = rotary_angles(grid.shape, self.head_width) if self.rotary else None
        if self.joint and prepared.text is not None:
            y = self._joint(x, condition, rotary, prepared, key)
        else:
            text = prepared.text
            y = self.stack(
                x,
                mask=self._mask(grid),
                rotary=rotary,
                context=None if text is None else text.features,
                context_mask=None if text is None else text.mask,
                condition=self._for_blocks(condition),
                attended_axes=3,
                key=key,
                per_layer={} if prepared.keys is None else {"extra_kv": prepared.keys},
            )
        own = condition if self.shared is None else condition[..., None, :]
        shift, scale = lay_out(self.norm_modulation(own), y)
        patches = self.head(modulate(self.norm(y), shift, scale))
        return unpatchify(patches.astype(jnp.float32), self.patch)

    def _condition(self, rows: Float[Array, "batch groups"], prepared: Prepared) -> Float[Array, "batch groups width"]:
        condition = self.time(rows)
        return condition if prepared.label is None else condition + prepared.label[:, None]

    def _for_blocks(self, condition: Float[Array, "batch groups width"]) -> Float[Array, "batch groups ..."]:
        """What the modulation of every block begins with."""
        if self.shared is None:
            return condition
        return self.shared(jax.nn.silu(condition)).reshape(*condition.shape[:-1], 6, self.width)

    def _mask(self, grid: TokenGrid, text: int = 0) -> Mask:
        if not self.causal:
            return Full()
        return BlockCausal(grid.tokens_per_frame, prefix=text, start=text)

    def _joint(
        self,
        x: Float[Array, "batch time height width embed"],
        condition: Float[Array, "batch groups embed"],
        rotary: Float[np.ndarray, "tokens angles"] | None,
        prepared: Prepared,
        key: jax.Array | None,
    ) -> Float[Array, "batch time height width embed"]:
        """The stack over text and video as one sequence. The text is at time 0, as all that is given is."""
        text, batch = prepared.text, x.shape[0]
        grid, length = TokenGrid(*x.shape[1:4]), prepared.text.mask.shape[1]
        given = self._condition(jnp.zeros((batch, 1)), prepared)
        frames = np.repeat(np.arange(grid.time), grid.tokens_per_frame) if condition.shape[1] > 1 else 0
        group_of = np.concatenate([np.zeros(length, int), 1 + np.broadcast_to(frames, grid.tokens)])
        exists = jnp.concatenate([text.mask, jnp.ones((batch, grid.tokens), bool)], axis=1)
        tokens = jnp.concatenate([text.features, x.reshape(batch, grid.tokens, -1)], axis=1)
        y = self.stack(
            tokens,
            mask=self._mask(grid, length),
            key_mask=exists,
            rotary=None if rotary is None else np.pad(rotary, ((length, 0), (0, 0))),
            condition=self._for_blocks(jnp.concatenate([given, condition], axis=1)),
            group_of=group_of,
            key=key,
        )
        return y[:, length:].reshape(x.shape)

    # Training --------------------------------------------------------------------------------------------------------

    def loss(
        self,
        tokens: Tokens,
        conditioning: Conditioning,
        key: jax.Array,
        *,
        train: bool = True,
        micro: MicroBatch | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Weighted mean squared error of the prediction over the frames that are not given, or the cross-entropy of
        bits in nats, and metric ``loss``.

        Times are spread evenly over the batch (stratified). Latents are normalised by the statistics of earlier steps.
        """
        values, grid = tokens.only.values, tokens.layout.only.grid
        latents = values.reshape(len(values), *grid.shape, -1)
        micro, (batch, frames) = micro or MicroBatch(), latents.shape[:2]
        if train:
            conditioning = conditioning.drop_share(self.condition_drop, named_key(key, "drop"), micro)
        clean = self.statistics.normalise(latents)
        t = micro.rows(lambda size: self._draw_times(named_key(key, "time"), size, grid), batch)
        if self.frame_times:
            t = jnp.repeat(t, self.patch[0], axis=1)
        given = jnp.zeros((batch, 1), bool)
        if train and self.prefix_share > 0 and frames > self.patch[0]:
            given = self.draw_given(micro.keys(named_key(key, "given"), batch), frames)
            t = jnp.where(given, 0.0, t if t.ndim == 2 else t[:, None])
        noisy = self.process.corrupt(clean, t, micro.keys(named_key(key, "noise"), batch))
        drop = micro.keys(named_key(key, "dropout"), batch) if train and self.dropout else None
        value = self.predict(noisy.values, t, self.prepare(conditioning), key=drop)
        error = jnp.mean(self.process.loss(value, clean, noisy, t), axis=(2, 3, 4))
        counted = jnp.broadcast_to(~given, error.shape)
        # A sum of the micro-batch over the mean count of the whole batch: its mean is the whole batch's quotient.
        loss = jnp.sum(error) / micro.mean(jnp.sum(counted) * 1.0)
        return loss, {"loss": loss}

    def _draw_times(self, key: jax.Array, batch: int, grid: TokenGrid) -> Float[Array, "batch ..."]:
        """Stratified times of the examples of a batch, or of every frame of a token's."""
        shape = (batch, self.tokens(grid).time) if self.frame_times else (batch,)
        return diffusion.draw_times(self.times_of, self.process, key, shape, shift=self.shift_of(grid), stratified=True)

    def draw_given(self, keys: jax.Array, frames: int) -> Bool[Array, "batch time"]:
        """Which frames are given: of some examples the first ones, at least one and not all; a key for each example."""
        unit, batch = self.patch[0], keys.shape
        counts = functools.partial(jax.random.randint, minval=1, maxval=frames // unit)
        count = unit * draw(counts, named_key(keys, "count"), batch)
        count = jnp.where(draw(jax.random.uniform, named_key(keys, "whether"), batch) < self.prefix_share, count, 0)
        return jnp.arange(frames) < count[:, None]

    # Sampling --------------------------------------------------------------------------------------------------------

    def denoiser(self, conditioning: Conditioning, sampler: FlowSampler) -> Any:
        """``(x_t, t) -> prediction`` of normalised latents or of bits, guided as the sampler says."""
        guided = sampler.guidance_scale != 1 and (self.context is not None or self.label is not None)
        prepared = self.prepare(conditioning.with_null() if guided else conditioning)

        def predict(noisy: Latents, t: Array) -> Latents:
            # Only bits have a temperature.
            return self.predict(noisy, t, prepared) / sampler.temperature

        if not guided:
            return predict

        def pair(noisy: Latents, t: Array) -> tuple[Latents, Latents]:
            return tuple(jnp.split(predict(jnp.concatenate([noisy, noisy]), jnp.concatenate([t, t])), 2))

        return diffusion.Guided(pair, sampler.build_guidance())

    def sample(
        self,
        layout: Layout,
        conditioning: Conditioning,
        keys: jax.Array,
        sampler: FlowSampler,
        prefix: Tokens | None = None,
    ) -> Tokens:
        """As for all generators; a clip no longer than those of training is one window, whatever the extension.

        Height and width of the layout are those of training; a shorter clip begins with the same noise.

        Raises:
          UserError: the prefix leaves no frame to draw, cuts a patch or is more than the model ever saw, or a clip that
            was trained with one time for all its frames should be drawn frame after frame.
        """
        sampler.check(self)
        if layout.only.grid.time <= self.grid.time:
            sampler = dataclasses.replace(sampler, extension="window")
        return super().sample(layout, conditioning, keys, sampler, prefix)

    def noise(self, keys: Array, first: At, grid: TokenGrid, times: Float[Array, "*times"]) -> Latents:
        """What frames from ``first`` on begin with at ``times``, of all or of each clip or frame.

        Every frame of every example has its own stream.
        """
        white = frame_noise(
            keys, jnp.asarray(first)[..., None] + jnp.arange(grid.time), (grid.height, grid.width, self.channels)
        )
        return self.process.start(white, jnp.asarray(times))
