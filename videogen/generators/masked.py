"""Masked transformer over video codes: MaskGIT training on the C-ViViT grid (Phenaki section 2.2), and COMMIT.

Given pixels reach it as the codes of a clip filled from them (MAGVIT section 3.2): of the places that are corrupted
those the pixels touch show such a code, the others ``[MASK]``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import building
from videogen.conditioning import Conditioning, Given, NullableContext
from videogen.errors import UserError, near_matches
from videogen.generators.critic import TokenCritic
from videogen.generators.heads import LevelEmbedding
from videogen.generators.maskgit import MaskGITSampler, decode
from videogen.generators.sampling import guide
from videogen.generators.sequences import factor_vocabulary, merge_factors, split_factors
from videogen.nn import (
    NORMS,
    Embedding,
    LearnedPositions,
    Linear,
    MicroBatch,
    block_stack,
    draw,
    example_keys,
    named_key,
    parameter,
    rotary_angles,
    truncated_normal,
)
from videogen.ranges import Count, Natural, Share
from videogen.schedules import DECAYS, decay
from videogen.shapes import Codes, TokenGrid

LOSS_PLACES = ("masked", "corrupted", "all")
"""Where the loss is: at ``[MASK]``; also at codes of the given pixels (to be refined); also at codes that are kept."""


def random_mask(
    key: jax.Array, ratio: Float[Array, "batch"], exists: Bool[Array, "batch tokens"]
) -> Bool[Array, "batch tokens"]:
    """Masks ``ceil(ratio · n)`` uniformly chosen places (at least one) of the ``n`` that exist in each row.

    ``key`` is one, or one of each row.
    """
    noise = jnp.where(exists, draw(jax.random.uniform, example_keys(key, len(exists)), exists.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(noise, axis=-1), axis=-1)
    count = jnp.maximum(jnp.ceil(ratio * exists.sum(-1)), 1)
    return exists & (rank < count[:, None])


class MaskedTransformer(nnx.Module):
    """Bidirectional transformer that predicts masked codes from the visible ones and the conditioning.

    Args:
      vocabulary: codes per level; the levels of a place are masked together and predicted independently.
      grid: ``(time, height, width)`` of the longest training clip; shorter clips use the first rows of the
        position table, longer ones slide the window.
      width, layers, heads, mlp_width: size of the transformer.
      context_width: width of the conditioning features; ``None`` builds an unconditional model.
      classes: number of class labels; ``None`` means a model without labels.
      tasks: number of tasks of given pixels (``conditioning.TASKS``); ``None`` means a model that takes none.
      factors: split each level of the vocabulary into so many equal factors: 2^18 codes are 2 × 2^9 (MAGVIT-v2).
      null_keys: learned always-visible slots of the cross-attention.
      rotary: 3-D rotary positions in self-attention, beside the learned table.
      position_generator: depthwise convolutions over the grid, as in phenaki-pytorch.
      dropout: rate on the residual branches.
      training_schedule: law of the mask ratio over u ~ U(0, 1): ``linear`` is the paper's uniform ratio,
        ``cosine`` that of MaskGIT and phenaki-pytorch.
      loss_on: a name in ``LOSS_PLACES``; MAGVIT's is ``all``.
      condition_drop: share of examples trained with the null conditioning (for guidance).
      label_smoothing: smoothing of the cross-entropy targets.
      critic: ``{layers, weight}`` of a ``TokenCritic`` that is trained along and then decides which codes decoding
        keeps; without one, or with 0 layers, those drawn with the highest probability are kept.
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
        context_width: int | None = None,
        classes: int | None = None,
        tasks: int | None = None,
        factors: Count = 1,
        null_keys: Natural = 0,
        rotary: bool = False,
        position_generator: bool = False,
        dropout: Share = 0.0,
        training_schedule: str = "linear",
        loss_on: str = "masked",
        condition_drop: Share = 0.1,
        label_smoothing: Share = 0.0,
        critic: Mapping[str, Any] | None = None,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (("loss_on", loss_on, LOSS_PLACES), ("schedule", training_schedule, DECAYS)):
            if value not in known:
                raise UserError(f"unknown {name} {value!r}{near_matches(value, known)}")
        self.codebooks, self.factors = tuple(vocabulary), factors
        self.vocabulary, self.loss_on = factor_vocabulary(vocabulary, factors), loss_on
        self.grid = TokenGrid(*grid)
        self.dropout, self.training_schedule = dropout, training_schedule
        self.condition_drop, self.label_smoothing = condition_drop, label_smoothing
        self.rotary, self.head_width = rotary, width // heads
        # One more id per level: [MASK].
        self.embedding = LevelEmbedding([size + 1 for size in self.vocabulary], width, dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(self.grid.tokens, width, rngs=rngs)
        self.context = NullableContext(context_width, classes=classes, rngs=rngs) if context_width else None
        self.stack = block_stack(
            width,
            layers,
            attention={"heads": heads},
            mlp={"hidden": mlp_width},
            cross_attention={"context_width": context_width, "null_keys": null_keys} if context_width else None,
            position_generator="bidirectional" if position_generator else None,
            dropout=dropout,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = NORMS["rms"](width, rngs=rngs)
        self.head = Linear(
            width,
            sum(self.vocabulary),
            axes=("embed", "vocabulary"),
            initializer=truncated_normal(0.02),
            dtype=dtype,
            rngs=rngs,
        )
        self.task = Embedding(tasks, width, axes=(None, "embed"), dtype=dtype, rngs=rngs) if tasks else None
        # Marks a code of given pixels, which must be told from a code to be kept.
        self.segment = parameter(rngs, (width,), ("embed",), truncated_normal(0.02)) if tasks else None
        sizes = dict(width=width, heads=heads, mlp_width=mlp_width, context_width=context_width, classes=classes)
        places = dict(grid=self.grid.shape, rotary=rotary, position_generator=position_generator)
        common = dict(vocabulary=self.vocabulary, **sizes, **places, remat=remat, dtype=dtype, rngs=rngs)
        critic = {"name": "token", **critic} if critic and critic["layers"] else None
        # Made last, so that all else begins as it would without one.
        self.critic = building.build({"token": TokenCritic}, critic, "critic", **common) if critic else None

    sampler = MaskGITSampler
    given_frames = 0

    def check_grid(self, grid: TokenGrid) -> None:
        """Any grid that is no larger than the training grid can be learned."""

    def prefixes(self, frames: int) -> range:
        """How many latent frames may be given of a clip of ``frames`` of them; 0 is none."""
        return range(frames)

    @property
    def mask_ids(self) -> Int[np.ndarray, "levels"]:
        """The ids of ``[MASK]``, in each level one past the last code."""
        return np.array(self.vocabulary, np.int32)

    def ids(
        self, indices: Int[Array, "batch latent_time latent_height latent_width levels"]
    ) -> Int[Array, "batch tokens levels"]:
        """Codes in raster order, split into factors."""
        flat = indices.reshape(indices.shape[0], -1, len(self.codebooks))
        return split_factors(flat, self.codebooks, self.factors)

    def corrupt(
        self, ids: Int[Array, "batch tokens levels"], corrupted: Bool[Array, "batch tokens"], given: Given | None
    ) -> Int[Array, "batch tokens levels"]:
        """Writes the codes of given pixels into the corrupted places they touch, ``[MASK]`` into the others."""
        written = jnp.broadcast_to(self.mask_ids, ids.shape)
        if given is not None:
            written = jnp.where(given.region[..., None], self.ids(given.indices), written)
        return jnp.where(corrupted[..., None], written, ids)

    def logits(
        self, ids: Int[Array, "batch tokens levels"], conditioning: Conditioning, **call: Any
    ) -> Float[Array, "batch tokens vocabularies"]:
        """Float32 logits of every place, those of its levels side by side; ``call`` as for ``grid_logits``."""
        return self.grid_logits(ids, conditioning, **call).reshape(*ids.shape[:2], sum(self.vocabulary))

    def grid_logits(
        self,
        ids: Int[Array, "batch tokens levels"],
        conditioning: Conditioning,
        *,
        exists: Bool[Array, "batch tokens"] | None = None,
        key: jax.Array | None = None,
        given: Given | None = None,
        corrupted: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch time height width vocabularies"]:
        """The logits on the grid, whose axes may be sharded; one flat sequence axis could not be.

        Args:
          ids: codes and ``mask_ids``.
          conditioning: one entry per example.
          exists: hides places from attention.
          key: for dropout.
          given: pixels the clips are completed from …
          corrupted: … and which places of ``ids`` do not hold a code to be kept.
        """
        batch, length = ids.shape[:2]
        positions = self.positions(length)
        x = self.embedding(ids.reshape(batch, -1, self.grid.height, self.grid.width, len(self.vocabulary)))
        x = x + positions.astype(x.dtype).reshape(x.shape[1:])
        if given is not None:
            shown = (corrupted & given.region).reshape(*x.shape[:-1], 1)
            x = x + self.task(given.task)[:, None, None, None]
            x = x + jnp.where(shown, self.segment.get_value(), 0.0).astype(x.dtype)
        context = context_mask = None
        if self.context is not None:
            context, context_mask = self.context(conditioning)
        x = self.stack(
            x,
            attended_axes=3,
            key_mask=exists,
            rotary=rotary_angles(self.grid.shape, self.head_width)[:length] if self.rotary else None,
            context=context,
            context_mask=context_mask,
            key=key,
        )
        return self.head(self.norm(x)).astype(jnp.float32)

    def loss(
        self,
        codes: Codes,
        conditioning: Conditioning,
        key: jax.Array,
        *,
        given: Given | None = None,
        train: bool = True,
        micro: MicroBatch | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean cross-entropy over the places of ``loss_on`` and their levels, in nats, and metrics.

        Metrics: ``loss``, ``accuracy`` at corrupted places, ``mask_ratio``, the share of places that are corrupted. A
        critic's loss is added, and so are its metrics.
        """
        ids = self.ids(codes.indices)
        batch, micro = ids.shape[0], micro or MicroBatch()
        exists = codes.mask if codes.mask is not None else jnp.ones(ids.shape[:2], bool)
        ratio = decay(self.training_schedule, micro.draw(jax.random.uniform, named_key(key, "ratio"), (batch,)))
        corrupted = random_mask(micro.keys(named_key(key, "mask"), batch), ratio, exists)
        if train and self.condition_drop > 0:
            dropped = micro.draw(jax.random.uniform, named_key(key, "drop"), (batch,)) < self.condition_drop
            conditioning = conditioning.drop(dropped)
        logits = self.grid_logits(
            self.corrupt(ids, corrupted, given),
            conditioning,
            exists=codes.mask,
            key=micro.keys(named_key(key, "dropout"), batch) if train and self.dropout else None,
            given=given,
            corrupted=corrupted,
        )
        counted = exists if self.loss_on == "all" else corrupted
        if self.loss_on == "masked" and given is not None:
            counted = corrupted & ~given.region
        true, ids = ids, ids.reshape(*logits.shape[:-1], -1)
        counted, at = (x.reshape(logits.shape[:-1]) for x in (counted, corrupted))
        total = hits = 0.0
        levels_logits = jnp.split(logits, np.cumsum(self.vocabulary)[:-1], axis=-1)
        for level, part in enumerate(levels_logits):
            log_probability = jax.nn.log_softmax(part)
            nll = -jnp.take_along_axis(log_probability, ids[..., level, None], -1)[..., 0]
            if self.label_smoothing and train:
                nll = (1 - self.label_smoothing) * nll - self.label_smoothing * log_probability.mean(-1)
            total += jnp.where(counted, nll, 0.0).sum()
            hits += (at & (part.argmax(-1) == ids[..., level])).sum()
        # Sums over the micro-batch over mean counts of the whole batch: their mean is the whole batch's quotient.
        count = micro.mean({"counted": counted.sum() * 1.0, "at": at.sum() * 1.0, "exists": exists.sum() * 1.0})
        levels = len(self.vocabulary)
        loss = total / (levels * jnp.maximum(count["counted"], 1 / micro.count))
        accuracy = hits / (levels * jnp.maximum(count["at"], 1 / micro.count))
        metrics = {"loss": loss, "accuracy": accuracy, "mask_ratio": at.sum() / count["exists"]}
        if self.critic is None:
            return loss, metrics
        flat = [part.reshape(batch, -1, part.shape[-1]) for part in levels_logits]
        critic_key = named_key(key, "critic")
        critic_loss, judged = self.critic.loss(true, flat, corrupted, conditioning, critic_key, codes.mask, micro)
        return loss + critic_loss, metrics | judged

    def sample(
        self,
        grid: TokenGrid,
        conditioning: Conditioning,
        keys: jax.Array,
        sampler: MaskGITSampler,
        prefix: Codes | None = None,
        given: Given | None = None,
    ) -> Codes:
        """Draws codes of ``grid`` for every example; ``prefix`` codes are kept as they are.

        Args:
          grid: at most the training grid.
          conditioning: one entry per example.
          keys: ``[batch]`` random keys, one per example: a draw does not depend on its neighbours in the batch.
          sampler: how to decode.
          prefix: codes of the first latent frames (Phenaki section 2.3: extension, image animation).
          given: pixels to complete (MAGVIT section 3.3): their codes are shown until the place is drawn, too.
        """
        batch = keys.shape[0]
        unknown = jnp.ones((batch, grid.tokens), bool)
        start = self.corrupt(jnp.zeros((*unknown.shape, len(self.vocabulary)), jnp.int32), unknown, given)
        if prefix is not None:
            start = start.at[:, : prefix.grid.tokens].set(self.ids(prefix.indices))
            unknown = unknown.at[:, : prefix.grid.tokens].set(False)

        def logits(
            ids: Int[Array, "batch tokens levels"], unknown: Bool[Array, "batch tokens"]
        ) -> Float[Array, "batch tokens vocabularies"]:
            if sampler.guidance_scale == 0 or self.context is None:
                return self.logits(ids, conditioning, given=given, corrupted=unknown)
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), conditioning, conditioning.null())
            ids, corrupted, shown = jax.tree.map(lambda x: jnp.concatenate([x, x]), (ids, unknown, given))
            return guide(self.logits(ids, both, given=shown, corrupted=corrupted), sampler.guidance_scale)

        def score(ids: Int[Array, "batch tokens levels"]) -> Float[Array, "batch tokens"]:
            return self.critic(ids, conditioning)

        ids = decode(logits, start, unknown, self.vocabulary, keys, sampler, None if self.critic is None else score)
        merged = merge_factors(ids, self.codebooks, self.factors)
        return Codes(merged.reshape(batch, *grid.shape, len(self.codebooks)), grid)
