"""Frame by frame: all tokens of a frame at once, given those of the frames before (SignViP, section 3.4)."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.conditioning import Conditioning, NullableContext
from videogen.errors import UserError
from videogen.generators.sampling import BlockSampler
from videogen.generators.stepping import Generator, Stepper
from videogen.heads.levels_apart import LevelsApart
from videogen.nn import (
    CausalWindow,
    Linear,
    MicroBatch,
    Stream,
    named_key,
    parameter,
    read_transformer,
    sincos_positions,
    truncated_normal,
)
from videogen.ranges import Count, Share
from videogen.shapes import TokenGrid
from videogen.tokens import Segment, Tokens

Ids = Int[Array, "batch frames levels"]


class NextFrameTransformer(Generator):
    """A causal transformer over frames; the tokens of a frame are independent given the frames before.

    The sequence begins with the mean of the conditioning's vectors, through a linear layer. Behind it stands one vector
    for each frame: its tokens embedded, side by side and through a linear layer, times √width so that the fixed
    positions do not drown it (ours). Behind the tower each token of the next frame has a layer of its own, which looks
    back over frames as the tower does, and its logits (``LevelsApart``). Behind the last frame all tokens are the
    ``end``; in drawing an ``end`` of any token ends the example, and the frame it is in does not exist.

    Args:
      vocabulary: codes of a token, one level.
      grid: ``(time, height, width)`` of the longest training clip in tokens; those of a frame are drawn together.
      transformer: ``{width, layers, heads, mlp_width, …}`` (``nn.TransformerSection``), without rotary positions.
      window: frames that one sees, itself included.
      context_width: width of the conditioning features; ``None`` builds an unconditional model.
      classes: number of class labels; ``None`` means a model without labels.
      token_drop: share of input tokens replaced by random ones in training.
      condition_drop: share of examples trained with the null conditioning (for guidance).
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        grid: Sequence[int],
        transformer: Mapping[str, Any],
        *,
        channels: int | None = None,
        window: Count = 128,
        context_width: int | None = None,
        classes: int | None = None,
        token_drop: Share = 0.4,
        condition_drop: Share = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if channels or len(vocabulary) != 1:
            raise UserError("next_frame draws codes of one level, several in a frame; take next_block")
        section = read_transformer(transformer, norm="layer")
        if section.rotary or section.position_generator:
            raise UserError("next_frame has fixed positions of its own: leave rotary and position_generator out")
        self.grid, self.dtype, self.width = TokenGrid(*grid), dtype, section.width
        self.levels = self.grid.tokens_per_frame
        self.token_drop, self.condition_drop, self.dropout = token_drop, condition_drop, section.dropout
        self.mask = CausalWindow(window)
        common = dict(remat=remat, dtype=dtype, rngs=rngs)
        self.context = NullableContext(context_width, classes=classes, rngs=rngs) if context_width else None
        into = dict(axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.first = Linear(context_width, self.width, **into) if context_width else None
        begins = () if context_width else (self.width,)
        self.start = parameter(rngs, begins, ("embed",), truncated_normal(0.02)) if begins else None
        self.tower = section.stack(**common)
        self.branches = dataclasses.replace(section, layers=self.levels).stack(**common)
        self.head = LevelsApart(tuple(vocabulary) * self.levels, self.width, dtype=dtype, rngs=rngs)
        self.statistics = None

    completes = denoises = label_as_vector = False
    ends = True
    given_frames = 0
    sampler = BlockSampler

    @property
    def steppers(self) -> Mapping[str, type[Stepper]]:
        """One step a frame."""
        return MappingProxyType({"window": FrameDecoding})

    def check_grid(self, grid: TokenGrid) -> None:
        """Raises ``UserError`` for a grid that cannot be learned."""
        if grid.tokens_per_frame != self.levels or grid.time > self.grid.time:
            raise UserError(f"this generator draws up to {self.grid.time} frames of {self.levels} tokens")

    def prefixes(self, frames: int) -> range:
        """How many latent frames may be given: none, for their tokens are not those of pixels."""
        return range(1)

    def passes(self, grid: TokenGrid, prefix_tokens: int = 0) -> int:
        """Forward passes that draw a clip: one a frame."""
        return grid.time

    # Sequences -------------------------------------------------------------------------------------------------------

    def begin_vector(self, conditioning: Conditioning, batch: int) -> Float[Array, "batch 1 width"]:
        """What the sequence begins with."""
        if self.context is None:
            return jnp.broadcast_to(self.start.get_value().astype(self.dtype), (batch, 1, self.width))
        keys, mask = self.context(conditioning)
        weight = mask[..., None] / mask.sum(axis=1)[:, None, None]
        return self.first((keys * weight).sum(axis=1, keepdims=True))

    def embed(self, ids: Ids) -> Float[Array, "batch frames width"]:
        """The vector of each frame."""
        return self.head.embed(ids) * self.width**0.5

    def positions(self) -> Float[Array, "places width"]:
        """Of the beginning and of every frame."""
        return jnp.asarray(sincos_positions((self.grid.time + 1,), self.width))

    def features(
        self, ids: Ids, conditioning: Conditioning, key: jax.Array | None = None
    ) -> Float[Array, "batch predicted levels width"]:
        """Features of every token of each next frame: at place i of frame i, at the last place of what is behind."""
        x = jnp.concatenate([self.begin_vector(conditioning, len(ids)), self.embed(ids)], axis=1)
        x = x + self.positions()[: x.shape[1]].astype(x.dtype)
        x = self.tower(x, mask=self.mask, key=None if key is None else named_key(key, "tower"))
        return self.behind(x, key=None if key is None else named_key(key, "branches"))[0]

    def behind(
        self, x: Float[Array, "batch places width"], caches: Any = None, key: jax.Array | None = None
    ) -> tuple[Float[Array, "batch places levels width"], Any]:
        """What the layer of each level makes of the tower's output, and their caches with ``x`` in them."""
        graph, state = nnx.split(self.branches.layers)

        def one(_: None, scanned: tuple) -> tuple[None, tuple]:
            own, past = scanned
            stream = None if past is None else Stream(past)
            y = nnx.merge(graph, own)(x, mask=self.mask, key=key, stream=stream)
            return None, (y, None if past is None else stream.cache)

        y, caches = jax.lax.scan(one, None, (state, caches))[1]
        return jnp.moveaxis(y, 0, -2), caches

    def targets(self, segment: Segment) -> tuple[Ids, Bool[Array, "batch places"]]:
        """The ids of every next frame and which of them are learned: the first frames that exist as a whole, and the
        end behind them. All else is ``pad``."""
        ids = segment.values.reshape(len(segment.values), -1, self.levels)
        exists = jnp.ones(ids.shape, bool) if segment.seen is None else segment.seen.reshape(ids.shape)
        length = jnp.cumprod(exists.all(axis=-1), axis=1).sum(axis=1)[:, None]
        place = jnp.arange(ids.shape[1] + 1)
        ids = jnp.pad(ids, ((0, 0), (0, 1), (0, 0)))
        ids = jnp.where((place < length)[..., None], ids, self.head.pad)
        return jnp.where((place == length)[..., None], self.head.end, ids), place <= length

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
        """Mean cross-entropy over the tokens of the frames and of the end, and ``accuracy``.

        In training a share ``token_drop`` of the input tokens is replaced by random ones; targets stay.
        """
        segment, micro = tokens.only, micro or MicroBatch()
        self.check_grid(segment.layout.grid)
        ids = segment.values.reshape(len(segment.values), -1, self.levels)
        dropout_keys = None
        if train:
            conditioning = conditioning.drop_share(self.condition_drop, named_key(key, "drop"), micro)
            ids = self.replaced(ids, key, micro)
            dropout_keys = micro.keys(named_key(key, "dropout"), len(ids)) if self.dropout else None
        targets, learned = self.targets(segment)
        total, count, measured = self.head.loss(self.features(ids, conditioning, dropout_keys), targets, learned)
        if segment.seen is not None:
            # A sum over the micro-batch over the mean count of the whole batch: their mean is its quotient.
            count = jnp.maximum(micro.mean(count), 1 / micro.count)
        (hits, at) = measured["accuracy"]
        return total / count, {"loss": total / count, "accuracy": hits / jnp.maximum(at, 1)}

    def replaced(self, ids: Ids, key: jax.Array, micro: MicroBatch) -> Ids:
        """The tokens, of which each is a random one by ``token_drop``."""
        if not self.token_drop:
            return ids
        random = self.head.random_values(micro.keys(named_key(key, "random_ids"), len(ids)), ids.shape)
        dropped = micro.draw(jax.random.uniform, named_key(key, "token_drop"), ids.shape) < self.token_drop
        return jnp.where(dropped, random, ids)


@dataclasses.dataclass(eq=False)
class FrameDecoding(Stepper):
    """The steps of a ``NextFrameTransformer``: one pass a frame, over cached keys of the tower and of every branch.

    Its memory are the last frame, which examples have ended, and the caches.
    """

    def __post_init__(self):
        model, conditioning = self.model, self.conditioning
        self.guided = self.sampler.guidance_scale != 1 and model.context is not None
        if self.guided:
            conditioning = conditioning.with_null()
        self.batch = self.keys.shape[0] * (1 + self.guided)
        self.start, self.places = model.begin_vector(conditioning, self.batch), model.positions()

    @property
    def frames(self) -> int:
        return 1

    def begin(self, prefix: Tokens | None) -> tuple[Ids, Bool[Array, "batch"], Any]:
        model, batch = self.model, self.keys.shape[0]
        if prefix is not None:
            raise UserError("next_frame goes on from no given frames")
        length = self.layout.only.grid.time + 1
        caches = tuple(stack.begin(self.batch, length) for stack in (model.tower, model.branches))
        return jnp.zeros((batch, 1, model.levels), jnp.int32), jnp.zeros(batch, bool), caches

    def reconditioned(self, memory: Any) -> Any:
        raise UserError("the text stands at the beginning of the sequence: it cannot change later")

    def advance(self, memory: tuple[Ids, Array, Any], at: Int[Array, ""]) -> tuple[Any, Tokens]:
        model, (last, ended, (tower, branches)) = self.model, memory
        x = jnp.where(at == 0, self.start, jnp.tile(model.embed(last), (1 + self.guided, 1, 1)))
        x = x + self.places[at].astype(x.dtype)
        stream = Stream((tower,))
        x = model.tower(x, mask=model.mask, stream=stream)
        features, branches = model.behind(x, branches)
        keys, null = jax.vmap(lambda key: jax.random.fold_in(key, at))(self.keys), None
        if self.guided:
            features, null = jnp.split(features, 2)
        progress = at / self.layout.only.grid.time
        ids = model.head.draw(features, null, keys, self.sampler.of_head(progress))[0]
        ended = ended | (ids == model.head.end).any(axis=(1, 2))
        ids = jnp.where(ended[:, None, None], 0, ids)
        exists = jnp.broadcast_to(~ended[:, None, None], ids.shape)
        layout = self.layout.with_time(1)
        exists = exists.reshape(-1, *layout.only.shape)
        return (ids, ended, (stream.cache[0], branches)), Tokens.single(ids, layout, exists=exists)
