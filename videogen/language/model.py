"""A language model over streams of ids and floats: one transformer, one head for each kind of segment."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import heads
from videogen.diffusion.latent_statistics import LatentStatistics, NormalisedLatents
from videogen.errors import UserError
from videogen.heads.inputs import FloatEmbedding
from videogen.language.backbones import Backbone, build_backbone
from videogen.language.layouts import Floats, Kinds
from videogen.language.spans import Notes, RowShape
from videogen.language.stream import WORD, TokenStream
from videogen.language.vocabulary import Vocabulary
from videogen.language.words import Words
from videogen.nn import Stream, parameter, truncated_normal

HEADS = ("gaussian", "gaussian_mixture")
"""Heads of floats, which know their density; ``none`` is for floats that are given and never drawn."""

GIVEN = "given"
"""In the place of a head: vectors of the backbone's width, with all that is known of their places."""

Values = Mapping[str, Float[Array, "batch tokens channels"]]
"""Floats of the rows of a stream, by segment: those of all samples of a row one after another."""


class FloatPart(nnx.Module):
    """What a segment of floats needs: an embedding of its tokens, their positions, queries, a head.

    The position of a token is a vector of its frame and one of its place in the frame (DiCoDe, section 2.2).

    Args:
      kind: frames, tokens of a frame, channels.
      head: ``{name, …}``, a name in ``HEADS`` or ``none``; ``layers`` is that of the embedding, too.
      width: of the backbone.
      queries: there are learned queries, one of each token of a clip.
      normalised: its tokens have mean 0 and variance 1 already; else the first batches of training are measured.
    """

    def __init__(
        self,
        kind: Floats,
        head: Mapping[str, Any],
        width: int,
        *,
        queries: bool,
        normalised: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.statistics = NormalisedLatents() if normalised else LatentStatistics(kind.channels)
        self.per_frame = kind.per_frame
        common = dict(dtype=dtype, rngs=rngs)
        name, known = head.get("name"), (*HEADS, "none", GIVEN)
        if name not in known:
            raise UserError(f"the head {name!r} does not go with streams; take one of: {', '.join(known)}")
        drawn = name != "none"
        self.head = heads.build(head, channels=kind.channels, width=width, **common) if drawn else None
        layers = head.get("layers", 2)
        self.inputs = None if drawn else FloatEmbedding(kind.channels, width, layers=layers, **common)
        table = truncated_normal(0.02)
        self.of_frame = parameter(rngs, (kind.frames, width), (None, "embed"), table)
        self.in_frame = parameter(rngs, (kind.per_frame, width), (None, "embed"), table)
        self.queries = parameter(rngs, (kind.length, width), (None, "embed"), table) if queries else None

    def embed(self, values: Float[Array, "batch tokens channels"], token: Array) -> Float[Array, "batch tokens width"]:
        """Vectors of tokens; ``token`` says which of a clip each is."""
        x = self.inputs(values) if self.head is None else self.head.embed(values)
        positions = (
            self.of_frame.get_value()[token // self.per_frame] + self.in_frame.get_value()[token % self.per_frame]
        )
        return x + positions.astype(x.dtype)

    def asked(self, token: Array) -> Float[Array, "batch tokens width"]:
        """The queries for tokens of a clip."""
        return self.queries.get_value()[token]


class GivenVectors(nnx.Module):
    """In the place of a ``FloatPart`` where vectors of the backbone's width are given: they stay as they are."""

    head = queries = None

    def __init__(self):
        self.statistics = NormalisedLatents()

    def embed(self, values: Float[Array, "batch tokens width"], token: Array) -> Float[Array, "batch tokens width"]:
        """The vectors themselves."""
        return values


class StreamModel(nnx.Module):
    """The model; which tasks it learns is decided by the streams that it is given.

    Args:
      vocabulary: of the ids. The first range is that of the ids which the backbone knows, if it knows any.
      kinds: of the segments.
      backbone: ``{name: tower | decoder, …}`` (``language.backbones``).
      floats: the head of each segment of floats, ``{name, …}``; ``{name: given}`` takes vectors as they are.
      length: slots of the longest row.
      queries: segments that are drawn by queries.
      normalised: segments whose tokens come normalised.
      words: ids are predicted.
      remat: what the backward pass keeps, a name in ``nn.REMAT_POLICIES``.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        kinds: Kinds,
        *,
        backbone: Mapping[str, Any],
        floats: Mapping[str, Mapping[str, Any]],
        length: int,
        queries: tuple[str, ...] = (),
        normalised: tuple[str, ...] = (),
        words: bool = True,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.vocabulary, self.kinds, self.dtype = vocabulary, tuple(kinds.items()), dtype
        common = dict(dtype=dtype, rngs=rngs)
        self.backbone: Backbone = build_backbone(backbone, length=length, remat=remat, **common)
        known, width = self.backbone.known, self.backbone.width
        if known and vocabulary.ranges[0].size != known:
            raise UserError(
                f"the language model has {known} ids, and the first range of the vocabulary has "
                f"{vocabulary.ranges[0].size}: set text.tokenizer.vocabulary_size to {known}"
            )
        self.words = Words(vocabulary.size, known, width, predicted=words, **common)
        named = {name: kind for name, kind in kinds.items() if isinstance(kind, Floats)}
        for name in named:
            if name not in floats:
                raise UserError(f"the segment {name!r} has no head: give model.floats.{name}")
        parts = {}
        for name, kind in named.items():
            known = dict(queries=name in queries, normalised=name in normalised)
            if floats[name].get("name") == GIVEN:
                if kind.channels != width:
                    raise UserError(f"given vectors are as wide as the backbone, {width}, got {kind.channels}")
                parts[name] = GivenVectors()
                continue
            parts[name] = FloatPart(kind, floats[name], width, **known, **common)
        self.floats = nnx.Dict(parts)

    def embed(self, stream: TokenStream, values: Values) -> Float[Array, "batch slots width"]:
        """What stands in every slot, without the position in the row."""
        x = self.words.embed(self.backbone, stream.ids)
        for number, (name, _) in enumerate(self.kinds):
            if name not in self.floats or name not in values:
                continue
            part, here = self.floats[name], stream.source == number
            place = jnp.where(here, stream.place, 0)
            found = jnp.take_along_axis(values[name], place[..., None], axis=1)
            token = jnp.where(here, stream.token, 0)
            own = part.embed(found, token).astype(x.dtype)
            if part.queries is not None:
                own = jnp.where(stream.query[..., None], part.asked(token).astype(x.dtype), own)
            x = jnp.where(here[..., None], own, x)
        return x

    def features(
        self,
        stream: TokenStream,
        values: Values,
        key: jax.Array | None = None,
        notes: Notes | None = None,
        key_bias: Float[Array, "batch slots"] | None = None,
    ) -> Float[Array, "batch slots width"]:
        """Of every slot.

        Args:
          stream: rows.
          values: their floats, in the shape ``[batch, tokens, channels]``.
          key: of dropout.
          notes: what hooks of the backbone are told.
          key_bias: added to the scores of each slot as a key.
        """
        x, call = self.embed(stream, values), dict(key=key, notes=notes, key_bias=key_bias)
        return self.backbone(x, stream.exists, stream.mask, stream.tags, **call)

    def predicting(
        self, stream: TokenStream, x: Float[Array, "batch slots width"], name: str, tokens: int
    ) -> tuple[Float[Array, "batch tokens width"], Bool[Array, "batch tokens"]]:
        """The features that predict each of the floats of a segment, and which of these are predicted at all."""
        number = 1 + [own for own, _ in self.kinds].index(name)
        here = stream.predicts == number
        rows = jnp.arange(len(x))[:, None]
        # Slots that predict none of these floats write behind the last one.
        place = jnp.where(here, stream.target_place, tokens)
        slot = jnp.zeros((len(x), tokens + 1), jnp.int32).at[rows, place].set(jnp.arange(x.shape[1]))[:, :tokens]
        found = jnp.zeros((len(x), tokens + 1), bool).at[rows, place].set(here)[:, :tokens]
        return jnp.take_along_axis(x, slot[..., None], axis=1), found

    def losses(
        self,
        stream: TokenStream,
        values: Values,
        key: jax.Array | None = None,
        notes: Notes | None = None,
        key_bias: Float[Array, "batch slots"] | None = None,
    ) -> dict[str, tuple[Float[Array, "batch places"], Bool[Array, "batch places"]]]:
        """Negative log-likelihoods in nats and where they count: of the ids under ``words``, of each segment of floats.

        Those of floats are of a whole token, so for a mean per number they are divided by the channels. With
        ``accuracy`` come the hits of the likeliest ids.
        """
        return self.losses_of(stream, self.features(stream, values, key, notes, key_bias), values)

    def losses_of(
        self, stream: TokenStream, x: Float[Array, "batch slots width"], values: Values
    ) -> dict[str, tuple[Float[Array, "batch places"], Bool[Array, "batch places"]]]:
        """``losses`` from the ``features`` of the slots."""
        found = {}
        if self.words.head is not None:
            counted = stream.predicts == WORD
            nll, hits = self.words.nll(self.backbone, x, jnp.where(counted, stream.target, 0))
            found |= {"words": (nll, counted), "accuracy": (hits.astype(jnp.float32), counted)}
        for name, part in self.floats.items():
            if part.head is None or name not in values:
                continue
            features, counted = self.predicting(stream, x, name, values[name].shape[1])
            found[name] = -part.head.log_density(features, values[name].astype(jnp.float32)), counted
        return found

    def begin(self, batch: int, length: int, tags: tuple[str, ...], shape: RowShape | None = None) -> tuple[Any, ...]:
        """The caches of empty rows."""
        return self.backbone.begin(batch, length, tags, shape)

    def go_on(
        self,
        x: Float[Array, "batch slots width"],
        exists: Bool[Array, "batch slots"],
        tags: Mapping,
        mask: Any,
        caches: Any,
        notes: Notes | None = None,
        key_bias: Float[Array, "batch slots"] | None = None,
    ) -> tuple[Float[Array, "batch slots width"], tuple[Any, ...]]:
        """Features of the next slots of rows that caches hold, and the caches with them."""
        stream = Stream(caches)
        x = self.backbone(x, exists, mask, tags, stream=stream, notes=notes, key_bias=key_bias)
        return x, stream.cache
