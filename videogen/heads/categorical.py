"""A distribution over ids whose levels, and the digits of each level, are independent given the features."""

from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.heads import digits
from videogen.heads.base import SPECIAL, Features, IdHead, Mask, Sums
from videogen.heads.sampling import HeadSampler, draw_ids
from videogen.nn import Linear, draw, truncated_normal
from videogen.ranges import Count, OneOf, Share


class LevelLogits(Linear):
    """One linear layer to the logits of all levels.

    Args:
      sizes: ids of each level.
      width: of the features.
      bias: the layer has one.
    """

    def __init__(self, sizes: Sequence[int], width: int, *, bias: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.sizes = tuple(sizes)
        settings = dict(axes=("embed", "vocabulary"), bias=bias, initializer=truncated_normal(0.02))
        super().__init__(width, sum(sizes), **settings, dtype=dtype, rngs=rngs)

    def levels(self, features: Features) -> list[Float[Array, "batch *places vocabulary"]]:
        """Float32 logits of each level."""
        ends = [sum(self.sizes[: level + 1]) for level in range(len(self.sizes))]
        return jnp.split(self(features).astype(jnp.float32), ends[:-1], axis=-1)


class CrossEntropyHead(IdHead):
    """Base of the heads with logits of every digit, which cross-entropy trains; ``label_smoothing`` is theirs.

    Smoothing spreads a share of the target evenly over all ids, in training only.
    """

    label_smoothing: float

    def logits(
        self, features: Features, known: Int[Array, "batch *places known"]
    ) -> list[Float[Array, "batch *places vocabulary"]]:
        """Float32 logits of each digit, given the digits before it where the head looks at them."""
        raise NotImplementedError

    def loss(
        self,
        features: Features,
        targets: Int[Array, "batch *places levels"],
        mask: Mask,
        key: jax.Array | None,
        *,
        train: bool = True,
        measured: Mask | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Sums]]:
        """Cross-entropy in nats over digits, and the ``accuracy`` of the most likely ids."""
        targets, smoothing = digits.split(targets, self.bases), self.label_smoothing if train else 0.0
        total, count, hits, at = 0.0, 0.0, 0.0, 0.0
        for digit, part in enumerate(self.logits(features, targets)):
            counted = self.of_digit(mask, digit, part.ndim - 1)
            here = counted if measured is None else self.of_digit(measured, digit, part.ndim - 1)
            log_probability = jax.nn.log_softmax(part)
            nll = -jnp.take_along_axis(log_probability, targets[..., digit, None], -1)[..., 0]
            if smoothing:
                nll = (1 - smoothing) * nll - smoothing * log_probability.mean(-1)
            total += jnp.where(counted, nll, 0.0).sum()
            count += counted.sum() * 1.0
            hits += (here & (part.argmax(-1) == targets[..., digit])).sum()
            at += here.sum() * 1.0
        return total, count, {"accuracy": (hits * 1.0, at)}


class Categorical(CrossEntropyHead):
    """One linear layer to the logits of every level (MAGVIT-v2's factorised head with ``factors``).

    The temperature divides the logits.

    Args:
      vocabulary: ids of each level.
      width: of features and inputs.
      factors: each level is split into so many digits of equal size: 2^18 codes are 2 × 2^9 (MAGVIT-v2, section 4).
      special: names of ids past the vocabulary: ``("end",)`` lets a generator of single tokens end a sequence.
      label_smoothing: share of the targets that is spread evenly over all ids in training.
      bias: the logits have one.
      join: how the vectors of levels and factors become one input: ``sum`` or ``concatenation``.
      hidden: whether ids may be hidden: a learned vector then stands in their place.
      remat: of heads with layers.
    """

    independent_levels, cuts = True, True

    def __init__(
        self,
        vocabulary: Sequence[int],
        width: int,
        *,
        factors: Count = 1,
        special: Sequence[Annotated[str, OneOf(*SPECIAL)]] = (),
        label_smoothing: Share = 0.0,
        bias: bool = False,
        join: str = "sum",
        hidden: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        super().__init__(
            vocabulary, digits.factor(vocabulary, factors), width, special=special, join=join, hidden=hidden, **common
        )
        self.label_smoothing = label_smoothing
        self.logits_of = LevelLogits(self.sizes, width, bias=bias, **common)

    def logits(
        self, features: Features, known: Int[Array, "batch *places known"] | None = None
    ) -> list[Float[Array, "batch *places vocabulary"]]:
        """Float32 logits of each digit; ``known`` digits are not looked at."""
        return self.logits_of.levels(features)

    def draw(
        self, features: Features, null_features: Features | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Int[Array, "batch *places levels"], Float[Array, "batch *places"]]:
        logits = self.logits(features)
        nulls = [None] * len(logits) if null_features is None else self.logits(null_features)
        ids, log_probability = draw_levels(logits, nulls, keys, sampler)
        return digits.merge(ids, self.bases), log_probability


def draw_levels(
    logits: Sequence[Float[Array, "batch *places vocabulary"]],
    nulls: Sequence[Float[Array, "batch *places vocabulary"] | None],
    keys: jax.Array,
    sampler: HeadSampler,
) -> tuple[Int[Array, "batch *places levels"], Float[Array, "batch *places"]]:
    """Ids of independent levels, and the sums of their log-probabilities.

    Args:
      logits: of each level, with the conditioning.
      nulls: without it; ``None`` of every level draws without guidance.
      keys: one of each example.
      sampler: how to draw.
    """
    uniform = draw(jax.random.uniform, keys, (*logits[0].shape[:-1], len(logits)))
    drawn, total = [], 0.0
    for level, (given, null) in enumerate(zip(logits, nulls, strict=True)):
        ids, log_probability = draw_ids(uniform[..., level], given, null, sampler)
        drawn.append(ids)
        total += log_probability
    return jnp.stack(drawn, axis=-1), total
