"""The flat view of tokens that reducers work on, and what all of them are made of: take, merge, restore."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Grid = tuple[int, int, int]
"""Sides along time, height and width."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSet:
    """The flat view of one segment of tokens, in any order.

    Attributes:
      x: one vector per token.
      mask: which tokens exist; ``None``: all.
      position: time, row and column of every token, in places of its grid; ``None`` where it has none.
      size: how many tokens of the clip each stands for; ``None``: one.
      source: for each token of the clip the token here that stands for it, -1 for none; ``None``: itself.
      grid: the sides, where the tokens are a whole grid in raster order (padding is whole frames at its end).
    """

    x: Float[Array, "batch tokens width"]
    mask: Bool[Array, "batch tokens"] | None = None
    position: Float[Array, "tokens 3"] | Float[Array, "batch tokens 3"] | None = None
    size: Float[Array, "batch tokens"] | None = None
    source: Int[Array, "batch originals"] | None = None
    grid: Grid | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """Examples and tokens of each."""
        return self.x.shape[:2]

    def filled(self) -> "TokenSet":
        """With an array in every field: all exist, of size 1, at places 0 where there are none."""
        batch, count = self.shape
        mask = jnp.ones((batch, count), bool) if self.mask is None else self.mask
        position = jnp.zeros((count, 3)) if self.position is None else jnp.asarray(self.position, jnp.float32)
        size = jnp.ones((batch, count)) if self.size is None else self.size
        own = jnp.broadcast_to(jnp.arange(count), (batch, count))
        return dataclasses.replace(
            self,
            mask=mask,
            position=jnp.broadcast_to(position, (batch, count, 3)),
            size=jnp.where(mask, size, 0.0),
            source=own if self.source is None else self.source,
        )


def of_grid(
    x: Float[Array, "batch time height width channels"], exists: Bool[Array, "batch time"] | None = None
) -> TokenSet:
    """The tokens of a grid in raster order, of which the first frames may be all that exists."""
    batch, *sides, channels = x.shape
    places = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
    mask = None if exists is None else jnp.repeat(exists, sides[1] * sides[2], axis=1)
    return TokenSet(x.reshape(batch, -1, channels), mask, jnp.asarray(places), grid=tuple(sides))


def take(tokens: TokenSet, index: Int[Array, "batch kept"], there: Bool[Array, "batch kept"]) -> TokenSet:
    """The tokens at these places; the others stand for nothing any more.

    Args:
      tokens: with any fields.
      index: places among the tokens, each at most once where it is ``there``.
      there: which of them count; the others are padding.
    """
    given = tokens.filled()

    def one(given: TokenSet, index: Array, there: Array) -> TokenSet:
        there = there & given.mask[index]
        count = len(given.x)
        # Padding writes beyond the end.
        inverse = jnp.full(count, -1).at[jnp.where(there, index, count)].set(jnp.arange(len(index)), mode="drop")
        source = jnp.where(given.source >= 0, inverse[jnp.maximum(given.source, 0)], -1)
        x = jnp.where(there[:, None], given.x[index], 0)
        return TokenSet(x, there, given.position[index], jnp.where(there, given.size[index], 0.0), source)

    return jax.vmap(one)(dataclasses.replace(given, grid=None), index, there)


def compact(tokens: TokenSet, keep: Bool[Array, "batch tokens"], budget: int) -> tuple[TokenSet, Int[Array, "batch"]]:
    """The first ``budget`` tokens that are kept, in their order; and how many more there were."""
    given = tokens.filled()
    keep = keep & given.mask
    order = jnp.argsort(~keep, axis=1, stable=True)
    index = order[:, :budget]
    index = jnp.pad(index, ((0, 0), (0, max(0, budget - index.shape[1]))))
    count = keep.sum(1)
    there = jnp.arange(budget)[None] < count[:, None]
    return take(tokens, index, there), jnp.maximum(count - budget, 0)


