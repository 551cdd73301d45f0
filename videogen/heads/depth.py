"""A distribution over the ids of a place, level after level."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.heads import digits
from videogen.heads.base import Features
from videogen.heads.categorical import CrossEntropyHead, LevelLogits
from videogen.heads.inputs import IdEmbedding
from videogen.heads.sampling import HeadSampler, draw_ids
from videogen.nn import NORMS, Causal, block_stack, draw, parameter, truncated_normal
from videogen.ranges import Count, Natural, Share


class Depth(CrossEntropyHead):
    """A small causal transformer over the levels of one place: each level knows the ones before it.

    For residual codes (RQ-Transformer; Lee et al., 2022) and for the channels of per-dimension codes (TokenBridge,
    section 3.3). The temperature divides the logits of every level.

    Args:
      vocabulary: ids of each level.
      width: of features and inputs, and of this transformer.
      layers, heads: its size.
      factors: each level is split into so many digits of equal size, which are levels of their own here.
      label_smoothing: share of the targets that is spread evenly over all ids in training.
      join: how the vectors of levels and factors become one input: ``sum`` or ``concatenation``.
      hidden: whether ids may be hidden: a learned vector then stands in their place.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    cuts = True

    def __init__(
        self,
        vocabulary: Sequence[int],
        width: int,
        *,
        layers: Natural = 2,
        heads: Count,
        factors: Count = 1,
        label_smoothing: Share = 0.0,
        join: str = "sum",
        hidden: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        bases = digits.factor(vocabulary, factors)
        super().__init__(vocabulary, bases, width, join=join, hidden=hidden, **common)
        self.label_smoothing = label_smoothing
        self.embedding = IdEmbedding(bases, width, **common)
        self.positions = parameter(rngs, (len(self.sizes), width), (None, "embed"), truncated_normal(0.02))
        sections = dict(attention={"heads": heads}, mlp={"hidden": 4 * width})
        self.stack = block_stack(width, layers, **sections, remat=remat, **common)
        self.norm = NORMS["rms"](width, rngs=rngs)
        self.logits_of = LevelLogits(self.sizes, width, **common)

    def logits(
        self, features: Features, known: Int[Array, "batch *places known"]
    ) -> list[Float[Array, "batch *places vocabulary"]]:
        """Float32 logits of digits 0 … known, the last included where there is one, given the digits before each."""
        places, width = features.shape[:-1], features.shape[-1]
        before = self.embedding.vectors(known[..., : len(self.sizes) - 1])
        x = jnp.concatenate([features[..., None, :], before.astype(features.dtype)], axis=-2)
        x = x + self.positions.get_value()[: x.shape[-2]].astype(x.dtype)
        x = self.norm(self.stack(x.reshape(-1, x.shape[-2], width), mask=Causal())).reshape(*places, -1, width)
        return [self.logits_of.levels(x[..., digit, :])[digit] for digit in range(x.shape[-2])]

    def draw(
        self, features: Features, null_features: Features | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Int[Array, "batch *places levels"], Float[Array, "batch *places"]]:
        places = features.shape[:-1]
        uniform = draw(jax.random.uniform, keys, (*places, len(self.sizes)))
        both = features if null_features is None else jnp.concatenate([features, null_features])
        ids, total = jnp.zeros((*places, 0), jnp.int32), 0.0
        for digit in range(len(self.sizes)):
            known = ids if null_features is None else jnp.concatenate([ids, ids])
            logits, null = self.logits(both, known)[digit], None
            if null_features is not None:
                logits, null = jnp.split(logits, 2)
            drawn, log_probability = draw_ids(uniform[..., digit], logits, null, sampler)
            ids, total = jnp.concatenate([ids, drawn[..., None]], axis=-1), total + log_probability
        return digits.merge(ids, self.bases), total
