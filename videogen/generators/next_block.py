"""Next Block Prediction (Ren et al., 2025): a block of codes is predicted from its counterparts in the block before.

Inside a block attention is bidirectional, between blocks causal, so a block is drawn in one pass. With blocks of one
code this is next-token prediction, with one block of the whole clip one-shot prediction.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from videogen import heads
from videogen.conditioning import Conditioning, NullableContext
from videogen.diffusion.latent_statistics import LatentStatistics
from videogen.errors import UserError, near_matches
from videogen.generators.block_decoding import Decoding
from videogen.generators.deep_text import DeepText
from videogen.generators.sampling import BlockSampler
from videogen.generators.sequences import absent, block_order, delay, inverse, tokens_of, undelay
from videogen.generators.stepping import Generator
from videogen.nn import (
    BlockCausal,
    LearnedPositions,
    MicroBatch,
    angles_at,
    named_key,
    parameter,
    read_transformer,
    rotary_angles,
    truncated_normal,
)
from videogen.ranges import Natural, OneOf, Share, Triple
from videogen.shapes import TokenGrid
from videogen.tokens import Layout, Segment, Tokens

TEXTS = ("cross", "deep")
"""How tokens see the conditioning: by a cross-attention in every block, or in every block as what a layer of a language
model makes of the text (``deep_text``)."""

STARTS = ("tokens", "block", "given", "prefix")
"""How the first block comes about: token by token (NBP section 3.3), at once from learned vectors, or it is given; the
given frames of a prefix see each other both ways (prefix LM)."""


class NextBlockTransformer(Generator):
    """Autoregressive transformer over blocks of codes, or of normalised latents.

    Args:
      vocabulary: codes per level; empty where there are latents …
      grid: ``(time, height, width)`` of the longest training clip.
      transformer: ``{width, layers, heads, mlp_width, …}`` (``nn.TransformerSection``). Rotary positions stand beside
        the learned table; the paper's GPT-2 has ``norm="layer"`` and no ``qk_norm``.
      channels: … of which these are the channels.
      head: ``{name, …}`` of ``videogen.heads``; by default independent levels.
      delay: every level of a code is predicted one block later than the one below it (MusicGen; Copet et al., 2023).
      block: ``(time, height, width)`` of a block; ``(1, 1, 1)`` is next-token prediction.
      start: a name in ``STARTS``.
      given: latent frames that are always given; with ``start="given"`` or ``"prefix"``, else 0. They have no loss.
      text: a name in ``TEXTS``.
      context_width: width of the conditioning features; ``None`` builds an unconditional model.
      classes: number of class labels; ``None`` means a model without labels.
      token_drop: share of input codes replaced by random ones in training.
      condition_drop: share of examples trained with the null conditioning (for guidance).
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        grid: Sequence[int],
        transformer: Mapping[str, Any],
        *,
        channels: int | None = None,
        head: Mapping[str, Any] = MappingProxyType({"name": "categorical"}),
        delay: bool = False,
        block: Triple = (1, 1, 1),
        start: str = "block",
        given: Natural = 0,
        text: Annotated[str, OneOf(*TEXTS)] = "cross",
        context_width: int | None = None,
        classes: int | None = None,
        token_drop: Share = 0.0,
        condition_drop: Share = 0.1,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if start not in STARTS:
            raise UserError(f"unknown start {start!r}{near_matches(start, STARTS)}")
        if (start in ("given", "prefix")) != (given > 0):
            raise UserError(
                f"start={start!r} and given={given} contradict each other: frames are given with 'given' or 'prefix'"
            )
        section = read_transformer(transformer)
        if section.position_generator:
            raise UserError("a position generator looks at its neighbours: blocks cannot be decoded one after another")
        self.grid, self.block, self.block_tokens = TokenGrid(*grid), tuple(block), tokens_of(block)
        self.order(self.grid)
        self.start, self.delay, self.dtype = start, delay, dtype
        self.given_frames, self.given = given, given * self.grid.tokens_per_frame
        if given % self.block[0] or given >= self.grid.time:
            raise UserError(f"{given} given latent frames must be whole blocks and fewer than all {self.grid.time}")
        self.token_drop, self.dropout, self.condition_drop = token_drop, section.dropout, condition_drop
        self.rotary, self.head_width, width = section.rotary, section.head_width, section.width
        self.mask = BlockCausal(
            self.block_tokens,
            causal_first=start == "tokens",
            prefix=self.given if start == "prefix" else 0,
        )
        common = dict(remat=remat, dtype=dtype, rngs=rngs)
        # Delayed levels leave places without a value.
        self.head = heads.build(head, vocabulary=vocabulary, channels=channels, width=width, hidden=delay, **common)
        if delay and not self.head.independent_levels:
            raise UserError("delay needs a head whose levels are independent: categorical or bernoulli")
        self.ends = self.head.end is not None
        if self.ends and self.block_tokens > 1:
            raise UserError("a sequence ends behind any of its tokens: head.special=('end',) needs block=(1, 1, 1)")
        self.statistics = None if self.head.discrete else LatentStatistics(channels)
        self.positions = LearnedPositions(self.grid.tokens + self.delayed, width, rngs=rngs)
        starts = () if given else (self.block_tokens, width)
        self.start_vectors = parameter(rngs, starts, (None, "embed"), truncated_normal(0.02)) if starts else None
        deep, crossed = (context_width, None) if text == "deep" else (None, context_width)
        known = dict(classes=classes, layered=bool(deep), rngs=rngs)
        self.context = NullableContext(context_width, **known) if context_width else None
        self.deep_text = DeepText(deep, width, dtype=dtype, rngs=rngs) if deep else None
        self.stack = section.stack(context_width=crossed, **common)
        self.norm = section.last_norm(rngs=rngs)

    sampler = BlockSampler
    steppers = MappingProxyType({"window": Decoding})
    completes = False
    denoises = label_as_vector = False

    def check_grid(self, grid: TokenGrid) -> None:
        """Refuses a grid, of a bucket or of images, that cannot be learned.

        Raises:
          UserError: it does not divide into blocks, or given frames leave nothing of it to predict.
        """
        self.order(grid)
        if grid.time <= self.given_frames:
            raise UserError(
                f"{self.given_frames} latent frames are always given (model.given): a clip of {grid.time} has none to "
                "predict; leave images (data.image_batch_size) and buckets of so few frames out"
            )

    def prefixes(self, frames: int) -> range:
        """How many latent frames may be given of a clip of ``frames`` of them; 0 is none.

        Only whole blocks, since a block is drawn at once.
        """
        return range(self.given_frames, frames, self.block[0])

    @property
    def delayed(self) -> int:
        """Places the sequence is longer than the clip, because levels are delayed."""
        return self.shift(self.head.levels - 1)

    def shift(self, level: int) -> int:
        """Places that a level comes later than the first one."""
        return level * self.block_tokens if self.delay else 0

    def order(self, grid: TokenGrid) -> Int[np.ndarray, "tokens"]:
        """Raster places in the order of generation."""
        return block_order(grid, self.block)

    def passes(self, grid: TokenGrid, prefix_tokens: int = 0) -> int:
        """Forward passes that draw a clip, the one that reads the prefix not counted (NBP section 3.3)."""
        blocks = (grid.tokens + self.delayed - prefix_tokens) // self.block_tokens
        return blocks - 1 + self.block_tokens if self.start == "tokens" and not prefix_tokens else blocks

    # Sequences -------------------------------------------------------------------------------------------------------

    def sequence(
        self, values: Shaped[Array, "batch *sides levels"], grid: TokenGrid
    ) -> Shaped[Array, "batch places levels"]:
        """Codes, or normalised latents, as the sequence that is generated."""
        flat = values.reshape(values.shape[0], grid.tokens, -1)[:, self.order(grid)]
        flat = flat if self.statistics is None else self.statistics.normalise(flat)
        return delay(flat, self.block_tokens) if self.delay else flat

    def tokens(
        self,
        values: Shaped[Array, "batch places levels"],
        layout: Layout,
        exists: Bool[Array, "batch tokens"] | None = None,
    ) -> Tokens:
        """The inverse of ``sequence``, of whole frames of blocks from any place on; what does not exist is 0."""
        masks, order = {}, inverse(self.order(layout.only.grid))
        if exists is not None:
            values = jnp.where(exists[..., None], values, 0)
            masks["exists"] = exists[:, order].reshape(-1, *layout.only.shape)
        values = undelay(values, self.block_tokens) if self.delay else values
        values = values[:, order]
        return Tokens.single(values if self.statistics is None else self.statistics.restore(values), layout, **masks)

    def _ended(
        self, values: Int[Array, "batch places levels"], segment: Segment
    ) -> tuple[Int[Array, "batch places levels"], Bool[Array, "batch places"]]:
        """The sequence with its end where the first token is missing, and the places up to the end."""
        exists = segment.seen.reshape(len(values), -1)[:, self.order(segment.layout.grid)]
        first, place = jnp.cumprod(exists, axis=1).sum(axis=1, keepdims=True), np.arange(values.shape[1])
        ids = jnp.where(place < first, values[..., 0], jnp.where(place == first, self.head.end, 0))
        return ids[..., None].astype(values.dtype), place <= first

    def absent(self, grid: TokenGrid) -> Bool[np.ndarray, "places levels"] | None:
        """Which levels of the places of a sequence have no value; ``None`` where all have one."""
        return absent(grid.tokens, self.head.levels, self.block_tokens) if self.delay else None

    def inputs(
        self, values: Shaped[Array, "batch places levels"], grid: TokenGrid
    ) -> Float[Array, "batch inputs width"]:
        """What stands at each place of the input: the input at place i predicts the value at place i.

        All but the last block, behind the vectors of the start. Where the frames are given the input at place i
        predicts place i + block, and no start is needed.
        """
        hidden = self.absent(grid)
        hidden = None if hidden is None else jnp.broadcast_to(hidden, values.shape)
        size, x = self.block_tokens, self.head.embed(values, hidden)
        if self.given:
            return x[:, :-size]
        start = jnp.broadcast_to(self.start_vectors.get_value().astype(x.dtype), (x.shape[0], size, x.shape[-1]))
        if self.start == "block":
            return jnp.concatenate([start, x[:, :-size]], axis=1)
        inputs = [start[:, :1], x[:, : size - 1]]
        if x.shape[1] > size:
            inputs += [x[:, size - 1 : size], start[:, 1:], x[:, size:-size]]
        return jnp.concatenate(inputs, axis=1)

    def places(self, grid: TokenGrid) -> tuple[Float[Array, "places width"], Float[Array, "places angles"] | None]:
        """Learned and rotary positions of every place of the sequence; delayed places are those of the last block."""
        learned = self.positions(grid.tokens + self.delayed)
        if not self.rotary:
            return learned, None
        if self.centres is None:
            angles = rotary_angles(grid.shape, self.head_width)[self.order(grid)]
        else:
            with jax.ensure_compile_time_eval():
                angles = np.asarray(angles_at(np.array(self.centres), self.head_width))
        return learned, np.concatenate([angles, *[angles[-self.block_tokens :]] * (self.delayed // self.block_tokens)])

    def features(
        self,
        values: Shaped[Array, "batch places levels"],
        conditioning: Conditioning,
        grid: TokenGrid,
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch predicted width"]:
        """Features of every predicted place: all of them, or with given frames those after the first block."""
        learned, angles = self.places(grid)
        first = self.block_tokens if self.given else 0
        x = self.inputs(values, grid) + learned[first:].astype(self.dtype)
        context, context_mask, per_layer = None, None, {}
        if self.context is not None:
            context, context_mask = self.context(conditioning)
        if self.deep_text is not None:
            per_layer = {"extra_kv": self.deep_text(context, context_mask, self.stack)}
            context = context_mask = None
        x = self.stack(
            x,
            mask=self.mask,
            rotary=None if angles is None else angles[first:],
            context=context,
            context_mask=context_mask,
            key=key,
            per_layer=per_layer,
        )
        return self.norm(x)

    def targets(self, values: Shaped[Array, "batch places levels"]) -> Shaped[Array, "batch predicted levels"]:
        """The values of a sequence that are predicted: all, but for a first block that is given."""
        return values[:, self.block_tokens :] if self.given else values

    # Training --------------------------------------------------------------------------------------------------------

    def loss(
        self,
        tokens: Tokens,
        conditioning: Conditioning,
        key: jax.Array,
        *,
        train: bool = True,
        micro: MicroBatch | None = None,
        inputs: Tokens | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean loss of the head over places and levels, and metrics: ``loss`` and those of the head (``accuracy``).

        Given frames and places without a value have no loss. With an end, tokens that are missing (``Segment.seen``)
        end the sequence: the end is learned in the place of the first of them, and nothing behind it. Where there are
        ``inputs``, these are shown instead of the tokens, and ``token_drop`` replaces nothing.
        """
        segment, learned = tokens.only, None
        if segment.exists is not None and not self.ends:
            raise UserError("next-block prediction takes clips of full length, or a head with special=('end',)")
        self.check_grid(grid := segment.layout.grid)
        values, micro = self.sequence(segment.values, grid), micro or MicroBatch()
        if self.ends and segment.seen is not None:
            values, learned = self._ended(values, segment)
        if train:
            conditioning = conditioning.drop_share(self.condition_drop, named_key(key, "drop"), micro)
        shown = values if inputs is None else self.sequence(inputs.only.values, grid)
        if train and self.token_drop > 0 and inputs is None:
            random = self.head.random_values(micro.keys(named_key(key, "random_ids"), len(values)), values.shape)
            dropped = micro.draw(jax.random.uniform, named_key(key, "token_drop"), values.shape[:2]) < self.token_drop
            shown = jnp.where(dropped[..., None], random, values)
        dropout_keys = micro.keys(named_key(key, "dropout"), len(values)) if train and self.dropout else None
        features = self.features(shown, conditioning, grid, key=dropout_keys)
        targets = self.targets(values)
        counted, head_keys = self._counted(grid, targets), micro.keys(named_key(key, "head"), len(values))
        if learned is not None:
            counted &= learned[:, -counted.shape[1] :]
        total, count, measured = self.head.loss(features, targets, counted, head_keys, train=train)
        sums = {"loss": total, **{name: value for name, (value, _) in measured.items()}}
        counts = {"loss": count, **{name: number for name, (_, number) in measured.items()}}
        if learned is not None:
            # Sums over the micro-batch over mean counts of the whole batch: their mean is the whole batch's quotient.
            counts = {name: jnp.maximum(number, 1 / micro.count) for name, number in micro.mean(counts).items()}
        metrics = {name: value / counts[name] for name, value in sums.items()}
        return metrics["loss"], metrics

    def _counted(self, grid: TokenGrid, targets: Shaped[Array, "batch predicted levels"]) -> Bool[Array, "batch ..."]:
        """The predicted places, or where levels are delayed the levels of them, that have a loss."""
        place, hidden = np.arange(grid.tokens + self.delayed)[-targets.shape[1] :], self.absent(grid)
        if hidden is None:
            return jnp.broadcast_to(place >= self.given, targets.shape[:2])
        own = place[:, None] - np.array([self.shift(level) for level in range(self.head.levels)])
        return jnp.broadcast_to((own >= self.given) & ~hidden[-len(place) :], targets.shape)
