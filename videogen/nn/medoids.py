"""Clusters that are points: k-medoids, density peaks, and the eigenvectors that make clusters round.

Everything is float32, deterministic, and of one batch item; points that do not exist change nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FAR = 1e30


def distances(points: Float[Array, "points width"]) -> Float[Array, "points points"]:
    """Euclidean, exactly 0 of a point to itself."""
    x = points.astype(jnp.float32)
    return jnp.sqrt(jnp.maximum(jnp.sum((x[:, None] - x[None]) ** 2, -1), 0.0))


def kkz(points: Float[Array, "points width"], count: int, exists: Bool[Array, "points"]) -> Int[Array, "count"]:
    """The longest vector, then one point after another that is farthest from its nearest chosen one (Katsavounidis et
    al., 1994)."""
    apart = distances(points)
    length = jnp.where(exists, jnp.linalg.norm(points.astype(jnp.float32), axis=-1), -1.0)
    first = jnp.argmax(length)
    chosen = jnp.full(count, first)

    def add(i: Array, state: tuple) -> tuple:
        chosen, nearest = state
        at = jnp.argmax(jnp.where(exists, nearest, -1.0))
        return chosen.at[i].set(at), jnp.minimum(nearest, apart[at]).at[at].set(-0.5)

    start = (chosen, apart[first].at[first].set(-0.5))
    return jax.lax.fori_loop(1, count, add, start)[0]


def medoids(
    points: Float[Array, "points width"], count: int, exists: Bool[Array, "points"], rounds: int = 20
) -> tuple[Int[Array, "count"], Int[Array, "points"]]:
    """k-medoids from ``kkz``: the places of the medoids in their order, and the number of each point's medoid.

    A round assigns points to the nearest medoid and takes from every cluster the member with the least sum of distances
    to the others (CenterCLIP; Zhao et al., 2022). Where fewer points exist than ``count``, medoids are repeated.
    """
    apart = distances(points)

    def assigned(chosen: Array) -> Array:
        return jnp.argmin(apart[:, chosen], axis=1)

    def step(_: int, chosen: Array) -> Array:
        member = jax.nn.one_hot(assigned(chosen), count) * exists[:, None]
        sums = apart @ member
        best = jnp.argmin(jnp.where(member > 0, sums, FAR), axis=0)
        return jnp.where(member.sum(0) > 0, best, chosen)

    chosen = jnp.sort(jax.lax.fori_loop(0, rounds, step, kkz(points, count, exists)))
    return chosen, assigned(chosen)


def density_peaks(
    points: Float[Array, "points width"], count: int, neighbours: int, exists: Bool[Array, "points"]
) -> tuple[Int[Array, "count"], Int[Array, "points"]]:
    """DPC-KNN (Du et al., 2016): centres in their order, and the number of each point's nearest centre.

    A density is ``exp(-mean of the k least squared distances)``, distances over ``√width`` and the point itself among
    them; a centre has a high density and is far from any denser point. Equal densities count as falling with the place.

    Args:
      points: to be clustered.
      count: number of centres.
      neighbours: k, at most the number of points.
      exists: which there are.
    """
    total = len(points)
    apart = distances(points) / points.shape[-1] ** 0.5
    apart = jnp.where(exists[:, None] & exists[None], apart, FAR)
    near = -jax.lax.top_k(-apart, min(neighbours, total))[0]
    known = near < FAR / 2
    mean = jnp.where(known, near**2, 0.0).sum(1) / jnp.maximum(known.sum(1), 1)
    density = jnp.where(exists, jnp.exp(-mean), -1.0) * (1.0 - 1e-6 * jnp.arange(total) / total)
    denser = density[None] > density[:, None]
    largest = jnp.where(apart < FAR / 2, apart, 0.0).max()
    to_denser = jnp.where(denser & exists[None], apart, FAR).min(1)
    peak = jnp.where(to_denser < FAR / 2, to_denser, largest)
    score = jnp.where(exists, density * peak, -1.0)
    # The densest point is a centre even where all points are one.
    score = jnp.where(density == density.max(), jnp.inf, score)
    order = jnp.argsort(-score, stable=True)[:count]
    centres = jnp.sort(order)
    return centres, jnp.argmin(apart[:, centres], axis=1)


def spectral(
    points: Float[Array, "points width"], count: int, exists: Bool[Array, "points"], sigma: float = 2.0
) -> Float[Array, "points count"]:
    """Rows of the ``count`` eigenvectors with the least eigenvalues of the normalised Laplacian, each of length 1.

    The affinity is ``exp(-d² / 2σ²)``; the sign of an eigenvector makes its largest entry positive (Ng et al., 2001).
    """
    there = exists.astype(jnp.float32)
    affinity = jnp.exp(-(distances(points) ** 2) / (2 * sigma**2)) * there[:, None] * there[None]
    degree = jnp.maximum(affinity.sum(1), 1e-12) ** -0.5
    laplacian = jnp.eye(len(points)) - degree[:, None] * affinity * degree[None]
    # Points that do not exist have the largest eigenvalues.
    laplacian = laplacian + 4.0 * jnp.diag(1.0 - there)
    vectors = jnp.linalg.eigh(laplacian)[1][:, :count]
    top = jnp.take_along_axis(vectors, jnp.abs(vectors).argmax(0)[None], axis=0)
    vectors = vectors * jnp.sign(top)
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
