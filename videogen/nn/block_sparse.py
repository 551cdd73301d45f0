"""Attention between clusters of tokens, of which only some pairs are computed.

A ``Plan`` says which cluster every query and key is in, and which clusters of keys each cluster of queries sees. Three
functions compute it. ``masked`` has a mask for every element and is the reference. The other two move tokens so that
every cluster is a run of whole blocks, the last one padded, and compute the pairs of blocks that are kept: ``pairs`` as
a list of pairs, on any device, and ``kernel`` by a Pallas kernel for TPUs.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from videogen.nn.clustering import cluster_sizes
from videogen.nn.masking import NEGATIVE
from videogen.parallel import target_platform

Heads = Float[Array, "items tokens head_width"]
"""Tokens of the heads of all examples, which are items of one axis."""

PAIRS_AT_ONCE = 64
"""Pairs of blocks whose products ``pairs`` computes together."""

SCALARS = 2**16
"""Numbers of blocks that one call of the kernel is given, at most: they lie in the scalar memory of a TPU, 1 MiB."""

LANES = 128
"""Values side by side in the registers of a TPU."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Which queries see which keys, by clusters.

    Attributes:
      queries, keys: the cluster of every token. Every query sees at least one key.
      kept: whether a cluster of queries sees one of keys.
    """

    queries: Int[Array, "items queries"]
    keys: Int[Array, "items keys"]
    kept: Bool[Array, "items query_clusters key_clusters"]

    def density(self) -> Float[Array, "items"]:
        """The share of the pairs of a query and a key that are kept: 1 is dense attention."""
        sizes = [
            cluster_sizes(labels, count).astype(jnp.float32)
            for labels, count in zip((self.queries, self.keys), self.kept.shape[-2:], strict=True)
        ]
        pairs = jnp.einsum("nq,nqk,nk->n", sizes[0], self.kept.astype(jnp.float32), sizes[1])
        return pairs / (self.queries.shape[1] * self.keys.shape[1])

    def elements(self) -> Bool[Array, "items queries keys"]:
        """Whether a query sees a key."""
        rows = jnp.take_along_axis(self.kept, self.queries[:, :, None], axis=1)
        return jnp.take_along_axis(rows, self.keys[:, None, :], axis=2)


class Permutation(NamedTuple):
    """Tokens in the order of their clusters, and back."""

    order: Int[Array, "*batch tokens"]
    inverse: Int[Array, "*batch tokens"]


def permutation(labels: Int[Array, "*batch tokens"]) -> Permutation:
    """The order by labels, which keeps the order within a cluster, and its inverse."""
    order = jnp.argsort(labels, axis=-1, stable=True)
    return Permutation(order, jnp.argsort(order, axis=-1))


def permute(x: Float[Array, "*batch tokens width"], order: Int[Array, "*batch tokens"]) -> Array:
    """Tokens in another order."""
    return jnp.take_along_axis(x, order[..., None], axis=-2)


def masked(query: Heads, key: Heads, value: Heads, plan: Plan, block: int = 0) -> Heads:
    """The reference: all scores of scaled queries, of which those that are not kept are masked. It has no blocks."""
    scores = jnp.einsum("nqd,nkd->nqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(plan.elements(), scores, NEGATIVE), axis=-1)
    return jnp.einsum("nqk,nkd->nqd", weights.astype(value.dtype), value)


class Blocks(NamedTuple):
    """Tokens as blocks that each belong to one cluster.

    Attributes:
      token: of every slot of a block; ``tokens`` in slots without one.
      slot: of every token.
      owner: the cluster of every block, -1 of blocks that are not used.
    """

    token: Int[Array, "items slots"]
    slot: Int[Array, "items tokens"]
    owner: Int[Array, "items blocks"]


def lay_blocks(labels: Int[Array, "items tokens"], clusters: int, block: int) -> Blocks:
    """Gives every cluster whole blocks; there are as many as any sizes of ``clusters`` clusters can need."""
    items, tokens = labels.shape
    blocks = min((tokens + clusters * (block - 1)) // block, tokens)
    sizes = cluster_sizes(labels, clusters)
    needed = -(-sizes // block)
    ends, firsts = jnp.cumsum(needed, axis=1), jnp.cumsum(sizes, axis=1) - sizes
    order, inverse = permutation(labels)
    own = jnp.take_along_axis((ends - needed) * block - firsts, labels, axis=1)
    slot = own + inverse
    rows = jnp.arange(items)[:, None]
    token = jnp.full((items, blocks * block), tokens, jnp.int32).at[rows, slot].set(jnp.arange(tokens, dtype=jnp.int32))
    owner = jax.vmap(lambda ends: jnp.searchsorted(ends, jnp.arange(blocks), side="right"))(ends)
    return Blocks(token, slot, jnp.where(owner < clusters, owner, -1))


def _in_blocks(x: Heads, blocks: Blocks, block: int) -> Float[Array, "items blocks block head_width"]:
    """The tokens in their slots; zeros in the others."""
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    return permute(padded, blocks.token).reshape(len(x), -1, block, x.shape[-1])


def _active(plan: Plan, query: Blocks, key: Blocks) -> Bool[Array, "items query_blocks key_blocks"]:
    """Which pairs of blocks are computed."""
    rows = jnp.take_along_axis(plan.kept, jnp.maximum(query.owner, 0)[:, :, None], axis=1)
    pairs = jnp.take_along_axis(rows, jnp.maximum(key.owner, 0)[:, None, :], axis=2)
    return pairs & (query.owner >= 0)[:, :, None] & (key.owner >= 0)[:, None, :]


def _lay_all(query: Heads, key: Heads, value: Heads, plan: Plan, block: int) -> tuple:
    """Slots of the queries; queries, keys and values in blocks; which keys there are; which pairs are computed."""
    of_queries, of_keys = (
        lay_blocks(labels, count, block)
        for labels, count in zip((plan.queries, plan.keys), plan.kept.shape[1:], strict=True)
    )
    there = (of_keys.token < key.shape[1]).reshape(len(key), -1, block)
    laid = _in_blocks(query, of_queries, block), *(_in_blocks(x, of_keys, block) for x in (key, value))
    return of_queries.slot, laid, there, _active(plan, of_queries, of_keys)


def pairs(query: Heads, key: Heads, value: Heads, plan: Plan, block: int) -> Heads:
    """Sparse attention of scaled queries as products of pairs of blocks, some at a time, in one loop over all heads.

    The loop runs as often as there are pairs to compute, so its time follows the density. It has no gradient.
    """
    slot, (q, k, v), there, active = _lay_all(query, key, value, plan, block)
    items, (rows, columns), width = len(query), active.shape[1:], query.shape[-1]
    total = items * rows * columns
    padded = total + -total % PAIRS_AT_ONCE
    chosen = jnp.nonzero(active.reshape(-1), size=padded, fill_value=total)[0]
    q, k, v, there = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v, there))
    # One row of blocks more, into which the last pairs go that are none.
    state = (
        jnp.full((len(q) + 1, block), NEGATIVE, jnp.float32),
        jnp.zeros((len(q) + 1, block), jnp.float32),
        jnp.zeros((len(q) + 1, block, width), jnp.float32),
    )

    def body(step: Array, state: tuple) -> tuple:
        highest, mass, sums = state
        number = jax.lax.dynamic_slice_in_dim(chosen, step * PAIRS_AT_ONCE, PAIRS_AT_ONCE)
        row = number // columns
        column = jnp.minimum(row // rows, items - 1) * columns + number % columns
        scores = jnp.einsum(
            "pqd,pkd->pqk", q[jnp.minimum(row, len(q) - 1)], k[column], preferred_element_type=jnp.float32
        )
        scores = jnp.where(there[column][:, None, :], scores, NEGATIVE)
        before = highest[row]
        highest = highest.at[row].max(scores.max(-1))
        # Rows of the list may be the same block: all of them then write the same rescaled sums.
        now = highest[row]
        fade = jnp.exp(before - now)
        weights = jnp.exp(scores - now[:, :, None])
        mass = mass.at[row].set(mass[row] * fade).at[row].add(weights.sum(-1))
        product = jnp.einsum("pqk,pkd->pqd", weights.astype(v.dtype), v[column], preferred_element_type=jnp.float32)
        sums = sums.at[row].set(sums[row] * fade[..., None]).at[row].add(product)
        return highest, mass, sums

    steps = -(-active.sum() // PAIRS_AT_ONCE)
    _, mass, sums = jax.lax.fori_loop(0, steps, body, state)
    out = sums[:-1] / jnp.maximum(mass[:-1], 1e-30)[..., None]
    return permute(out.reshape(items, -1, width), slot).astype(value.dtype)


def kernel(query: Heads, key: Heads, value: Heads, plan: Plan, block: int) -> Heads:
    """Sparse attention of scaled queries by a Pallas kernel (TPU), which is told the blocks of keys of every block of
    queries before it starts. Elsewhere the same kernel runs in Pallas' interpret mode, slowly, for tests."""
    slot, (q, k, v), there, active = _lay_all(query, key, value, plan, block)
    items, rows, columns = active.shape
    counts = active.sum(-1, dtype=jnp.int32).reshape(-1)
    # The kept blocks first; behind them the last one again, which is not fetched anew.
    order = jnp.argsort(~active, axis=-1, stable=True).astype(jnp.int32).reshape(-1, columns)
    step = jnp.arange(columns)[None, :]
    order = jnp.take_along_axis(order, jnp.minimum(step, jnp.maximum(counts[:, None] - 1, 0)), axis=1)
    item = jnp.repeat(jnp.arange(items, dtype=jnp.int32), rows)
    at_once = min(max(1, SCALARS // columns), items * rows)
    padding = -(items * rows) % at_once
    q, order, counts, item = (
        jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, at_once, *x.shape[1:])
        for x in (q.reshape(-1, *q.shape[2:]), order, counts, item)
    )
    call = _kernel(at_once, columns, block, query.shape[-1], value.dtype, target_platform() != "tpu")
    out = jax.lax.map(lambda part: call(*part, k, v, there.astype(jnp.float32)[:, :, None]), (order, counts, item, q))
    out = out.reshape(-1, block, query.shape[-1])[: items * rows]
    return permute(out.reshape(items, -1, query.shape[-1]), slot)


@functools.cache
def _kernel(rows: int, columns: int, block: int, width: int, dtype: jnp.dtype, interpret: bool):
    """``(order, counts, item, q, k, v, there) -> out`` of so many blocks of queries."""

    def of_keys(row: Array, step: Array, order: Array, counts: Array, item: Array) -> tuple:
        return item[row], order[row, step], 0, 0

    def of_row(row: Array, *_: Array) -> tuple:
        return row, 0, 0

    def body(order, counts, item, q, k, v, there, out, highest, mass, sums):
        row, step = pl.program_id(0), pl.program_id(1)

        @pl.when(step == 0)
        def _():
            highest[...] = jnp.full_like(highest, NEGATIVE)
            mass[...] = jnp.zeros_like(mass)
            sums[...] = jnp.zeros_like(sums)

        @pl.when(step < counts[row])
        def _():
            scores = jax.lax.dot_general(q[0], k[0, 0], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            scores = jnp.where(there[0, 0] > 0, scores, NEGATIVE)
            before = highest[:, :1]
            now = jnp.maximum(before, scores.max(axis=1, keepdims=True))
            weights, fade = jnp.exp(scores - now), jnp.exp(before - now)
            highest[...] = jnp.broadcast_to(now, highest.shape)
            mass[...] = mass[...] * fade + weights.sum(axis=1, keepdims=True)
            product = jnp.dot(weights.astype(v.dtype), v[0, 0], preferred_element_type=jnp.float32)
            sums[...] = sums[...] * fade + product

        @pl.when(step == columns - 1)
        def _():
            out[0] = (sums[...] / jnp.maximum(mass[:, :1], 1e-30)).astype(out.dtype)

    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(rows, columns),
        in_specs=[
            pl.BlockSpec((1, block, width), of_row),
            pl.BlockSpec((1, 1, block, width), of_keys),
            pl.BlockSpec((1, 1, block, width), of_keys),
            pl.BlockSpec((1, 1, 1, block), of_keys),
        ],
        out_specs=pl.BlockSpec((1, block, width), of_row),
        scratch_shapes=[
            pltpu.VMEM((block, LANES), jnp.float32),
            pltpu.VMEM((block, LANES), jnp.float32),
            pltpu.VMEM((block, width), jnp.float32),
        ],
    )
    shape = jax.ShapeDtypeStruct((rows, block, width), dtype)
    return pl.pallas_call(body, out_shape=shape, grid_spec=grid, interpret=interpret)


PATHS = {"reference": masked, "pairs": pairs, "kernel": kernel}
"""How a plan may be computed."""


def fast_path() -> str:
    """The path for the platform: the kernel on a TPU, else the list of pairs."""
    return "kernel" if target_platform() == "tpu" else "pairs"


def difference_on_device(path: str, width: int, dtype: jnp.dtype, block: int) -> float:
    """How far a path is from the reference on the device in use, relative to the largest number of the reference.

    It draws two heads of 3 · ``block`` tokens in clusters of very different sizes, of which one is empty.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    tokens, clusters = 3 * block, 5
    q, k, v = (jax.random.normal(key, (2, tokens, width)).astype(dtype) for key in keys[:3])
    bounds = jnp.array([1, 1, block + 1, tokens - 2])
    labels = jnp.searchsorted(bounds, jnp.arange(tokens), side="right")
    labels = jnp.stack([labels, labels[::-1]]).astype(jnp.int32)
    kept = jax.random.bernoulli(keys[3], 0.5, (2, clusters, clusters)).at[:, :, 2].set(True)
    plan, scale = Plan(labels, jnp.roll(labels, 7, axis=1), kept), jnp.asarray(width**-0.5, dtype)
    both = [jax.jit(PATHS[name], static_argnums=4)(q * scale, k, v, plan, block) for name in ("reference", path)]
    right, found = (x.astype(jnp.float32) for x in both)
    return float(jnp.abs(found - right).max() / jnp.abs(right).max())


def floating_point_operations(tokens: tuple[int, int], width: int, heads: int, density: float) -> float:
    """Of the two products of an attention between so many queries and keys, of which a share is kept."""
    return 4.0 * math.prod(tokens) * width * heads * density
