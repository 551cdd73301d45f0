"""k-means: against brute force, on planted clusters, from warm starts, with empty clusters and missing points."""

import functools

import jax
import numpy as np
import pytest

from videogen.nn import clustering
from videogen.nn.clustering import drawn_centroids, kmeans


@functools.partial(jax.jit, static_argnames=("clusters", "tolerance"))
def run(points, clusters, iterations, exists=None, tolerance=0.0, seed=0):
    start = drawn_centroids(points, clusters, jax.random.key(seed), exists)
    return kmeans(points, start, iterations, exists=exists, tolerance=tolerance)


again = jax.jit(functools.partial(kmeans, tolerance=0.0))


def scattered(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_hand(points: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """One item, in float64."""
    points, centroids = points.astype(np.float64), centroids.astype(np.float64)
    for _ in range(iterations):
        labels = ((points[:, None] - centroids) ** 2).sum(-1).argmin(-1)
        for cluster in range(len(centroids)):
            if (labels == cluster).any():
                centroids[cluster] = points[labels == cluster].mean(0)
    return labels, centroids


@pytest.mark.parametrize("iterations", [1, 4])
def test_every_item_is_clustered_as_by_hand(iterations):
    points = scattered((2, 3, 40, 5))
    found = run(points, 6, iterations)
    start = drawn_centroids(points, 6, jax.random.key(0))
    for item in np.ndindex(2, 3):
        labels, centroids = by_hand(points[item], np.asarray(start[item]), iterations)
        np.testing.assert_array_equal(found.labels[item], labels)
        np.testing.assert_allclose(found.centroids[item], centroids, atol=1e-5)
        np.testing.assert_array_equal(found.sizes[item], np.bincount(labels, minlength=6))
        np.testing.assert_allclose(found.inertia[item], ((points[item] - centroids[labels]) ** 2).sum(), rtol=1e-5)


def test_inertia_never_rises_and_ends_where_nothing_moves():
    points = scattered((3, 60, 4))
    inertia = np.stack([run(points, 7, n).inertia for n in range(1, 25)])
    assert (np.diff(inertia, axis=0) <= 1e-5 * inertia[0]).all() and (inertia[-1] < inertia[0]).all()
    found = run(points, 7, 100)
    assert (found.rounds < 100).all()
    more = again(points, found.centroids, 5)
    np.testing.assert_array_equal(more.labels, found.labels)
    np.testing.assert_allclose(more.centroids, found.centroids, atol=1e-6)
    np.testing.assert_array_equal(more.rounds, 1)


def test_planted_clusters_are_found_and_a_seed_is_one_result():
    centres = 10 * np.eye(4, 8, dtype=np.float32)
    truth = np.random.default_rng(1).integers(0, 4, 200)
    points = centres[truth] + 0.1 * scattered((200, 8))
    # Lloyd's algorithm may end elsewhere: from a point of each cluster it does not.
    start = np.stack([points[truth == cluster][0] for cluster in range(4)])
    found = again(points, start, 20)
    np.testing.assert_array_equal(found.labels, truth)
    np.testing.assert_allclose(found.centroids, centres, atol=0.1)
    one, same, other = (run(points, 4, 3, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.labels, same.labels)
    assert (np.asarray(one.centroids) != np.asarray(other.centroids)).any()


def test_the_first_centroids_are_different_points():
    points = np.broadcast_to(np.arange(30, dtype=np.float32)[:, None], (2, 30, 1))
    start = np.asarray(drawn_centroids(points, 30, jax.random.key(3)))
    np.testing.assert_array_equal(np.sort(start[..., 0], axis=1), points[..., 0])


def test_empty_clusters_keep_their_centroid():
    points = scattered((50, 3))
    start = np.stack([points[0], points[1], np.full(3, 1e4, np.float32)])
    found = again(points, start, 10)
    assert found.sizes[2] == 0 and np.isfinite(found.centroids).all() and np.isfinite(found.inertia)
    np.testing.assert_array_equal(found.centroids[2], start[2])
    same = run(np.ones((20, 3), np.float32), 4, 5)
    np.testing.assert_array_equal(same.sizes, [20, 0, 0, 0])
    np.testing.assert_array_equal(same.inertia, 0)


def test_points_that_do_not_exist_change_nothing():
    points = scattered((2, 40, 4))
    exists = np.arange(40) < np.array([[40], [25]])
    wild = np.where(exists[..., None], points, 1e6)
    start = points[:, :5]
    with_padding, alone = again(wild, start, 8, exists=exists), again(points[1, :25], start[1], 8)
    np.testing.assert_array_equal(with_padding.labels[1, :25], alone.labels)
    np.testing.assert_array_equal(with_padding.labels[1, 25:], 5)
    np.testing.assert_allclose(with_padding.centroids[1], alone.centroids, atol=1e-6)
    np.testing.assert_allclose(with_padding.inertia[1], alone.inertia, rtol=1e-6)
    assert with_padding.sizes.sum(-1).tolist() == [40, 25]
    drawn = drawn_centroids(wild, 30, jax.random.key(0), exists)
    assert np.abs(drawn).max() < 100
    # More clusters than points: those that are left repeat the first and stay empty.
    assert (run(wild, 30, 3, exists=exists).sizes[1] > 0).sum() <= 25


def test_an_item_does_not_depend_on_its_neighbours():
    points = np.stack([scattered((40, 3)), 5 * scattered((40, 3), seed=1)])
    both = run(points, 4, 30, tolerance=1e-2)
    for item in range(2):
        alone = run(points[item : item + 1], 4, 30, tolerance=1e-2)
        np.testing.assert_array_equal(both.labels[item], alone.labels[0])
        assert both.rounds[item] == alone.rounds[0]


def test_distances_need_not_be_held_at_once(monkeypatch):
    points = scattered((5, 30, 3))
    whole = kmeans(points, points[:, :4], 3)
    monkeypatch.setattr(clustering, "MOST_DISTANCES", 2 * 30 * 4)
    np.testing.assert_array_equal(kmeans(points, points[:, :4], 3).labels, whole.labels)
