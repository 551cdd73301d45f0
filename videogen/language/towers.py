"""Two towers: clips and texts as unit vectors of one space, which a contrastive loss brings together."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import building
from videogen.conditioning import TextEncoder
from videogen.encoders import ClipImage, ClipText
from videogen.encoders.loading import plain
from videogen.errors import UserError
from videogen.language.clip_tower import REDUCTIONS, hooked, of_frames, outputs_of
from videogen.language.multi_scale_tower import MultiScale
from videogen.language.reducing import reducing_hooks
from videogen.language.tower_base import NONE, VideoTower, unit_rows
from videogen.language.trajectory_tower import Things, Tubes
from videogen.language.vision_encoders import ROTARY_RATE, Features, build_encoder, in_seconds
from videogen.losses import LogitScale
from videogen.nn import LearnedPositions, Linear, Transformer, angles_at, parameter, read_transformer, zeros
from videogen.ranges import Count, Natural
from videogen.reducers.tokens import of_grid
from videogen.shapes import VideoShape


class Frames(VideoTower):
    """A vision encoder, layers over all tokens of the clip with reducers behind some of them, and the mean of what is
    left.

    Args:
      clip: the shape of the clips.
      embed: width of the space of clips and texts.
      features: what the frozen part gives that the encoder reads; ``None``: it reads pixels.
      encoder: ``{name, …}`` of ``vision_encoders.VISION_ENCODERS``.
      transformer: ``{width, layers, heads, mlp_width, …}`` of the layers (``nn.TransformerSection``); rotary positions
        are those of time.
      hooks: reducers of ``reducers.REDUCERS`` behind layers: ``({layer, name, …}, …)``, at most one behind each.
      remat: what the backward pass keeps.

    Raises:
      UserError: a hook stands at no layer, or a reducer cannot take the tokens there.
    """

    def __init__(
        self,
        clip: VideoShape,
        embed: int,
        *,
        features: Features | None = None,
        encoder: Mapping[str, Any],
        transformer: Mapping[str, Any],
        hooks: Sequence[Mapping[str, Any]] = (),
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        section, self.dtype = read_transformer(transformer), dtype
        self.encoder = build_encoder(encoder, clip, features, remat=remat, **common)
        self.linear = Linear(self.encoder.channels, section.width, axes=(None, "embed"), **common)
        sides = self.encoder.sides
        self.places = LearnedPositions(sides[1] * sides[2], section.width, rngs=rngs)
        self.head_width, self.rotary = section.head_width, section.rotary
        self.times = None if section.rotary else LearnedPositions(sides[0], section.width, rngs=rngs)
        stack = section.stack(remat=remat, **common)
        built = reducing_hooks(hooks, inputs=section.width, **common)
        self.transformer = Transformer(stack, section.last_norm(rngs=rngs), hooks=built)
        self.projection = Linear(section.width, embed, bias=False, axes=("embed", None), **common)
        inputs = jax.ShapeDtypeStruct(
            (1, *((clip.frames, clip.height, clip.width, 3) if features is None else (*sides, features.channels))),
            jnp.float32,
        )
        seen = jax.eval_shape(self._trunk, inputs, jax.ShapeDtypeStruct((1, clip.frames), jnp.float32))
        self.tokens = seen[0].shape[1]

    def _trunk(
        self, inputs: Array, seconds: Array, exists: Array | None = None, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Tokens behind the last layer, and which of them there are."""
        times = in_seconds(seconds, self.encoder.centres)
        there = None if exists is None else exists[:, jnp.array(self.encoder.centres).round().astype(int)]
        grid = self.linear(self.encoder(inputs, times, there).astype(self.dtype))
        batch, time, height, width, channels = grid.shape
        grid += self.places(height * width).astype(grid.dtype).reshape(height, width, channels)
        if self.times is not None:
            grid += self.times(time).astype(grid.dtype)[:, None, None]
        tokens = of_grid(grid, there).filled()
        call = {"key_mask": tokens.mask, "notes": tokens}
        if self.rotary:
            angles = angles_at(ROTARY_RATE * times[..., None], self.head_width)
            call["rotary"] = jnp.repeat(angles, height * width, axis=1)
        x, call, _ = self.transformer.trunk(tokens.x, key=key, **call)
        return x, call["key_mask"]

    def __call__(self, inputs, seconds, exists=None, key=None, beside=NONE):
        x, there = self._trunk(inputs, seconds, exists, key)
        x = jnp.where(there[..., None], self.transformer.finish(x).astype(jnp.float32), 0.0)
        return self.projection(x.sum(1) / jnp.maximum(there.sum(1, keepdims=True), 1))

    def sums(self, inputs):
        return self.encoder.sums(inputs)

    def update(self, sums):
        self.encoder.update(sums)


