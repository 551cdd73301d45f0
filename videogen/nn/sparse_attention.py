"""Sparse VideoGen2's attention (Yang et al., 2025, sections 3 and 4): clusters of queries see some clusters of keys.

Queries and keys are clustered apart, in every head; values follow their keys. The centroids and sizes of the clusters
estimate how much of the attention of a cluster of queries goes to each cluster of keys, and the clusters that together
have most of it are computed. Nothing is trained.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError
from videogen.nn.block_sparse import PATHS, Plan, fast_path
from videogen.nn.clustering import Clusters, drawn_centroids, kmeans
from videogen.nn.micro_batches import named_key
from videogen.nn.streaming import Stream
from videogen.parallel import activation_spec, mesh_axis_size, on_mesh


def estimated_mass(
    query: Float[Array, "*batch query_clusters head_width"],
    key: Float[Array, "*batch key_clusters head_width"],
    sizes: Float[Array, "*batch key_clusters"],
) -> Float[Array, "*batch query_clusters key_clusters"]:
    """The share of the attention of a scaled query that each cluster of keys has, if all keys were their centroids.

    A cluster counts as often as it has keys; one without has none. It is exact where points and centroids coincide.
    """
    scores = jnp.einsum("...qd,...kd->...qk", query, key, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.softmax(scores + jnp.log(sizes.astype(jnp.float32))[..., None, :], axis=-1)


def keep_clusters(
    mass: Float[Array, "*batch query_clusters key_clusters"], top_p: float, minimum: float = 0.0
) -> Bool[Array, "*batch query_clusters key_clusters"]:
    """The fewest clusters of keys, the heaviest first, whose mass reaches ``top_p``; that which reaches it is kept.

    Args:
      mass: adds up to 1 over the clusters of keys.
      top_p: above 0; 1 or more keeps all clusters, whatever rounding makes of the sum.
      minimum: share of the clusters that are kept at least, rounded up to whole clusters.
    """
    if top_p >= 1:
        return jnp.ones(mass.shape, bool)
    clusters = mass.shape[-1]
    order = jnp.argsort(-mass, axis=-1, stable=True)
    heavier = jnp.cumsum(jnp.take_along_axis(mass, order, axis=-1), axis=-1)
    heavier = jnp.concatenate([jnp.zeros_like(heavier[..., :1]), heavier[..., :-1]], axis=-1)
    kept = (heavier < top_p) | (jnp.arange(clusters) < math.ceil(minimum * clusters - 1e-9))
    return jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)


def plan_of(queries: Clusters, keys: Clusters, top_p: float, minimum: float) -> Plan:
    """The plan of scaled queries and keys in clusters."""
    mass = estimated_mass(queries.centroids, keys.centroids, keys.sizes)
    return Plan(queries.labels, keys.labels, keep_clusters(mass, top_p, minimum))


def with_text(plan: Plan, exists: Bool[Array, "items text"]) -> Plan:
    """The plan of a sequence of a text and the tokens of ``plan``, in this order.

    The text has two clusters of its own: that of its tokens that exist, which sees and is seen by all but padding, and
    that of its padding, which sees itself alone.
    """
    labels = [
        jnp.concatenate([jnp.where(exists, count, count + 1).astype(jnp.int32), own], axis=1)
        for own, count in zip((plan.queries, plan.keys), plan.kept.shape[1:], strict=True)
    ]
    kept = jnp.pad(plan.kept, ((0, 0), (0, 1), (0, 1)), constant_values=True)
    kept = jnp.pad(kept, ((0, 0), (0, 1), (0, 1))).at[:, -1, -1].set(True)
    return Plan(*labels, kept)


@dataclasses.dataclass(frozen=True)
class Clustering:
    """How tokens are clustered and what is kept of their attention.

    Attributes:
      queries, keys: clusters of each head; of short sequences as many as there are tokens.
      top_p: mass that the kept clusters reach; 1 keeps all.
      minimum: share of the clusters of keys that are kept at least.
      first_iterations: of k-means from centroids that are drawn.
      iterations: of k-means from those of the call before.
      tolerance: of k-means: it ends when no centroid moves by more.
      seed: decides the first centroids.
      path: a name in ``block_sparse.PATHS``, or ``auto``: that for the device.
      block: tokens of a block; a cluster has whole blocks.
    """

    queries: int
    keys: int
    top_p: float
    minimum: float
    first_iterations: int = 50
    iterations: int = 2
    tolerance: float = 1e-4
    seed: int = 0
    path: str = "auto"
    block: int = 128

    def sizes(self, tokens: int) -> tuple[int, int]:
        """Clusters of so many queries and keys."""
        return min(self.queries, tokens), min(self.keys, tokens)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Centroids:
    """What a layer keeps of a call for the next one; layers may stand in front.

    Attributes:
      queries, keys: centroids of each example and head. The branches of a guidance share them.
      density: the share of the pairs that was computed, summed over the calls; not of text.
    """

    queries: Float[Array, "batch heads query_clusters head_width"]
    keys: Float[Array, "batch heads key_clusters head_width"]
    density: Float[Array, "batch heads"]

    @classmethod
    def empty(cls, leading: Sequence[int], heads: int, sizes: tuple[int, int], width: int) -> "Centroids":
        """Before the first call; ``leading`` are the sides before the heads, such as layers and examples."""
        found = (jnp.zeros((*leading, heads, size, width), jnp.float32) for size in sizes)
        return cls(*found, jnp.zeros((*leading, heads), jnp.float32))


class SparseStream(Stream):
    """The centroids of every layer of a stack, and how its self-attention uses them in a call.

    Args:
      cache: of the call before (``Centroids``), for ``Stream``.
      clustering: settings.
      first: whether no call has clustered before; the centroids are then drawn.
      dense: whether this call is not sparse: it then leaves the centroids as they are.
      text: tokens at the start of the sequence that are not clustered.
    """

    def __init__(
        self,
        cache: Sequence[Any],
        clustering: Clustering,
        first: Bool[Array, ""],
        dense: Bool[Array, ""],
        text: int = 0,
    ):
        super().__init__(cache)
        self.clustering, self.first_call, self.dense, self.text = clustering, first, dense, text

    def inner(self, past: Any) -> "SparseStream":
        return SparseStream(past, self.clustering, self.first_call, self.dense, self.text)

    def attend(
        self,
        query: Float[Array, "batch sequence heads head_width"],
        key: Float[Array, "batch sequence heads head_width"],
        value: Float[Array, "batch sequence heads head_width"],
        key_mask: Bool[Array, "batch sequence"] | None,
        dense: Callable[[], Array],
    ) -> Float[Array, "batch sequence heads head_width"]:
        """Attention of scaled queries; ``dense`` computes all of it.

        Of the examples the first as many as have centroids are clustered for the next call: the others are the same
        examples without their conditioning, which begin with the same centroids.

        Raises:
          UserError: the sequence is sharded, or there are fewer heads of keys than of queries.
        """
        if mesh_axis_size("context") > 1:
            raise UserError("sparse attention needs whole sequences: draw on a mesh without context (--mesh=data=-1)")
        past = self.recall()
        branches = query.shape[0] // past.density.shape[0]
        start = jax.tree.map(lambda x: jnp.tile(x, (branches,) + (1,) * (x.ndim - 1)), past)
        exists = jnp.ones(query.shape[:2], bool) if key_mask is None else key_mask
        local = functools.partial(_attend, self.clustering, self.text)
        if on_mesh():
            spec = activation_spec(("batch", "sequence", "heads", None), query.shape)
            batch, heads = spec[0], spec[2]
            of_past = Centroids(*(PartitionSpec(batch, heads, None, None),) * 2, PartitionSpec(batch, heads))
            specs = (spec, spec, spec, PartitionSpec(batch, None), of_past, PartitionSpec())
            local = jax.shard_map(local, in_specs=specs, out_specs=(spec, of_past), check_vma=False)
        arguments = (query, key, value, exists, start, self.first_call)
        out, found = jax.lax.cond(self.dense, lambda *_: (dense(), start), local, *arguments)
        examples = len(past.density)
        # The measured density is the mean over the branches, which are the same examples.
        density = found.density.reshape(branches, *past.density.shape).mean(0)
        kept = jax.tree.map(lambda x: x[:examples], found)
        self.keep(dataclasses.replace(kept, density=density))
        return out


def _attend(
    settings: Clustering,
    text: int,
    query: Array,
    key: Array,
    value: Array,
    exists: Bool[Array, "batch sequence"],
    past: Centroids,
    first: Bool[Array, ""],
) -> tuple[Array, Centroids]:
    """Sparse attention on one device, and the centroids that it found."""
    batch, tokens, heads, width = query.shape
    q, k, v = (x.swapaxes(1, 2).reshape(batch * heads, tokens, width) for x in (query, key, value))
    rounds = jnp.where(first, settings.first_iterations, settings.iterations)
    found = {}
    for name, points, count in (("queries", q, settings.queries), ("keys", k, settings.keys)):
        own = points[:, text:]
        count = min(count, own.shape[1])
        drawn = drawn_centroids(own, count, named_key(jax.random.key(settings.seed), name))
        begin = jnp.where(first, drawn, getattr(past, name).reshape(drawn.shape))
        found[name] = kmeans(own, begin, rounds, tolerance=settings.tolerance)
    plan = plan_of(found["queries"], found["keys"], settings.top_p, settings.minimum)
    density = plan.density().reshape(batch, heads)
    if text:
        plan = with_text(plan, jnp.repeat(exists[:, :text], heads, axis=0))
    path = fast_path() if settings.path == "auto" else settings.path
    out = PATHS[path](q, k, v, plan, settings.block)
    out = out.reshape(batch, heads, tokens, width).swapaxes(1, 2).astype(value.dtype)
    centroids = (found[name].centroids.reshape(getattr(past, name).shape) for name in ("queries", "keys"))
    return out, Centroids(*centroids, past.density + density)
