"""Clips and words in one bidirectional transformer: behind a video encoder (VIOLET), or from pixels on (All-in-one)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import building
from videogen.encoders import Bert
from videogen.encoders.loading import plain
from videogen.errors import UserError
from videogen.language.vision_encoders import Features, build_encoder
from videogen.nn import (
    Embedding,
    Hook,
    LayerNorm,
    LearnedPositions,
    Linear,
    Transformer,
    normal,
    parameter,
    patchify,
    read_transformer,
)
from videogen.nn.rolling import Rolled
from videogen.nn.tower import NOTES
from videogen.ranges import Count
from videogen.reducers.tokens import Grid
from videogen.shapes import VideoShape

EPSILON = 1e-12
"""Of the norm of clips in front of a joint transformer, that of BERT."""

CLIP_KIND = 1
"""The kind (BERT's token type) of what is a clip's; words are of kind 0."""

Seen = Float[Array, "batch time places width"]
"""The tokens of frames: [CLS], then the patches in raster order."""


class Fused(NamedTuple):
    """What a network makes of clips and words together.

    Attributes:
      patches: of the clips, on their grid.
      words: of the texts; what stands at padded places has no meaning.
      first: [CLS].
      mass: the attention that every patch gets of [CLS] and the words in all layers, mean over heads; padded words
        ask as [CLS] does. ``None``: it was not asked for.
    """

    patches: Float[Array, "batch time height width channels"]
    words: Float[Array, "batch length channels"]
    first: Float[Array, "batch channels"]
    mass: Float[Array, "batch patches"] | None = None


class FusedNetwork(nnx.Module):
    """Base of the networks over clips and words.

    Attributes:
      probes: whether it can tell ``mass``.
      grid: time, height and width of the patches of a clip.
      width: channels of its tokens.
      vocabulary_size: ids of words; one more is the id of a masked word.
    """

    probes: ClassVar[bool] = False
    grid: Grid
    width: int
    vocabulary_size: int

    @property
    def vectors(self) -> Embedding:
        """Those of the words."""
        raise NotImplementedError

    def see(self, inputs: Array, seconds: Float[Array, "batch frames"]) -> Seen:
        """The tokens of frames, before they meet words.

        Args:
          inputs: pixels in [-1, 1], or what a frozen part gives.
          seconds: of the frames.
        """
        raise NotImplementedError

    def fuse(
        self, seen: Seen, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"], *, probed: bool = False
    ) -> Fused:
        """Clips and words together.

        Args:
          seen: of ``see``.
          ids: of the words; ``vocabulary_size`` is a masked one.
          mask: which words there are; with none of them the clip is by itself.
          probed: whether ``mass`` is wanted, of a network with ``probes``.
        """
        raise NotImplementedError

    def read(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch channels"]:
        """[CLS] of texts by themselves."""
        raise NotImplementedError

    def sums(self, inputs: Array) -> dict[str, Array]:
        """What ``update`` needs of the inputs of a step; nothing where nothing is measured."""
        return {}

    def update(self, sums: Mapping[str, Array]) -> None:
        """Takes what a step has measured in."""

    def _of_ids(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
        """Vectors of words, masked ones among them."""
        vectors = self.vectors(jnp.minimum(ids, self.vocabulary_size - 1))
        hidden = (ids == self.vocabulary_size)[..., None]
        return jnp.where(hidden, self.masked_word.get_value().astype(vectors.dtype), vectors)


class Received(Hook):
    """Adds the attention that every token gets of the queries ``notes["asking"]`` to ``notes["mass"]``, mean over
    heads."""

    place = "between"

    def probe(self, x, call):
        return call[NOTES]["asking"]

    def __call__(self, x, call, aux):
        notes = call[NOTES]
        return x, {**call, NOTES: {**notes, "mass": notes["mass"] + aux.mass.mean(1)}}


class Joint(FusedNetwork):
    """A video encoder, word vectors, and a transformer of BERT's kind over [clip; CLS; words] (VIOLET; Fu et al.,
    2021).

    Every frame has a learned [CLS] of its own in front of its patches, and learned positions in space and in time.

    Args:
      clip: the shape of the clips.
      vocabulary_size: ids of words.
      length: the longest text in tokens.
      features: what the frozen part gives that the encoder reads; ``None``: it reads pixels.
      encoder: ``{name, …}`` of ``vision_encoders.VISION_ENCODERS``.
      bert: the transformer and the vectors of words, ``{width, layers, heads, hidden, …}`` as ``encoders.Bert`` takes
        them; ``vocabulary_size`` and ``length`` are at least those of the text tokenizer, by default the same.
      remat: what the backward pass keeps.
    """

    probes = True

    def __init__(
        self,
        clip: VideoShape,
        vocabulary_size: int,
        length: int,
        *,
        features: Features | None = None,
        encoder: Mapping[str, Any],
        bert: Mapping[str, Any],
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        sizes = {"vocabulary_size": vocabulary_size, "length": length, **plain(bert)}
        for name, least in (("vocabulary_size", vocabulary_size), ("length", length)):
            if sizes[name] < least:
                raise UserError(f"the text tokenizer has {name} {least}: set network.bert.{name} to at least that")
        self.bert = building.build({"bert": Bert}, {"name": "bert", **sizes}, "transformer", remat=remat, **common)
        self.width, self.vocabulary_size, self.dtype = self.bert.width, sizes["vocabulary_size"], dtype
        self.encoder = build_encoder(encoder, clip, features, remat=remat, **common)
        self.grid = self.encoder.sides
        self.linear = Linear(self.encoder.channels, self.width, axes=(None, "embed"), **common)
        self.class_token = parameter(rngs, (self.width,), ("embed",), normal(0.02))
        self.first_word = parameter(rngs, (self.width,), ("embed",), normal(0.02))
        self.masked_word = parameter(rngs, (self.width,), ("embed",), normal(0.02))
        self.places = LearnedPositions(1 + self.grid[1] * self.grid[2], self.width, rngs=rngs)
        self.times = LearnedPositions(self.grid[0], self.width, rngs=rngs)
        self.norm = LayerNorm(self.width, epsilon=EPSILON, rngs=rngs)

    @property
    def vectors(self) -> Embedding:
        return self.bert.embedding

    def see(self, inputs, seconds):
        x = self.linear(self.encoder(inputs, seconds).astype(self.dtype))
        x = x.reshape(*x.shape[:2], -1, self.width)
        first = jnp.broadcast_to(self.class_token.get_value().astype(x.dtype), (*x.shape[:2], 1, self.width))
        x = jnp.concatenate([first, x], axis=2) + self.places(x.shape[2] + 1).astype(x.dtype)
        x = x + self.times(x.shape[1]).astype(x.dtype)[:, None]
        return self.norm(x + self.bert.kinds(jnp.array(CLIP_KIND)))

    def _said(self, ids: Array, mask: Array) -> tuple[Array, Array]:
        """[CLS] and the words as the first layer takes them, and which of them there are."""
        words = self.bert.embedded(self._of_ids(ids))
        first = jnp.broadcast_to(self.first_word.get_value().astype(words.dtype), (len(ids), 1, self.width))
        return jnp.concatenate([first, words], axis=1), jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)

    def fuse(self, seen, ids, mask, *, probed=False):
        words, there = self._said(ids, mask)
        clip = seen.reshape(len(seen), -1, self.width)
        before, layers, call = clip.shape[1], self.bert.transformer, {}
        there = jnp.pad(there, ((0, 0), (before, 0)), constant_values=True)
        if probed:
            layers = Transformer(layers.stack, None, hooks={i: Received() for i in range(layers.stack.depth)})
            asking = jnp.where(mask, before + 1 + jnp.arange(mask.shape[1]), before)
            asking = jnp.pad(asking, ((0, 0), (1, 0)), constant_values=before)
            call[NOTES] = {"asking": asking, "mass": jnp.zeros(there.shape)}
        x, call, _ = layers.trunk(jnp.concatenate([clip, words], axis=1), key_mask=there, **call)
        frames = x[:, :before].reshape(seen.shape)
        mass = None
        if probed:
            mass = call[NOTES]["mass"][:, :before].reshape(seen.shape[:3])[:, :, 1:].reshape(len(seen), -1)
        patches = frames[:, :, 1:].reshape(len(seen), *self.grid, self.width)
        return Fused(patches, x[:, before + 1 :], x[:, before], mass)

    def read(self, ids, mask):
        words, there = self._said(ids, mask)
        return self.bert.transformer(words, key_mask=there)[:, 0]

    def sums(self, inputs):
        return self.encoder.sums(inputs)

    def update(self, sums):
        self.encoder.update(sums)


class Shared(FusedNetwork):
    """One vision transformer for patches and words (All-in-one; Wang et al., 2023).

    Every frame goes through the layers with [CLS] and all words. Frames know of each other by nothing but the patches
    that change places between them before every layer (``nn.rolling``); [CLS] and the words are the means over frames.

    Args:
      clip: the shape of the clips.
      vocabulary_size: ids of words.
      length: the longest text in tokens.
      features: none: it reads pixels.
      patch: side of a patch in pixels.
      transformer: ``{width, layers, heads, mlp_width, …}`` of the layers (``nn.TransformerSection``).
      fold: ``1/fold`` of the patches of a frame come from the frame before, and as many from the one behind.
      remat: what the backward pass keeps.
    """

    def __init__(
        self,
        clip: VideoShape,
        vocabulary_size: int,
        length: int,
        *,
        features: Features | None = None,
        patch: Count,
        transformer: Mapping[str, Any],
        fold: Count = 8,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for side in ("height", "width"):
            if getattr(clip, side) % patch:
                raise UserError(f"clip {side} {getattr(clip, side)} is no multiple of the patch {patch}")
        section, common = read_transformer(transformer), dict(dtype=dtype, rngs=rngs)
        if section.dropout or section.rotary or section.position_generator:
            raise UserError("a shared transformer has learned positions, and no dropout")
        self.grid = (clip.frames, clip.height // patch, clip.width // patch)
        self.width, self.vocabulary_size, self.patch, self.dtype = section.width, vocabulary_size, patch, dtype
        count = self.grid[1] * self.grid[2]
        self.linear = Linear(3 * patch**2, self.width, axes=(None, "embed"), **common)
        self.places = LearnedPositions(1 + count, self.width, rngs=rngs)
        self.times = LearnedPositions(clip.frames, self.width, rngs=rngs)
        self.class_token = parameter(rngs, (self.width,), ("embed",), normal(0.02))
        self.masked_word = parameter(rngs, (self.width,), ("embed",), normal(0.02))
        self.kinds = Embedding(2, self.width, axes=(None, "embed"), rngs=rngs)
        self.embedding = Embedding(vocabulary_size, self.width, **common)
        self.positions = LearnedPositions(length, self.width, rngs=rngs)
        self.norm = LayerNorm(self.width, epsilon=EPSILON, rngs=rngs)

        def around(block: nnx.Module, rngs: nnx.Rngs) -> Rolled:
            return Rolled(block, fold=fold, patches=count)

        stack = section.stack(around=around, remat=remat, **common)
        self.transformer = Transformer(stack, section.last_norm(rngs=rngs))

    @property
    def vectors(self) -> Embedding:
        return self.embedding

    def _first(self, rows: int) -> Float[Array, "rows 1 width"]:
        """[CLS] as the first layer takes it."""
        token = self.class_token.get_value() + self.places(1)[0] + self.kinds(jnp.array(CLIP_KIND))
        return jnp.broadcast_to(token.astype(self.dtype), (rows, 1, self.width))

    def see(self, inputs, seconds):
        x = self.linear(patchify(inputs.astype(self.dtype), (1, self.patch, self.patch)))
        batch, time = x.shape[:2]
        x = x.reshape(batch, time, -1, self.width)
        where = self.places(x.shape[2] + 1)[1:] + self.times(time)[:, None] + self.kinds(jnp.array(CLIP_KIND))
        first = self._first(batch * time).reshape(batch, time, 1, self.width)
        return jnp.concatenate([first, x + where.astype(x.dtype)], axis=2)

    def _said(self, ids: Array) -> Float[Array, "batch length width"]:
        """The words as the first layer takes them."""
        words = self._of_ids(ids) + self.positions(ids.shape[1]).astype(self.dtype)
        return self.norm(words) + self.kinds(jnp.array(0)).astype(self.dtype)

    def fuse(self, seen, ids, mask, *, probed=False):
        if probed:
            raise UserError("a shared transformer tells no attention: set masking.blocks=1.0")
        batch, time, places, width = seen.shape
        words = jnp.broadcast_to(self._said(ids)[:, None], (batch, time, ids.shape[1], width))
        x = jnp.concatenate([seen, words.astype(seen.dtype)], axis=2).reshape(batch * time, -1, width)
        there = jnp.repeat(jnp.pad(mask, ((0, 0), (places, 0)), constant_values=True), time, axis=0)
        x = self.transformer(x, frames=time, key_mask=there).reshape(batch, time, -1, width)
        patches = x[:, :, 1:places].reshape(batch, *self.grid, width)
        means = x.astype(jnp.float32).mean(1)
        return Fused(patches, means[:, places:], means[:, 0])

    def read(self, ids, mask):
        x = jnp.concatenate([self._first(len(ids)), self._said(ids).astype(self.dtype)], axis=1)
        return self.transformer(x, key_mask=jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True))[:, 0]


FUSED = {"joint": Joint, "shared": Shared}
"""Public name -> class."""
