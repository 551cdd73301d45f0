"""Masked transformer over video codes: MaskGIT training on the C-ViViT grid (Phenaki section 2.2), and COMMIT.

Given pixels reach it as the codes of a clip filled from them (MAGVIT section 3.2): of the places that are corrupted
those the pixels touch show such a code, the others ``[MASK]``.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Bool, Float, Shaped

from videogen import building, heads
from videogen.conditioning import Conditioning, Given, NullableContext
from videogen.diffusion.latent_statistics import LatentStatistics
from videogen.errors import UserError, near_matches
from videogen.generators.critic import TokenCritic
from videogen.generators.maskgit import MaskedWindow, MaskGITSampler
from videogen.generators.stepping import Generator
from videogen.heads import HeadSampler
from videogen.nn import (
    Embedding,
    LearnedPositions,
    MicroBatch,
    draw,
    example_keys,
    named_key,
    parameter,
    read_transformer,
    rotary_angles,
    truncated_normal,
)
from videogen.ranges import Share
from videogen.schedules import DECAYS
from videogen.shapes import TokenGrid
from videogen.tokens import Layout, Tokens

LOSS_PLACES = ("masked", "corrupted", "all")
"""Where the loss is: at ``[MASK]``; also at codes of the given pixels (to be refined); also at codes that are kept."""


def mar_ratio(u: Float[Array, "..."]) -> Float[Array, "..."]:
    """The mask ratio of MAR by quantiles: normal with mean 1 and deviation 0.25, of which [0.7, 1] is left."""
    lowest = ndtr(-0.3 / 0.25)
    return jnp.clip(1 + 0.25 * ndtri(lowest + (0.5 - lowest) * (1 - u)), 0.7, 1.0)


RATIOS = {**DECAYS, "mar": mar_ratio}
"""Name -> mask ratio by u ~ U(0, 1)."""


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


class MaskedTransformer(Generator):
    """Bidirectional transformer that predicts masked places from the visible ones and the conditioning.

    Over codes this is MaskGIT, over normalised latents MAR (Li et al., 2024), whose places have no likelihood with a
    diffusion head and are then drawn in random order.

    Args:
      vocabulary: codes per level; the levels of a place are masked together. Empty where there are latents …
      grid: ``(time, height, width)`` of the longest training clip; shorter clips use the first rows of the
        position table, longer ones slide the window.
      transformer: ``{width, layers, heads, mlp_width, …}`` (``nn.TransformerSection``). Rotary positions stand beside
        the learned table.
      channels: … of which these are the channels.
      head: ``{name, …}`` of ``videogen.heads``; by default independent levels.
      context_width: width of the conditioning features; ``None`` builds an unconditional model.
      classes: number of class labels; ``None`` means a model without labels.
      tasks: number of tasks of given pixels (``conditioning.TASKS``); ``None`` means a model that takes none.
      training_schedule: distribution of the mask ratio over u ~ U(0, 1): ``linear`` is the paper's uniform ratio,
        ``cosine`` that of MaskGIT and phenaki-pytorch, ``mar`` a normal one of mean 1 and deviation 0.25 cut at 0.7.
      loss_on: a name in ``LOSS_PLACES``; MAGVIT's is ``all``.
      condition_drop: share of examples trained with the null conditioning (for guidance).
      critic: ``{layers, weight}`` of a ``TokenCritic`` that is trained along and then decides which codes decoding
        keeps; without one, or with 0 layers, those drawn with the highest probability are kept.
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        grid: Sequence[int],
        transformer: Mapping[str, Any],
        *,
        channels: int | None = None,
        head: Mapping[str, Any] = MappingProxyType({"name": "categorical", "bias": True}),
        context_width: int | None = None,
        classes: int | None = None,
        tasks: int | None = None,
        training_schedule: str = "linear",
        loss_on: str = "masked",
        condition_drop: Share = 0.1,
        critic: Mapping[str, Any] | None = None,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (("loss_on", loss_on, LOSS_PLACES), ("schedule", training_schedule, RATIOS)):
            if value not in known:
                raise UserError(f"unknown {name} {value!r}{near_matches(value, known)}")
        section, common = read_transformer(transformer), dict(remat=remat, dtype=dtype, rngs=rngs)
        self.loss_on, self.training_schedule, self.condition_drop = loss_on, training_schedule, condition_drop
        self.grid, self.dropout = TokenGrid(*grid), section.dropout
        self.rotary, self.head_width, width = section.rotary, section.head_width, section.width
        values = dict(vocabulary=vocabulary, channels=channels)
        self.head = heads.build(head, **values, width=width, hidden=True, **common)
        if self.head.end is not None:
            raise UserError(
                "a masked generator predicts all places at once, so no sequence ends: leave head.special out"
            )
        self.statistics = None if self.head.discrete else LatentStatistics(channels)
        self.positions = LearnedPositions(self.grid.tokens, width, rngs=rngs)
        self.context = NullableContext(context_width, classes=classes, rngs=rngs) if context_width else None
        self.stack = section.stack(context_width=context_width, **common)
        self.norm = section.last_norm(rngs=rngs)
        self.task = Embedding(tasks, width, axes=(None, "embed"), dtype=dtype, rngs=rngs) if tasks else None
        # Marks a code of given pixels, which must be told from a code to be kept.
        self.segment = parameter(rngs, (width,), ("embed",), truncated_normal(0.02)) if tasks else None
        critic = {"name": "token", **critic} if critic and critic["layers"] else None
        places = dict(head=self.head, grid=self.grid.shape, transformer=section)
        own = dict(**places, context_width=context_width, classes=classes, **common)
        self.critic = building.build({"token": TokenCritic}, critic, "critic", **own) if critic else None

    sampler = MaskGITSampler
    steppers = MappingProxyType({"window": MaskedWindow})
    apart = True
    given_frames = 0
    completes = True
    """Clips may be completed from given pixels (``conditioning.TASKS``)."""
    denoises = label_as_vector = ends = False

    def check_grid(self, grid: TokenGrid) -> None:
        """Any grid that is no larger than the training grid can be learned."""

    def prefixes(self, frames: int) -> range:
        """How many latent frames may be given of a clip of ``frames`` of them; 0 is none."""
        return range(frames)

    def values(self, tokens: Shaped[Array, "batch *sides levels"]) -> Shaped[Array, "batch tokens levels"]:
        """Codes, or normalised latents, in raster order."""
        flat = tokens.reshape(tokens.shape[0], -1, self.head.levels)
        return flat if self.statistics is None else self.statistics.normalise(flat)

    def tokens(self, values: Shaped[Array, "batch tokens levels"], layout: Layout) -> Tokens:
        """The inverse of ``values``."""
        return Tokens.single(values if self.statistics is None else self.statistics.restore(values), layout)

    def corrupt(
        self, values: Shaped[Array, "batch tokens levels"], corrupted: Bool[Array, "batch tokens"], given: Given | None
    ) -> Shaped[Array, "batch tokens levels"]:
        """Writes the codes of given pixels into the corrupted places they touch; the others will show ``[MASK]``."""
        if given is None:
            return values
        return jnp.where((corrupted & given.region)[..., None], self.values(given.indices), values)

    def features(
        self,
        values: Shaped[Array, "batch tokens levels"],
        conditioning: Conditioning,
        *,
        corrupted: Bool[Array, "batch tokens"] | None = None,
        given: Given | None = None,
        exists: Bool[Array, "batch tokens"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch time height width embed"]:
        """Features of every place on the grid, whose axes may be sharded; one flat sequence axis could not be.

        Args:
          values: codes or latents, as ``corrupt`` leaves them.
          conditioning: one entry per example.
          corrupted: places that hold nothing to be kept: they show ``[MASK]`` …
          given: … but where pixels are given that touch them.
          exists: hides places from attention.
          key: for dropout.
        """
        batch, length = values.shape[:2]
        places = (batch, -1, self.grid.height, self.grid.width)
        positions, hidden = self.positions(length), None
        if corrupted is not None:
            hidden = (corrupted if given is None else corrupted & ~given.region).reshape(*places, 1)
        x = self.head.embed(values.reshape(*places, self.head.levels), hidden)
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
        return self.norm(x)

    def loss(
        self,
        tokens: Tokens,
        conditioning: Conditioning,
        key: jax.Array,
        *,
        given: Given | None = None,
        train: bool = True,
        micro: MicroBatch | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean loss of the head over the places of ``loss_on``, and metrics.

        Metrics: ``loss``; those of the head (``accuracy``) at corrupted places; ``mask_ratio``, the share of places
        that are corrupted. A critic's loss is added, and so are its metrics.
        """
        values, mask = self.values(tokens.only.values), tokens.only.exists
        batch, micro = values.shape[0], micro or MicroBatch()
        mask = None if mask is None else mask.reshape(batch, -1)
        exists = jnp.ones(values.shape[:2], bool) if mask is None else mask
        ratio = RATIOS[self.training_schedule](micro.draw(jax.random.uniform, named_key(key, "ratio"), (batch,)))
        corrupted = random_mask(micro.keys(named_key(key, "mask"), batch), ratio, exists)
        if train:
            conditioning = conditioning.drop_share(self.condition_drop, named_key(key, "drop"), micro)
        features = self.features(
            self.corrupt(values, corrupted, given),
            conditioning,
            corrupted=corrupted,
            given=given,
            exists=mask,
            key=micro.keys(named_key(key, "dropout"), batch) if train and self.dropout else None,
        )
        counted = exists if self.loss_on == "all" else corrupted
        if self.loss_on == "masked" and given is not None:
            counted = corrupted & ~given.region
        places = features.shape[:-1]
        at = corrupted.reshape(places)
        targets, head_keys = values.reshape(*places, -1), micro.keys(named_key(key, "head"), batch)
        total, count, measured = self.head.loss(
            features, targets, counted.reshape(places), head_keys, train=train, measured=at
        )
        # Sums over the micro-batch over mean counts of the whole batch: their mean is the whole batch's quotient.
        counts = {name: number for name, (_, number) in measured.items()}
        counts = micro.mean({**counts, "loss": count, "exists": exists.sum() * 1.0})
        sums = {"loss": total, **{name: value for name, (value, _) in measured.items()}}
        metrics = {name: value / jnp.maximum(counts[name], 1 / micro.count) for name, value in sums.items()}
        metrics["mask_ratio"] = at.sum() / counts["exists"]
        if self.critic is None:
            return metrics["loss"], metrics
        draws, _ = self.head.draw(features, None, micro.keys(named_key(key, "critic"), batch), HeadSampler())
        critic_loss, judged = self.critic.loss(
            values, draws.reshape(values.shape), corrupted, conditioning, mask, micro
        )
        return metrics["loss"] + critic_loss, metrics | judged
