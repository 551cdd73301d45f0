"""Heads: from a token's features to its codes, all levels at once or level after level."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.nn import NORMS, Causal, Embedding, Linear, block_stack, parameter, truncated_normal
from videogen.ranges import Count, Natural

Choose = Callable[[Float[Array, "batch tokens vocabulary"], int], Int[Array, "batch tokens"]]
"""Draws the ids of a level from its logits."""


class LevelEmbedding(nnx.Module):
    """The sum of one learned vector per level, from one table.

    Args:
      vocabulary: codes of each level.
      width: width of the vectors.
    """

    def __init__(self, vocabulary: Sequence[int], width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.offsets = tuple(sum(vocabulary[:level]) for level in range(len(vocabulary)))
        self.table = Embedding(sum(vocabulary), width, axes=(None, "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, ids: Int[Array, "batch tokens levels"]) -> Float[Array, "batch tokens width"]:
        return self.levels(ids).sum(axis=-2)

    def levels(self, ids: Int[Array, "batch tokens levels"]) -> Float[Array, "batch tokens levels width"]:
        """The vectors before they are summed."""
        return self.table(ids + np.array(self.offsets[: ids.shape[-1]], np.int32))


class ParallelHead(nnx.Module):
    """One linear layer: the levels are independent given the features (MAGVIT-v2's factorised head).

    Args:
      vocabulary: codes of each level.
      width: width of the features.
    """

    def __init__(self, vocabulary: Sequence[int], width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.vocabulary = tuple(vocabulary)
        self.logits_of = Linear(
            width,
            sum(vocabulary),
            axes=("embed", "vocabulary"),
            bias=False,
            initializer=truncated_normal(0.02),
            dtype=dtype,
            rngs=rngs,
        )

    def logits(
        self, features: Float[Array, "batch tokens width"], ids: Int[Array, "batch tokens levels"]
    ) -> list[Float[Array, "batch tokens vocabulary"]]:
        """Float32 logits of each level; ``ids`` are not looked at."""
        ends = [sum(self.vocabulary[: level + 1]) for level in range(len(self.vocabulary))]
        return jnp.split(self.logits_of(features).astype(jnp.float32), ends[:-1], axis=-1)

    def draw(self, features: Float[Array, "batch tokens width"], choose: Choose) -> Int[Array, "batch tokens levels"]:
        """Codes, every level by itself."""
        return jnp.stack([choose(logits, level) for level, logits in enumerate(self.logits(features, None))], axis=-1)


class DepthHead(nnx.Module):
    """A small causal transformer over the levels of one token: each level knows the ones before it.

    For residual codes (RQ-Transformer; Lee et al., 2022) and for the channels of per-dimension codes (TokenBridge,
    section 3.3).

    Args:
      vocabulary: codes of each level.
      width: width of the features and of this transformer.
      layers, heads: its size.
      remat: what its backward pass keeps (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        width: Count,
        layers: Natural,
        heads: Count,
        *,
        remat: str = "none",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.vocabulary = tuple(vocabulary)
        levels = len(vocabulary)
        self.embedding = LevelEmbedding(self.vocabulary, width, dtype=dtype, rngs=rngs)
        self.positions = parameter(rngs, (levels, width), (None, "embed"), truncated_normal(0.02))
        sections = dict(attention={"heads": heads}, mlp={"hidden": 4 * width})
        self.stack = block_stack(width, layers, **sections, remat=remat, dtype=dtype, rngs=rngs)
        self.norm = NORMS["rms"](width, rngs=rngs)
        self.head = ParallelHead(self.vocabulary, width, dtype=dtype, rngs=rngs)

    def logits(
        self, features: Float[Array, "batch tokens width"], ids: Int[Array, "batch tokens known"]
    ) -> list[Float[Array, "batch tokens vocabulary"]]:
        """Float32 logits of levels 0 … known, the last one included where there is one, given the ids before each."""
        batch, tokens, width = features.shape
        known = self.embedding.levels(ids[..., : len(self.vocabulary) - 1])
        x = jnp.concatenate([features[:, :, None], known.astype(features.dtype)], axis=2)
        x = x + self.positions.get_value()[: x.shape[2]].astype(x.dtype)
        x = self.stack(x.reshape(batch * tokens, -1, width), mask=Causal())
        x = self.norm(x).reshape(batch, tokens, -1, width)
        return [self.head.logits(x[:, :, level], None)[level] for level in range(x.shape[2])]

    def draw(self, features: Float[Array, "batch tokens width"], choose: Choose) -> Int[Array, "batch tokens levels"]:
        """Codes, level after level."""
        ids = jnp.zeros((*features.shape[:2], 0), jnp.int32)
        for level in range(len(self.vocabulary)):
            drawn = choose(self.logits(features, ids)[level], level)
            ids = jnp.concatenate([ids, drawn[..., None]], axis=-1)
        return ids
