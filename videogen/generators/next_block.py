"""Next Block Prediction (Ren et al., 2025): a block of codes is predicted from its counterparts in the block before.

Inside a block attention is bidirectional, between blocks causal, so a block is drawn in one pass. With blocks of one
code this is next-token prediction, with one block of the whole clip one-shot prediction.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.conditioning import Conditioning, NullableContext
from videogen.errors import UserError, near_matches
from videogen.generators.block_decoding import Decoding
from videogen.generators.heads import DepthHead, LevelEmbedding, ParallelHead
from videogen.generators.sampling import BlockSampler
from videogen.generators.sequences import (
    block_order,
    delay,
    factor_vocabulary,
    inverse,
    merge_factors,
    split_factors,
    tokens_of,
    undelay,
)
from videogen.nn import (
    NORMS,
    BlockCausal,
    LearnedPositions,
    MicroBatch,
    block_stack,
    named_key,
    parameter,
    rotary_angles,
    truncated_normal,
)
from videogen.ranges import Count, Natural, Share, Triple
from videogen.shapes import Codes, TokenGrid

STARTS = ("tokens", "block", "given")
"""How the first block comes about: token by token (NBP section 3.3), at once from learned vectors, or it is given."""

LEVELS = ("parallel", "delay", "depth")
"""How the levels of a code are predicted: at once, one block later each (MusicGen), or by a transformer over levels."""


class NextBlockTransformer(nnx.Module):
    """Autoregressive transformer over blocks of codes.

    Args:
      vocabulary: codes per level.
      grid: ``(time, height, width)`` of the longest training clip.
      width, layers, heads, mlp_width: size of the transformer.
      block: ``(time, height, width)`` of a block; ``(1, 1, 1)`` is next-token prediction.
      start: a name in ``STARTS``.
      given: latent frames that are always given; with ``start="given"``, else 0. They have no loss.
      bidirectional_prefix: the given frames see each other both ways (prefix LM).
      levels: a name in ``LEVELS``.
      factors: split each level of the vocabulary into so many equal factors: 2^18 codes are 2 × 2^9 (MAGVIT-v2).
      depth_layers: layers of the transformer over levels, with ``levels="depth"``.
      context_width: width of the conditioning features; ``None`` builds an unconditional model.
      classes: number of class labels; ``None`` means a model without labels.
      rotary: 3-D rotary positions beside the learned table.
      norm: before every branch, a name in ``nn.NORMS``; the paper's GPT-2 has ``"layer"`` …
      qk_norm: … and no RMS-normalised queries and keys.
      token_drop: share of input codes replaced by random ones in training.
      dropout: rate on the residual branches.
      condition_drop: share of examples trained with the null conditioning (for guidance).
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        grid: Sequence[int],
        width: Count,
        layers: Natural,
        heads: Count,
        mlp_width: Count,
        *,
        block: Triple = (1, 1, 1),
        start: str = "block",
        given: Natural = 0,
        bidirectional_prefix: bool = False,
        levels: str = "parallel",
        factors: Count = 1,
        depth_layers: Natural = 2,
        context_width: int | None = None,
        classes: int | None = None,
        rotary: bool = False,
        norm: str = "rms",
        qk_norm: bool = True,
        token_drop: Share = 0.0,
        dropout: Share = 0.0,
        condition_drop: Share = 0.1,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (("start", start, STARTS), ("levels", levels, LEVELS)):
            if value not in known:
                raise UserError(f"unknown {name} {value!r}{near_matches(value, known)}")
        if (start == "given") != (given > 0):
            raise UserError(f'start={start!r} and given={given} contradict each other: frames are given with "given"')
        if bidirectional_prefix and not given:
            raise UserError("bidirectional_prefix needs given frames")
        self.codebooks, self.factors = tuple(vocabulary), factors
        self.vocabulary = factor_vocabulary(vocabulary, factors)
        self.grid, self.block, self.block_tokens = TokenGrid(*grid), tuple(block), tokens_of(block)
        self.order(self.grid)
        self.start, self.pattern = start, levels
        self.given_frames, self.given = given, given * self.grid.tokens_per_frame
        if given % self.block[0] or given >= self.grid.time:
            raise UserError(f"{given} given latent frames must be whole blocks and fewer than all {self.grid.time}")
        self.token_drop, self.dropout, self.condition_drop = token_drop, dropout, condition_drop
        self.head_width = width // heads
        self.rotary = rotary
        self.mask = BlockCausal(
            self.block_tokens,
            causal_first=start == "tokens",
            prefix=self.given if bidirectional_prefix else 0,
        )
        common = dict(dtype=dtype, rngs=rngs)
        # One more id per level where delayed levels leave places without a code.
        filled = tuple(size + (levels == "delay") for size in self.vocabulary)
        self.embedding = LevelEmbedding(filled, width, **common)
        self.positions = LearnedPositions(self.grid.tokens + self.delayed, width, rngs=rngs)
        starts = () if start == "given" else (self.block_tokens, width)
        self.start_vectors = parameter(rngs, starts, (None, "embed"), truncated_normal(0.02)) if starts else None
        self.context = NullableContext(context_width, classes=classes, rngs=rngs) if context_width else None
        self.stack = block_stack(
            width,
            layers,
            attention={"heads": heads, "qk_norm": "head" if qk_norm else None},
            mlp={"hidden": mlp_width},
            norm=norm,
            cross_attention={"context_width": context_width} if context_width else None,
            dropout=dropout,
            remat=remat,
            **common,
        )
        self.norm = NORMS[norm](width, rngs=rngs)
        if levels == "depth":
            self.head = DepthHead(self.vocabulary, width, depth_layers, heads, remat=remat, **common)
        else:
            self.head = ParallelHead(self.vocabulary, width, **common)

    sampler = BlockSampler

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
        return self.shift(len(self.vocabulary) - 1)

    def shift(self, level: int) -> int:
        """Places that a level comes later than the first one."""
        return level * self.block_tokens if self.pattern == "delay" else 0

    def order(self, grid: TokenGrid) -> Int[np.ndarray, "tokens"]:
        """Raster places in the order of generation."""
        return block_order(grid, self.block)

    def passes(self, grid: TokenGrid, prefix_tokens: int = 0) -> int:
        """Forward passes that draw a clip, the one that reads the prefix not counted (NBP section 3.3)."""
        blocks = (grid.tokens + self.delayed - prefix_tokens) // self.block_tokens
        return blocks - 1 + self.block_tokens if self.start == "tokens" and not prefix_tokens else blocks

    # Sequences -------------------------------------------------------------------------------------------------------

    def _sequence(self, codes: Codes) -> Int[Array, "batch places levels"]:
        """Codes as the sequence of ids that is generated."""
        flat = codes.indices.reshape(codes.indices.shape[0], codes.grid.tokens, -1)
        ids = split_factors(flat[:, self.order(codes.grid)], self.codebooks, self.factors)
        return delay(ids, self.block_tokens, self.vocabulary) if self.pattern == "delay" else ids

    def _codes(self, ids: Int[Array, "batch places levels"], grid: TokenGrid) -> Codes:
        """The inverse of ``_sequence``."""
        ids = undelay(ids, self.block_tokens) if self.pattern == "delay" else ids
        merged = merge_factors(ids, self.codebooks, self.factors)[:, inverse(self.order(grid))]
        return Codes(merged.reshape(ids.shape[0], *grid.shape, len(self.codebooks)), grid)

    def inputs(self, ids: Int[Array, "batch places levels"]) -> Float[Array, "batch inputs width"]:
        """What stands at each place of the input: the input at place i predicts the code at place i.

        All but the last block, behind the vectors of the start. Where the frames are given the input at place i
        predicts place i + block, and no start is needed.
        """
        size, x = self.block_tokens, self.embedding(ids)
        if self.start == "given":
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
        angles = rotary_angles(grid.shape, self.head_width)[self.order(grid)]
        return learned, np.concatenate([angles, *[angles[-self.block_tokens :]] * (self.delayed // self.block_tokens)])

    def features(
        self,
        ids: Int[Array, "batch places levels"],
        conditioning: Conditioning,
        grid: TokenGrid,
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch predicted width"]:
        """Features of every predicted place: all of them, or with given frames those after the first block."""
        learned, angles = self.places(grid)
        first = self.block_tokens if self.start == "given" else 0
        x = self.inputs(ids) + learned[first:].astype(self.embedding.table.dtype)
        context = context_mask = None
        if self.context is not None:
            context, context_mask = self.context(conditioning)
        x = self.stack(
            x,
            mask=self.mask,
            rotary=None if angles is None else angles[first:],
            context=context,
            context_mask=context_mask,
            key=key,
        )
        return self.norm(x)

    def logits(self, codes: Codes, conditioning: Conditioning) -> list[Float[Array, "batch predicted vocabulary"]]:
        """Float32 logits of every predicted place in order of generation, one array per level."""
        ids = self._sequence(codes)
        return self.head.logits(self.features(ids, conditioning, codes.grid), self._targets(ids))

    def _targets(self, ids: Int[Array, "batch places levels"]) -> Int[Array, "batch predicted levels"]:
        return ids[:, self.block_tokens :] if self.start == "given" else ids

    # Training --------------------------------------------------------------------------------------------------------

    def loss(
        self,
        codes: Codes,
        conditioning: Conditioning,
        key: jax.Array,
        *,
        train: bool = True,
        micro: MicroBatch | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean cross-entropy over codes and levels in nats, and metrics ``loss`` and ``accuracy``.

        Given frames and places without a code have no loss.
        """
        if codes.mask is not None:
            raise UserError("next-block prediction takes clips of full length")
        self.check_grid(codes.grid)
        ids, micro = self._sequence(codes), micro or MicroBatch()
        if train and self.condition_drop > 0:
            conditioning = conditioning.drop(
                micro.draw(jax.random.uniform, named_key(key, "drop"), ids.shape[:1]) < self.condition_drop
            )
        seen = ids
        if train and self.token_drop > 0:
            limits = jnp.array(self.vocabulary)
            random_id = functools.partial(jax.random.randint, minval=0, maxval=limits)
            random_ids = micro.draw(random_id, named_key(key, "random_ids"), ids.shape)
            dropped = micro.draw(jax.random.uniform, named_key(key, "token_drop"), ids.shape[:2]) < self.token_drop
            seen = jnp.where(dropped[..., None], random_ids, ids)
        dropout_keys = micro.keys(named_key(key, "dropout"), len(ids)) if train and self.dropout else None
        features = self.features(seen, conditioning, codes.grid, key=dropout_keys)
        targets = self._targets(ids)
        place = jnp.arange(ids.shape[1])[-targets.shape[1] :]
        losses, hits, count = 0.0, 0.0, 0.0
        for level, logits in enumerate(self.head.logits(features, targets)):
            wanted = place - self.shift(level) >= self.given
            exists = wanted & (targets[..., level] < self.vocabulary[level])
            target = jnp.where(exists, targets[..., level], 0)
            nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1)[..., 0]
            losses += jnp.where(exists, nll, 0.0).sum()
            hits += (exists & (logits.argmax(-1) == target)).sum()
            count += exists.sum()
        return losses / count, {"loss": losses / count, "accuracy": hits / count}

    # Sampling --------------------------------------------------------------------------------------------------------

    def sample(
        self,
        grid: TokenGrid,
        conditioning: Conditioning,
        keys: jax.Array,
        sampler: BlockSampler,
        prefix: Codes | None = None,
    ) -> Codes:
        """Draws codes of ``grid`` for every example, block after block, keys and values cached.

        Args:
          grid: at most the training grid.
          conditioning: one entry per example.
          keys: ``[batch]`` random keys, one per example: a draw does not depend on its neighbours in the batch.
          sampler: how to draw.
          prefix: codes of the first latent frames, kept as they are.

        Raises:
          UserError: the prefix is no whole number of blocks, or there is none where frames are always given.
        """
        batch, frames = keys.shape[0], 0 if prefix is None else prefix.grid.time
        if frames not in self.prefixes(grid.time):
            raise UserError(
                f"a prefix must hold whole blocks of {self.block_tokens} codes and {self.block[0]} latent frames, from "
                f"{self.given_frames} to fewer than {grid.time} of these, got {frames}"
            )
        known = frames * grid.tokens_per_frame
        ids = jnp.zeros((batch, grid.tokens, len(self.codebooks)), jnp.int32)
        if prefix is not None:
            raster = jnp.arange(grid.tokens) < known
            flat = prefix.indices.reshape(batch, known, -1)
            ids = jnp.where(raster[:, None], jnp.pad(flat, ((0, 0), (0, grid.tokens - known), (0, 0))), ids)
        ids = self._sequence(Codes(ids.reshape(batch, *grid.shape, -1), grid))
        ids = Decoding(self, grid, conditioning, keys, sampler, known).run(ids)
        return self._codes(ids, grid)
