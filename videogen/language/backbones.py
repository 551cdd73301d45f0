"""The transformer over a stream: a small one that is trained here, or a published language model."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import building
from videogen.encoders import Decoder
from videogen.encoders.loading import plain
from videogen.errors import UserError
from videogen.language.costs import DecoderSizes
from videogen.language.hooks import build_hooks
from videogen.language.spans import Notes, RowShape
from videogen.nn import Causal, ExtraKeys, LearnedPositions, Mask, Stream, Tags, angles_at, read_transformer
from videogen.nn.masks import INDEX
from videogen.nn.mlp import MLPS
from videogen.nn.tower import NOTES, Call, Transformer
from videogen.ranges import Count


class Backbone(nnx.Module):
    """Base of the transformers over a stream.

    Attributes:
      width: of the vectors that it takes and gives.
      known: ids of the stream, the first ones, that it has vectors and scores of its own for.
      transformer: its layers.
      sizes: what its cost follows from.
    """

    width: int
    known: int = 0
    transformer: Transformer
    sizes: DecoderSizes

    def embed(self, ids: Int[Array, "batch slots"]) -> Float[Array, "batch slots width"]:
        """The vectors of ids that it knows."""
        raise NotImplementedError

    def scores(self, x: Float[Array, "batch slots width"]) -> Float[Array, "batch slots known"]:
        """Logits of the ids that it knows."""
        raise NotImplementedError

    def begin(self, batch: int, length: int, tags: tuple[str, ...], shape: RowShape | None = None) -> tuple[Any, ...]:
        """The caches of empty rows of at most ``length`` slots that keep these tags.

        ``shape`` is that of the prompts, of which hooks leave later layers fewer slots.
        """
        lengths = None
        if shape is not None and len(self.transformer.hooks):
            lengths = [length - shape.clips * (shape.each - inside) for inside in self.seen_by_layers(shape)]
        return self.transformer.begin(batch, length, tags=tags, lengths=lengths)

    def seen_by_layers(self, shape: RowShape) -> list[int]:
        """Tokens of a clip that the attention of every layer sees; raises ``UserError`` as ``_by_layers`` does."""
        return [seen for seen, _ in self._by_layers(shape)]

    def behind_layers(self, shape: RowShape) -> list[int]:
        """Tokens of a clip that the MLP of every layer sees."""
        return [min(seen, left) for seen, left in self._by_layers(shape)]

    def _by_layers(self, shape: RowShape) -> list[tuple[int, int]]:
        """Tokens of a clip in every layer, and those that go on behind it.

        Raises:
          UserError: a hook cannot take what there is at its layer.
        """
        found, each, per_frame = [], shape.each, shape.per_frame
        for layer in range(self.transformer.stack.depth):
            hooks = [hook for hook in self.transformer.hooks.values() if hook.layer == layer]
            try:
                inside = min([each, *(hook.inside(each, per_frame) for hook in hooks)])
            except UserError as error:
                raise UserError(f"layer {layer} of the backbone: {error}") from error
            left = min([each, *(hook.behind(each) for hook in hooks)])
            found.append((inside, left))
            each, per_frame = left, per_frame if left == each else 0
        return found

    @property
    def looks_beside(self) -> bool:
        """Whether a hook looks up tokens beside the rows (``beside``)."""
        return any(hook.beside for hook in self.transformer.hooks.values())

    def beside(
        self, x: Float[Array, "batch tokens width"], exists: Bool[Array, "batch tokens"]
    ) -> dict[int, ExtraKeys]:
        """Keys and values of tokens beside the rows, for every layer that looks them up."""
        hooks = [hook for hook in self.transformer.hooks.values() if hook.beside]
        return {hook.layer: hook.keys_values(self.transformer.stack.layer(hook.layer), x, exists) for hook in hooks}

    def _told(self, notes: Notes | None) -> dict[str, Any]:
        """What hooks are told; nothing where there are none."""
        return {NOTES: Notes() if notes is None else notes} if len(self.transformer.hooks) else {}

    def _finished(self, x: Float[Array, "batch some width"], call: Call) -> Float[Array, "batch slots width"]:
        """Normalised features of the slots that were given, those of merged tokens once for each of them."""
        spans = call[NOTES].spans if NOTES in call else None
        if spans is not None and spans.place is not None:
            x = jnp.take_along_axis(x, spans.place[..., None], axis=1)
        return self.transformer.finish(x)

    def __call__(
        self,
        x: Float[Array, "batch slots width"],
        exists: Bool[Array, "batch slots"],
        mask: Mask = Causal(),
        tags: Tags | None = None,
        *,
        key: jax.Array | None = None,
        stream: Stream | None = None,
        notes: Notes | None = None,
        key_bias: Float[Array, "batch slots"] | None = None,
    ) -> Float[Array, "batch slots width"]:
        """Features of every slot, behind the last norm.

        Args:
          x: what stands in each slot.
          exists: no padding.
          mask: who sees whom.
          tags: what it compares; ``index`` is the position of a slot.
          key: of dropout.
          stream: the caches of ``begin``, which these slots continue.
          notes: what hooks are told.
          key_bias: added to the scores of each slot as a key.
        """
        raise NotImplementedError


class Tower(Backbone):
    """A transformer that is trained with all else.

    Args:
      transformer: ``{width, layers, heads, mlp_width, …}`` (``nn.TransformerSection``). With ``rotary`` positions
        turn queries and keys; else they are a learned table, as in GPT-2.
      length: slots of a row, of the learned table.
      hooks: ``({layer, name, …}, …)``: reduction inside of the decoder (``language.hooks``).
      remat: what the backward pass keeps.
    """

    def __init__(
        self,
        transformer: Mapping[str, Any],
        *,
        length: Count,
        hooks: Sequence[Mapping[str, Any]] = (),
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        section = read_transformer(transformer)
        if section.position_generator or section.null_keys:
            raise UserError("the transformer of a stream has neither position_generator nor null_keys: leave them out")
        self.width, self.head_width, self.dropout, self.dtype = (
            section.width,
            section.head_width,
            section.dropout,
            dtype,
        )
        self.positions = None if section.rotary else LearnedPositions(length, section.width, rngs=rngs)
        stack = section.stack(remat=remat, dtype=dtype, rngs=rngs)
        heads = section.attention.get("key_value_heads") or section.heads, section.head_width
        own = build_hooks(hooks, width=section.width, key_value=heads, dtype=dtype, rngs=rngs)
        self.transformer = Transformer(stack, section.last_norm(rngs=rngs), hooks=own)
        gated = MLPS[section.mlp.get("kind", "gelu_tanh")][1]
        self.sizes = DecoderSizes(section.width, section.heads, *heads, section.mlp_width, gated)

    def __call__(self, x, exists, mask=Causal(), tags=None, *, key=None, stream=None, notes=None, key_bias=None):
        tags = {} if tags is None else tags
        place = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]) if INDEX not in tags else tags[INDEX]
        x, rotary = x.astype(self.dtype), None
        if self.positions is None:
            rotary = angles_at(place[..., None], self.head_width)
        else:
            place = jnp.clip(place, 0, self.positions.length - 1)
            x = x + self.positions(self.positions.length)[place].astype(self.dtype)
        call = dict(mask=mask, tags=tags, key_mask=exists, key_bias=key_bias, rotary=rotary, stream=stream)
        key = key if self.dropout else None
        return self._finished(*self.transformer.trunk(x, key=key, **call, **self._told(notes))[:2])


class PublishedDecoder(Backbone):
    """A language model of the types Llama, Mistral or Qwen2 (``encoders.Decoder``), with its own ids and scores.

    A run has its published weights as the frozen part ``language_model`` and begins as a copy of it
    (``start_from.paths``); ``optimizer.language.freeze`` then keeps them, and trains what is below ``lora``.

    Args:
      model: the settings of ``encoders.Decoder``; filled in from the part.
      lora: ``{rank, alpha}`` of low-rank updates of all linear layers of its blocks, or with ``only`` of some
        projections of the attention; empty: none.
      length: unused: its positions have no end.
      hooks: as of ``Tower``.
      remat: what the backward pass keeps.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        *,
        lora: Mapping[str, Any] | None = None,
        length: int = 0,
        hooks: Sequence[Mapping[str, Any]] = (),
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        settings = {key: plain(model[key]) for key in model if key != "name"}
        self.decoder = Decoder(**settings, lora=lora or None, remat=remat, dtype=dtype, rngs=rngs)
        self.width, self.known, self.dtype = self.decoder.width, self.decoder.vocabulary_size, dtype
        heads = settings["key_value_heads"], settings["head_width"]
        own = build_hooks(hooks, width=self.width, key_value=heads, dtype=dtype, rngs=rngs)
        self.sizes = DecoderSizes(self.width, settings["heads"], *heads, settings["hidden"], gated=True)
        self.decoder.transformer = Transformer(self.decoder.transformer.stack, self.decoder.transformer.norm, hooks=own)

    @property
    def transformer(self) -> Transformer:
        """Of the decoder."""
        return self.decoder.transformer

    def embed(self, ids):
        return self.decoder.embedding(ids)

    def scores(self, x):
        return self.decoder.scores(x)

    def __call__(self, x, exists, mask=Causal(), tags=None, *, key=None, stream=None, notes=None, key_bias=None):
        tags = {} if tags is None else tags
        call = dict(positions=tags.get(INDEX), sees=mask, tags=tags, key_bias=key_bias, stream=stream)
        return self._finished(*self.decoder.trunk(x.astype(self.dtype), exists, **call, **self._told(notes)))


BACKBONES = {"tower": Tower, "decoder": PublishedDecoder}
"""Public name -> class."""


def build_backbone(config: Mapping[str, Any], **shared: Any) -> Backbone:
    """Builds a backbone from ``{name, …}``."""
    return building.build(BACKBONES, config, "backbone", **shared)


def width_of(config: Mapping[str, Any]) -> int:
    """The width of the backbone of a section."""
    return nnx.eval_shape(lambda: build_backbone(config, length=1, remat="none", rngs=nnx.Rngs(0))).width
