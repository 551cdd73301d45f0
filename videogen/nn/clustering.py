"""Clustering of points, such as queries, keys or tokens: k-means.

All methods take points ``[*batch, points, width]`` and which of them exist, cluster every batch item by itself, and
compute in float32. Sizes are static: the number of clusters is, and a cluster may end without a point.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MOST_DISTANCES = 2**25
"""Distances that are held at a time, at most: further batch items wait."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clusters:
    """Points in clusters.

    Attributes:
      labels: the cluster of every point, from 0; the number of clusters for points that do not exist.
      centroids: the mean of the points of every cluster. One without points keeps the centroid that it had.
      sizes: points of every cluster.
      inertia: squared distances of the points to their centroids, summed.
      rounds: in how many rounds the centroids moved.
    """

    labels: Int[Array, "*batch points"]
    centroids: Float[Array, "*batch clusters width"]
    sizes: Int[Array, "*batch clusters"]
    inertia: Float[Array, "*batch"]
    rounds: Int[Array, "*batch"]


def kmeans(
    points: Float[Array, "*batch points width"],
    centroids: Float[Array, "*batch clusters width"],
    iterations: int | Int[Array, ""],
    *,
    exists: Bool[Array, "*batch points"] | None = None,
    tolerance: float = 1e-4,
) -> Clusters:
    """Lloyd's algorithm with Euclidean distances.

    A batch item whose centroids have all moved by at most ``tolerance`` in a round is left as it is from then on, so
    that its result does not depend on its neighbours; the loop ends when all items are.

    Args:
      points: any float dtype.
      centroids: to begin with: ``drawn_centroids``, or those of an earlier run on points like these.
      iterations: rounds at most, at least 1; may be traced.
      exists: which points there are; ``None`` means all. The others change nothing and have no cluster.
      tolerance: Euclidean, in the units of the points.
    """
    batch, (count, width), clusters = points.shape[:-2], points.shape[-2:], centroids.shape[-2]
    items = math.prod(batch)
    x = points.reshape(items, count, width).astype(jnp.float32)
    start = centroids.reshape(items, clusters, width).astype(jnp.float32)
    present = None if exists is None else jnp.broadcast_to(exists, (*batch, count)).reshape(items, count)

    def going(state: tuple) -> Array:
        return (state[0] < iterations) & state[3].any()

    def body(state: tuple) -> tuple:
        number, labels, centroids, moving, rounds = state
        found = nearest(x, centroids, present)
        means = _means(x, found, centroids)
        shift = jnp.sqrt(jnp.sum((means - centroids) ** 2, axis=-1)).max(-1)
        labels = jnp.where(moving[:, None], found, labels)
        centroids = jnp.where(moving[:, None, None], means, centroids)
        return number + 1, labels, centroids, moving & (shift > tolerance), rounds + moving

    state = (jnp.int32(0), jnp.zeros((items, count), jnp.int32), start, jnp.ones(items, bool), jnp.zeros(items, int))
    _, labels, centroids, _, rounds = jax.lax.while_loop(going, body, state)
    sizes = cluster_sizes(labels, clusters)
    inertia = jnp.sum(jnp.where(labels < clusters, _own_distance(x, labels, centroids), 0), axis=-1)
    return Clusters(
        labels.reshape(*batch, count),
        centroids.reshape(*batch, clusters, width),
        sizes.reshape(*batch, clusters),
        inertia.reshape(batch),
        rounds.reshape(batch),
    )


def drawn_centroids(
    points: Float[Array, "*batch points width"],
    clusters: int,
    key: jax.Array,
    exists: Bool[Array, "*batch points"] | None = None,
) -> Float[Array, "*batch clusters width"]:
    """Different points, drawn alike for all batch items, as the first centroids; float32.

    Where fewer points exist than ``clusters``, the centroids that are left repeat the first one and stay empty.

    Args:
      points: at least as many as ``clusters``.
      clusters: how many.
      key: decides which.
      exists: which points may be drawn; at least one of every batch item.
    """
    rank = jax.random.uniform(key, points.shape[-2:-1])
    if exists is None:
        return jnp.take(points, jax.lax.top_k(rank, clusters)[1], axis=-2).astype(jnp.float32)
    value, index = jax.lax.top_k(jnp.where(exists, rank, -1.0), clusters)
    index = jnp.where(value < 0, index[..., :1], index)
    return jnp.take_along_axis(points, index[..., None], axis=-2).astype(jnp.float32)


def nearest(
    points: Float[Array, "items points width"],
    centroids: Float[Array, "items clusters width"],
    exists: Bool[Array, "items points"] | None = None,
) -> Int[Array, "items points"]:
    """The nearest centroid of every point, of equally near ones the first; ``clusters`` where no point exists."""

    def one(x: Float[Array, "points width"], c: Float[Array, "clusters width"]) -> Int[Array, "points"]:
        # The square of the point itself is the same for all centroids.
        product = jnp.matmul(x, c.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(jnp.sum(c * c, axis=-1) - 2 * product, axis=-1).astype(jnp.int32)

    at_once = max(1, MOST_DISTANCES // (points.shape[1] * centroids.shape[1]))
    if at_once >= len(points):
        labels = jax.vmap(one)(points, centroids)
    else:
        labels = jax.lax.map(lambda pair: one(*pair), (points, centroids), batch_size=at_once)
    return labels if exists is None else jnp.where(exists, labels, centroids.shape[1])


def cluster_sizes(labels: Int[Array, "*batch points"], clusters: int) -> Int[Array, "*batch clusters"]:
    """How many points have each label below ``clusters``."""
    ones = jnp.ones((*labels.shape, 1), jnp.int32)
    return _sums(ones, labels, clusters)[..., 0]


def _sums(
    values: Array, labels: Int[Array, "*batch points"], clusters: int
) -> Float[Array, "*batch clusters width"] | Int[Array, "*batch clusters width"]:
    """Sums of the values of each cluster."""
    batch, (count, width) = labels.shape[:-1], values.shape[-2:]
    items = math.prod(batch)
    # One segment more of every item, which points without a cluster go to.
    segment = labels.reshape(items, count) + jnp.arange(items)[:, None] * (clusters + 1)
    sums = jax.ops.segment_sum(values.reshape(-1, width), segment.reshape(-1), items * (clusters + 1))
    return sums.reshape(*batch, clusters + 1, width)[..., :clusters, :]


def _means(
    points: Float[Array, "items points width"],
    labels: Int[Array, "items points"],
    centroids: Float[Array, "items clusters width"],
) -> Float[Array, "items clusters width"]:
    """The mean of every cluster; the centroid of one without points."""
    clusters = centroids.shape[1]
    sizes = cluster_sizes(labels, clusters)[..., None]
    return jnp.where(sizes > 0, _sums(points, labels, clusters) / jnp.maximum(sizes, 1), centroids)


def _own_distance(
    points: Float[Array, "items points width"],
    labels: Int[Array, "items points"],
    centroids: Float[Array, "items clusters width"],
) -> Float[Array, "items points"]:
    """Squared distance of every point to the centroid of its cluster."""
    own = jnp.take_along_axis(centroids, jnp.minimum(labels, centroids.shape[1] - 1)[..., None], axis=1)
    return jnp.sum((points - own) ** 2, axis=-1)