def best(
    scores: Float[Array, "batch tokens"], mask: Bool[Array, "batch tokens"], budget: int
) -> tuple[Int[Array, "batch budget"], Bool[Array, "batch budget"]]:
    """The places of the ``budget`` best tokens in raster order, of equal ones the first, and which there are."""
    count = scores.shape[1]
    rank = jnp.argsort(jnp.where(mask, -scores.astype(jnp.float32), jnp.inf), axis=1, stable=True)[:, :budget]
    rank = jnp.pad(rank, ((0, 0), (0, max(0, budget - count))), constant_values=count - 1)
    there = jnp.arange(budget)[None] < jnp.minimum(mask.sum(1), count)[:, None]
    # Places that are not there stand behind all others.
    order = jnp.argsort(jnp.where(there, rank, count), axis=1, stable=True)
    return jnp.take_along_axis(rank, order, 1), jnp.take_along_axis(there, order, 1)


def merge(tokens: TokenSet, group: Int[Array, "batch tokens"], count: int) -> TokenSet:
    """One token for each group: means of vectors and positions by size, sums of sizes.

    Args:
      tokens: with any fields.
      group: of every token, from 0 to ``count``; tokens of group ``count`` are dropped.
      count: number of groups; an empty one is padding.
    """
    given = tokens.filled()

    def one(given: TokenSet, group: Array) -> TokenSet:
        group = jnp.where(given.mask, group, count)
        size = jax.ops.segment_sum(given.size, group, count + 1)[:count]

        def mean(values: Array) -> Array:
            sums = jax.ops.segment_sum(given.size[:, None] * values.astype(jnp.float32), group, count + 1)[:count]
            return sums / jnp.maximum(size, 1e-12)[:, None]

        own = jnp.where(given.source >= 0, group[jnp.maximum(given.source, 0)], -1)
        source = jnp.where((own >= 0) & (own < count), own, -1)
        return TokenSet(mean(given.x).astype(given.x.dtype), size > 0, mean(given.position), size, source)

    return jax.vmap(one)(dataclasses.replace(given, grid=None), group)


def restore(reduced: TokenSet, fill: Float[Array, "..."] = 0.0) -> Float[Array, "batch originals width"]:
    """A vector for every token of the clip: that of the token that stands for it, ``fill`` where none does."""
    given = reduced.filled()
    found = jnp.take_along_axis(given.x, jnp.maximum(given.source, 0)[..., None], axis=1)
    return jnp.where((given.source >= 0)[..., None], found, fill)


def mean_of_originals(
    values: Float[Array, "batch originals *rest"], found: TokenSet
) -> Float[Array, "batch tokens *rest"]:
    """Of every token the mean of the values of those of the clip that it stands for, 0 where it stands for none."""
    source, count = found.filled().source, found.shape[1]
    there = jnp.where(source >= 0, source, count)
    flat = values.reshape(*values.shape[:2], -1).astype(jnp.float32)
    sums = jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, count + 1)[:count])(flat, there)
    size = jax.vmap(lambda s: jax.ops.segment_sum(jnp.ones(len(s)), s, count + 1)[:count])(there)
    return (sums / jnp.maximum(size, 1.0)[..., None]).reshape(values.shape[0], count, *values.shape[2:])


def first_originals(found: TokenSet) -> Int[Array, "batch tokens"]:
    """The place of the first token of the clip that each stands for, 0 where it stands for none."""
    source, count = found.filled().source, found.shape[1]

    def one(source: Array) -> Array:
        group = jnp.where(source >= 0, source, count)
        first = jax.ops.segment_min(jnp.arange(len(source)), group, count + 1)[:count]
        used = jax.ops.segment_sum(jnp.ones(len(source)), group, count + 1)[:count] > 0
        return jnp.where(used, first, 0)

    return jax.vmap(one)(source)


def ranked(stands: Int[Array, "batch tokens"], count: int) -> Int[Array, "batch tokens"]:
    """Groups from 0 in the order of the tokens that stand for them.

    Args:
      stands: the place of the token that stands for each; ``count`` for none.
      count: number of tokens; it stays that of no group.
    """

    def one(stands: Array) -> Array:
        used = jnp.zeros(count + 1, bool).at[stands].set(True)[:count]
        return jnp.append(jnp.cumsum(used) - 1, count)[stands]

    return jax.vmap(one)(stands)


def unit(x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """Vectors of length 1, float32; those of length 0 stay."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
