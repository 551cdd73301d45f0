"""Memory of bounded size: a bank of tokens, recurrent bridges, queries that recover what was dropped (T1, T3, R3)."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn import MLP, Attention, LayerNorm, normal, parameter
from videogen.ranges import Count, OneOf
from videogen.reducers.base import Reducer, Report, report
from videogen.reducers.selection import NONE
from videogen.reducers.tokens import TokenSet, merge, of_grid, take, unit


class Bank(Reducer):
    """Tokens come one after another, and on overflow one of the two neighbours that are most alike makes room
    (VideoScan, section 3.3).

    Args:
      budget: tokens that are remembered.
      evict: ``drop`` the earlier of the two, or ``merge`` both into their mean by size.
    """

    def __init__(self, budget: Count = 64, *, evict: Annotated[str, OneOf("drop", "merge")] = "drop"):
        self.budget, self.evict = budget, evict
        mass = ("conserved_mass",) if evict == "merge" else ()
        self.laws = ("fixed_budget", *mass, "identity_at_full_budget")

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        given, count = tokens.filled(), tokens.shape[1]
        stands = jax.vmap(self._bank)(given.x, given.mask, given.size)
        budget = min(self.budget, count)
        if self.evict == "merge":
            slots = _slots(stands, count, budget)
            found = merge(tokens, jnp.where(given.mask, slots, budget), budget)
        else:
            keep = (stands == jnp.arange(count)) & given.mask
            order = jnp.argsort(~keep, axis=1, stable=True)[:, :budget]
            found = take(tokens, order, jnp.arange(budget)[None] < keep.sum(1)[:, None])
        return found, report(tokens, found, self.budget)

    def _bank(
        self, x: Float[Array, "tokens width"], mask: Bool[Array, "tokens"], size: Float[Array, "tokens"]
    ) -> Array:
        """The token that stands for each at the end; with ``drop`` the number of tokens for those that are gone."""
        count = len(x)

        def step(state: tuple, i: Array) -> tuple[tuple, None]:
            ids, vectors, sizes, stands, filled = state
            # One place more than there is room for.
            ids = ids.at[filled].set(jnp.where(mask[i], i, ids[filled]))
            vectors = vectors.at[filled].set(jnp.where(mask[i], x[i].astype(jnp.float32), vectors[filled]))
            sizes = sizes.at[filled].set(jnp.where(mask[i], size[i], sizes[filled]))
            filled = filled + mask[i]
            full = filled > self.budget
            alike = (unit(vectors[:-1]) * unit(vectors[1:])).sum(-1)
            pair = jnp.argmax(jnp.where(jnp.arange(self.budget) < filled - 1, alike, -jnp.inf))
            if self.evict == "merge":
                both = sizes[pair] + sizes[pair + 1]
                mean = (sizes[pair] * vectors[pair] + sizes[pair + 1] * vectors[pair + 1]) / jnp.maximum(both, 1e-12)
                joined = jnp.where(stands == ids[pair], ids[pair + 1], stands)
                stands = jnp.where(full, joined, stands)
                vectors = vectors.at[pair + 1].set(jnp.where(full, mean, vectors[pair + 1]))
                sizes = sizes.at[pair + 1].set(jnp.where(full, both, sizes[pair + 1]))
            else:
                stands = jnp.where(full & (jnp.arange(count) == ids[pair]), count, stands)
            source = jnp.arange(self.budget + 1)
            source = jnp.where(full & (source >= pair), jnp.minimum(source + 1, self.budget), source)
            return (ids[source], vectors[source], sizes[source], stands, filled - full), None

        room = self.budget + 1
        start = (
            jnp.full(room, -1),
            jnp.zeros((room, x.shape[1])),
            jnp.zeros(room),
            jnp.arange(count),
            jnp.zeros((), int),
        )
        return jax.lax.scan(step, start, jnp.arange(count))[0][3]


def _slots(stands: Array, count: int, budget: int) -> Array:
    """The place in the bank of the token that stands for each."""

    def one(stands: Array) -> Array:
        kept = stands == jnp.arange(count)
        return jnp.minimum((jnp.cumsum(kept) - 1)[stands], budget)

    return jax.vmap(one)(stands)


class BridgeState(NamedTuple):
    """What a bridge carries from segment to segment.

    Attributes:
      states: the memory behind earlier segments, the oldest first.
      count: how many of them there are.
      memory: behind the last segment.
      last: the tokens of the last segment as the layer left them …
      mask, position, size: … and what else is known of them.
    """

    states: Float[Array, "batch states memory width"]
    count: Int[Array, ""]
    memory: Float[Array, "batch memory width"]
    last: Float[Array, "batch tokens width"]
    mask: Bool[Array, "batch tokens"]
    position: Float[Array, "batch tokens 3"]
    size: Float[Array, "batch tokens"]


class Bridge(Reducer):
    """Memory tokens that read one segment of tokens after another (VideoLLaMB, section 3.2).

    A layer sees ``[memory; segment]``; before every segment the memory reads all of its earlier states. The result is
    the last memory, then the tokens of the last segment as the layer leaves them. A segment is ``frames`` frames; those
    that do not exist leave the memory as it is.

    Args:
      inputs: channels of the tokens.
      memory: memory tokens.
      frames: of a segment; they must divide the frames of the clip.
      heads: of the attention.
    """

    laws = ("fixed_budget",)
    needs_grid = recurrent = True

    def __init__(
        self,
        inputs: Count,
        *,
        memory: Count = 32,
        frames: Count = 8,
        heads: Count = 8,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        del remat
        self.memory, self.frames = memory, frames
        common = dict(dtype=dtype, rngs=rngs)
        self.start = parameter(rngs, (memory, inputs), (None, "embed"), normal(0.02))
        self.norm, self.attention = LayerNorm(inputs, rngs=rngs), Attention(inputs, heads, **common)
        self.mlp_norm, self.mlp = LayerNorm(inputs, rngs=rngs), MLP(inputs, 4 * inputs, kind="gelu", **common)
        self.recall_norm = LayerNorm(inputs, rngs=rngs)
        self.recall = Attention(inputs, heads, context_width=inputs, **common)

    def layer(self, x: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"]) -> Array:
        """One layer over memory and segment."""
        x = x + self.attention(self.norm(x), key_mask=mask)
        return x + self.mlp(self.mlp_norm(x))

    def begin(self, batch, grid, count):
        memory = jnp.broadcast_to(self.start.get_value(), (batch, *self.start.shape))
        states = jnp.zeros((batch, count + 1, *memory.shape[1:])).at[:, 0].set(memory)
        each = grid[0] * grid[1] * grid[2]
        last = jnp.zeros((batch, each, memory.shape[2]), memory.dtype)
        places = of_grid(jnp.zeros((batch, *grid, 1))).filled()
        kept = jnp.zeros((batch, each), bool), places.position, jnp.zeros((batch, each))
        return BridgeState(states, jnp.ones((), jnp.int32), memory, last, *kept)

    def read(
        self, carry: "BridgeState", x: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"]
    ) -> "BridgeState":
        """What is carried behind the tokens of one more segment."""
        batch, room = len(x), carry.states.shape[1]
        full = carry.count == room
        states, at = jnp.where(full, jnp.roll(carry.states, -1, axis=1), carry.states), carry.count - full
        seen = jnp.broadcast_to(jnp.repeat(jnp.arange(room) < at, self.memory)[None], (batch, room * self.memory))
        earlier = states.reshape(batch, -1, states.shape[-1])
        asked = carry.memory + self.recall(self.recall_norm(carry.memory), earlier, key_mask=seen)
        whole = jnp.concatenate([asked, x], axis=1)
        known = jnp.concatenate([jnp.ones((batch, self.memory), bool), mask], axis=1)
        y = self.layer(whole, known)
        keep = mask.any(1)[:, None, None]
        memory = jnp.where(keep, y[:, : self.memory], carry.memory)
        last = jnp.where(keep, y[:, self.memory :], carry.last)
        states = jax.lax.dynamic_update_slice_in_dim(states, memory[:, None], at, axis=1)
        return carry._replace(states=states, count=at + 1, memory=memory, last=last)

    def fold(self, carry, segment):
        given = segment.filled()
        found = self.read(carry, given.x, given.mask)
        keep = given.mask.any(1, keepdims=True)
        return found._replace(
            mask=jnp.where(keep, given.mask, carry.mask),
            position=jnp.where(keep[..., None], given.position, carry.position),
            size=jnp.where(keep, given.size, carry.size),
        )

    def remembered(self, carry):
        batch, each = carry.mask.shape
        ones = jnp.ones((batch, self.memory))
        last = jnp.where(carry.mask[..., None], carry.last, 0)
        found = TokenSet(
            jnp.concatenate([carry.memory, last.astype(carry.memory.dtype)], axis=1),
            jnp.concatenate([ones > 0, carry.mask], axis=1),
            jnp.concatenate([jnp.zeros((batch, self.memory, 3)), carry.position], axis=1),
            jnp.concatenate([ones, carry.size], axis=1),
        )
        return found, jnp.concatenate([jnp.full(self.memory, -1), jnp.zeros(each, jnp.int32)])

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        time, height, width = self.grid_of(tokens)
        if time % self.frames:
            raise UserError(f"{time} frames do not divide into segments of {self.frames}; change frames")
        given, batch, count = tokens.filled(), len(tokens.x), time // self.frames
        parts = jax.tree.map(
            lambda a: jnp.moveaxis(a.reshape(batch, count, -1, *a.shape[2:]), 1, 0), (given.x, given.mask)
        )
        graph, state = nnx.split(self)

        def step(carry: BridgeState, one: tuple) -> tuple[BridgeState, Array]:
            return nnx.merge(graph, state).read(carry, *one), one[1].any(1)

        start = self.begin(batch, (self.frames, height, width), count)
        found, there = jax.lax.scan(step, start, parts)
        memory, last = found.memory, found.last
        final = jnp.maximum((there * (1 + jnp.arange(count))[:, None]).max(0) - 1, 0)
        index = final[:, None] * parts[0].shape[2] + jnp.arange(parts[0].shape[2])
        segment = take(tokens, index, jnp.ones(index.shape, bool))
        x = jnp.concatenate([memory, last.astype(memory.dtype)], axis=1).astype(tokens.x.dtype)
        ones = jnp.ones((batch, self.memory))
        source = jnp.where(segment.source >= 0, segment.source + self.memory, -1)
        found = TokenSet(
            x,
            jnp.concatenate([ones > 0, segment.mask], axis=1),
            jnp.concatenate([jnp.zeros((batch, self.memory, 3)), segment.position], axis=1),
            jnp.concatenate([ones, segment.size], axis=1),
            source,
        )
        return found, report(tokens, found, self.memory + parts[0].shape[2])


class Recovery(nnx.Module):
    """Learned queries, one for each original token, read what was kept: full length again (HoT, section 3.3).

    Args:
      width: channels.
      length: original tokens.
      heads: of the attention.
    """

    def __init__(self, width: int, length: int, heads: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.queries = parameter(rngs, (length, width), (None, "embed"), normal(0.02))
        self.norm = LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, context_width=width, dtype=dtype, rngs=rngs)

    def restore(self, reduced: TokenSet) -> Float[Array, "batch length width"]:
        """``E + attention(E, kept, kept)``."""
        given = reduced.filled()
        queries = jnp.broadcast_to(self.queries.get_value(), (len(given.x), *self.queries.shape))
        return queries + self.attention(queries, self.norm(given.x), key_mask=given.mask)
