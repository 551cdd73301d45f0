"""The video diffusion transformer: a flow (or any process of ``videogen.diffusion``) over latents, or bits of codes.

The network is ``denoisers.VideoTransformer``. The noise level may be the clip's or each frame's own (diffusion forcing;
Chen et al., 2024): then frames that are given are frames without noise, and clips may be drawn frame after frame, in a
pyramid or through a queue (``frame_queue``).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building, diffusion
from videogen.conditioning import NULL_LABEL, Conditioning, EncodedText, NullableContext
from videogen.denoisers import Prepared, VideoTransformer, read_denoiser
from videogen.errors import UserError, near_matches
from videogen.generators.adaptive_queue import AdaptiveQueue
from videogen.generators.deep_text import DeepText
from videogen.generators.denoising import denoiser_of
from videogen.generators.flow_sampling import SHIFTS, FlowSampler, FlowWindow, TrainingNoise, frame_noise, read_window
from videogen.generators.frame_queue import FrameQueue
from videogen.generators.shortcuts import Call
from videogen.generators.stepping import At, Generator
from videogen.nn import (
    BlockWindow,
    Embedding,
    Linear,
    Mask,
    MicroBatch,
    draw,
    named_key,
    patchify,
)
from videogen.ranges import Natural
from videogen.shapes import Latents, TokenGrid
from videogen.tokens import Layout, Tokens

TEXTS = ("cross", "joint", "deep")
"""How tokens see the text: by a cross-attention in every block, as tokens of the same sequence, or in every block as
what a layer of a language model makes of it (``deep_text``)."""


@dataclasses.dataclass(frozen=True)
class SeenText:
    """How much of a text is seen.

    Attributes:
      length: rows of every text, of which those behind its last token are zeros; 0: the tokens that it has.
    """

    length: Natural = 0


TIMES = ("clip", "frame")
"""Whose noise level training draws: the clip's, or every latent frame's own (diffusion forcing)."""


class FlowTransformer(VideoTransformer, Generator):
    """Predicts noise, data or velocity of noisy latents, or flips of bits, ``[batch, time, height, width, channels]``.

    Tokens without a place in the picture lie along ``width``.

    Args:
      channels: of the latents.
      grid: ``(time, height, width)`` of the longest training clip in latents.
      transformer: ``{width, layers, heads, mlp_width, …}`` (``nn.TransformerSection``), with layer norms and rotary
        positions where it says nothing; without rotary ones there is a learned table. ``rotary`` may be a section
        ``{name, …}`` of ``denoisers.ROTARY``: positions that follow the frame rate of the clips.
      vocabulary: ids of each level where tokens are codes, whose bits are denoised; then there are no ``channels``.
      patch: ``(time, height, width)`` of latents in a token; with images or given frames time is 1.
      text: a name in ``TEXTS``, or ``{name, length}``: the rows of every text (``conditioning.NullableContext``).
      context_width: width of the text features; ``None`` builds a model without text.
      classes: number of class labels, which are added to the time embedding; ``None`` means a model without labels.
      modulation: ``"zero"`` (an own linear layer in each block) or ``"single"`` (one for all, tables in the blocks).
      times: a name in ``TIMES``.
      causal: a frame sees itself and the past only.
      window: ``(frames, sinks)``, in latents: of the past a frame sees the last ``frames``, itself included, and the
        first ``sinks``; in training and sampling alike. Empty: all of it. Only with ``causal``.
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
        text: str | Mapping[str, Any] = "cross",
        context_width: int | None = None,
        classes: int | None = None,
        modulation: str = "zero",
        times: str = "clip",
        causal: bool = False,
        window: Sequence[int] = (),
        prefix_share: float = 0.0,
        noise: Mapping[str, Any] = MappingProxyType({}),
        condition_drop: float = 0.1,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if times not in TIMES:
            raise UserError(f"unknown times {times!r}{near_matches(str(times), TIMES)}")
        section = {"name": text} if isinstance(text, str) else text
        seen = building.build(dict.fromkeys(TEXTS, SeenText), section, "text")
        text = section["name"]
        if seen.length and text == "deep":
            raise UserError("texts of deep fusion have a mask: leave model.text.length out")
        noise = building.build({"noise": TrainingNoise}, {"name": "noise", **noise}, "section")
        self.process, self.times_of = noise.build_process(), noise.build_time_distribution()
        self.shift = noise.shift
        self.statistics = noise.build_values(vocabulary, channels)
        deep, plain = (context_width, None) if text == "deep" else (None, context_width)
        joint, common = text == "joint", dict(dtype=dtype, rngs=rngs)
        width = read_denoiser(transformer)[0].width
        super().__init__(
            self.statistics.channels,
            grid,
            transformer,
            patch=patch,
            context_width=width if plain and not joint else None,
            joint=joint,
            modulation=modulation,
            causal=causal,
            remat=remat,
            **common,
        )
        self.frame_times, self.prefix_share, self.condition_drop = times == "frame", prefix_share, condition_drop
        self.window = read_window(window, causal, self.patch[0])
        self.label = Embedding(classes + 1, width, axes=(None, "embed"), rngs=rngs) if classes else None
        self.context = (
            NullableContext(context_width, length=seen.length, layered=bool(deep), rngs=rngs) if context_width else None
        )
        self.text_inner = Linear(context_width, width, axes=(None, "embed"), **common) if plain else None
        self.text_outer = Linear(width, width, axes=("embed", None), **common) if plain else None
        self.deep_text = DeepText(context_width, width, **common) if deep else None

    sampler = FlowSampler
    steppers = MappingProxyType({"window": FlowWindow, "queue": FrameQueue, "adaptive_queue": AdaptiveQueue})
    apart = True
    given_frames = 0
    completes = False
    denoises = True
    ends = False
    """It denoises latents: tokens must be continuous, and few steps can be learned from many (distillation)."""
    any_size = property(lambda self: self.positions is None)
    label_as_vector = True
    """A label is added to the time embedding, and is no key that is attended to."""

    def prefixes(self, frames: int) -> range:
        """How many latent frames may be given of ``frames``; above 0 only where training has given some."""
        return range(0, frames if self.frame_times or self.prefix_share else 1, self.patch[0])

    # The network -----------------------------------------------------------------------------------------------------

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
        return Prepared(text, label, keys, rate=conditioning.rate)

    def read(self, prepared: Prepared) -> Prepared:
        """With the keys and values of the cross-attentions, which are the same in every step."""
        if prepared.text is None or self.joint or not self.stack.depth:
            return prepared
        return dataclasses.replace(prepared, read=self.stack.read(prepared.text.features))

    def predict(
        self,
        noisy: Latents,
        t: Float[Array, "batch"] | Float[Array, "batch time"],
        prepared: Prepared,
        *,
        key: jax.Array | None = None,
        shortcut: Call | None = None,
    ) -> Latents:
        """The prediction for normalised latents, or bits, at times ``t`` in [0, 1], of clips or of frames; float32.

        A ``shortcut`` runs the layers in its own way.
        """
        layers = None if shortcut is None else functools.partial(shortcut.run, self.stack)
        return self.network(self.process.network_input(noisy, t), t, prepared, key=key, layers=layers)

    def _mask(self, grid: TokenGrid, text: int = 0) -> Mask:
        mask = super()._mask(grid, text)
        return mask if self.window is None else mask & BlockWindow(grid.tokens_per_frame, *self.window, start=text)

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
        bits in nats, and metric ``loss``. Tokens that do not exist are in no loss and no attention.

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
        exists = tokens.only.exists
        prepared = dataclasses.replace(self.prepare(conditioning), exists=self._exists(exists, grid))
        value = self.predict(noisy.values, t, prepared, key=drop)
        error, counted = self._errors(self.process.loss(value, clean, noisy, t), exists, grid)
        counted = jnp.broadcast_to(~given, error.shape) * counted
        # A sum of the micro-batch over the mean count of the whole batch: its mean is the whole batch's quotient.
        loss = jnp.sum(error) / micro.mean(jnp.sum(counted) * 1.0)
        return loss, {"loss": loss}

    @staticmethod
    def _errors(error: Latents, exists: Array | None, grid: TokenGrid) -> tuple[Float[Array, "batch time"], Any]:
        """The mean error of each frame, summed over the share of it that exists, and that share."""
        if exists is None:
            return jnp.mean(error, axis=(2, 3, 4)), 1
        there = exists.reshape(len(error), *grid.shape)
        return jnp.mean(jnp.where(there[..., None], error, 0), axis=(2, 3, 4)), jnp.mean(there * 1.0, axis=(2, 3))

    def _exists(self, exists: Array | None, grid: TokenGrid) -> Bool[Array, "batch time height width"] | None:
        """Which tokens of the transformer there are; those of latents that exist in part do."""
        if exists is None:
            return None
        patches = patchify(exists.reshape(len(exists), *grid.shape, 1), self.patch)
        return patches.any(axis=-1)

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

    def denoiser(self, conditioning: Conditioning, sampler: FlowSampler, calls: int | None = None) -> Any:
        """``(x_t, t) -> prediction``: see ``denoising.denoiser_of``."""
        return denoiser_of(self, conditioning, sampler, calls)

    def sample_and_measure(
        self,
        layout: Layout,
        conditioning: Conditioning,
        keys: jax.Array,
        sampler: FlowSampler,
        prefix: Tokens | None = None,
    ) -> tuple[Tokens, Mapping[str, Array]]:
        """As for all generators; a clip no longer than those of training is one window, whatever the extension.

        Height and width are those of training, or others where positions are rotary; a shorter clip begins with the
        same noise.

        Raises:
          UserError: the prefix leaves no frame to draw, cuts a patch or is more than the model ever saw, or a clip that
            was trained with one time for all its frames should be drawn frame after frame.
        """
        sampler.check(self)
        if layout.only.grid.time <= self.grid.time:
            sampler = dataclasses.replace(sampler, extension="window")
        return super().sample_and_measure(layout, conditioning, keys, sampler, prefix)

    def noise(self, keys: Array, first: At, grid: TokenGrid, times: Float[Array, "*times"]) -> Latents:
        """What frames from ``first`` on begin with at ``times``, of all or of each clip or frame.

        Every frame of every example has its own stream.
        """
        white = frame_noise(
            keys, jnp.asarray(first)[..., None] + jnp.arange(grid.time), (grid.height, grid.width, self.channels)
        )
        return self.process.start(white, jnp.asarray(times))