class ClipFrames(VideoTower):
    """CLIP's vision transformer over every frame, and the mean of the frames' [CLS] (CLIP4Clip; Luo et al., 2022).

    Args:
      clip: the shape of the clips; frames are resized as the network's preprocessing does.
      embed: width of the space of clips and texts, that of the network.
      features: none.
      model: the network, as ``encoders.ClipImage`` takes it; the run finds it in the part ``clip_image``.
      reduction: ``{name: none | segment_medoids | progressive_merging, …}`` (``language.clip_tower``): fewer tokens
        behind some of its layers.
      lora: ``{rank, alpha, only}`` of low-rank updates of its attention; ``None``: none.
      remat: none: what the backward pass keeps is the network's.
    """

    def __init__(
        self,
        clip: VideoShape,
        embed: int,
        *,
        features: Features | None = None,
        model: Mapping[str, Any],
        reduction: Mapping[str, Any] = MappingProxyType({"name": "none"}),
        lora: Mapping[str, Any] | None = None,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = _described(model, lora)
        made = building.build(
            {"clip_image": ClipImage}, {"name": "clip_image", **sizes}, "model", dtype=dtype, rngs=rngs
        )
        self.network = made.with_preprocessing(model)
        if self.network.width != embed:
            raise UserError(f"this CLIP embeds in {self.network.width} channels: set model.embed to it, not {embed}")
        self.reduction = building.build(REDUCTIONS, reduction, "reduction")
        hooked(self.network, self.reduction, clip.frames)
        places, width = self.reduction.places, self.network.patches.linear.outputs
        # Outside of the network, which begins as a published one that has none; 0 at first.
        self.positions = parameter(rngs, (places, width), (None, "embed"), zeros) if places else None
        self.tokens = outputs_of(self.reduction, self.network, clip.frames)

    def __call__(self, inputs, seconds, exists=None, key=None, beside=NONE):
        positions = None if self.positions is None else self.positions.get_value()
        found = of_frames(self.network, inputs, self.reduction, positions)
        if exists is None:
            return found.mean(1)
        if len(self.network.transformer.hooks):
            raise UserError("a reduction joins the frames of whole clips: set model.video.reduction.name=none")
        return jnp.where(exists[..., None], found, 0).sum(1) / jnp.maximum(exists.sum(1, keepdims=True), 1)


class Words(nnx.Module):
    """A transformer over the ids of a text, read at its first end id; where it has none, at its last token.

    Args:
      vocabulary_size: number of ids.
      length: the longest text in tokens.
      embed: width of the space of clips and texts.
      width: of the tokens.
      layers: number of blocks.
      heads: attention heads.
      end: the end id; ``None``: the text tokenizer writes none.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        embed: int,
        *,
        width: Count,
        layers: Natural,
        heads: Count,
        end: Natural | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.end = end
        self.encoder = TextEncoder(vocabulary_size, length, width, layers, heads, dtype=dtype, rngs=rngs)
        self.projection = Linear(width, embed, bias=False, axes=("embed", None), dtype=dtype, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch embed"]:
        """The embedding of padded texts; it has no unit length, and that of a text without tokens is 0."""
        features = self.encoder(ids, mask).features
        at = read_at(ids, mask, self.end)
        return self.projection(jnp.take_along_axis(features, at[:, None, None], axis=1)[:, 0])


def read_at(ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"], end: int | None) -> Int[Array, "batch"]:
    """The place of the first end id; of texts without one, or where there is no such id, that of the last token."""
    places = jnp.arange(ids.shape[1])
    last = jnp.max(jnp.where(mask, places, 0), axis=1)
    if end is None:
        return last
    ends = mask & (ids == end)
    return jnp.where(ends.any(1), jnp.argmax(ends, axis=1), last)


class ClipWords(nnx.Module):
    """CLIP's text transformer.

    Args:
      vocabulary_size, length: of the text tokenizer, no larger than the network's.
      embed: width of the space of clips and texts, that of the network.
      model: the network, as ``encoders.ClipText`` takes it; the run finds it in the part ``clip_text``.
      lora: ``{rank, alpha, only}`` of low-rank updates of its attention; ``None``: none.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        embed: int,
        *,
        model: Mapping[str, Any],
        lora: Mapping[str, Any] | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = _described(model, lora)
        self.network = ClipText(**sizes, dtype=dtype, rngs=rngs)
        if self.network.width != embed:
            raise UserError(f"this CLIP embeds in {self.network.width} channels: set model.embed to it, not {embed}")
        if length > self.network.length:
            raise UserError(f"CLIP reads {self.network.length} tokens: set text.tokenizer.length to at most that")

    def __call__(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch embed"]:
        """The embedding of texts that have their start and end tokens; that of a text without tokens is 0."""
        return jnp.where(mask.any(1, keepdims=True), self.network(ids), 0)


def _described(model: Mapping[str, Any], lora: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of a network of CLIP with low-rank updates, without its preprocessing."""
    found = {key: plain(model[key]) for key in model if key != "preprocessing"}
    if lora is None:
        return found
    return {**found, "sizes": {**found["sizes"], "attention": {"lora": {key: lora[key] for key in lora}}}}


VIDEO_TOWERS = {"frames": Frames, "clip": ClipFrames, "multi_scale": MultiScale, "things": Things, "tubes": Tubes}
TEXT_TOWERS = {"transformer": Words, "clip": ClipWords}
"""Public name -> class."""


class TwoTowers(nnx.Module):
    """Clips and texts in one space, and the scale of their cosines.

    Args:
      video: a tower of ``VIDEO_TOWERS``.
      text: one of ``TEXT_TOWERS``.
      scale: the logit scale.
    """

    def __init__(self, video: VideoTower, text: nnx.Module, scale: LogitScale):
        self.video, self.text, self.scale = video, text, scale

    def of_clips(
        self,
        inputs: Array,
        seconds: Float[Array, "batch frames"],
        exists: Bool[Array, "batch frames"] | None = None,
        key: Array | None = None,
        beside: Mapping[str, Array] = NONE,
    ) -> Float[Array, "batch embed"]:
        """Unit vectors of clips; arguments as of ``VideoTower``."""
        return unit_rows(self.video(inputs, seconds, exists, key, beside))

    def of_texts(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch embed"]:
        """Unit vectors of padded texts."""
        return unit_rows(self.text(ids, mask))
