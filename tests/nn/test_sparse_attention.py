"""Sparse attention between clusters: what is kept, and that every path computes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen import data
from videogen.nn import attend
from videogen.nn.block_sparse import (
    PATHS,
    Plan,
    difference_on_device,
    kernel,
    lay_blocks,
    masked,
    pairs,
    permutation,
    permute,
)
from videogen.nn.clustering import Clusters, cluster_sizes, drawn_centroids, kmeans
from videogen.nn.sparse_attention import estimated_mass, keep_clusters, plan_of, with_text


def normal(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def clustered(items: int, tokens: int, width: int, groups: int, noise: float, seed=0) -> tuple[np.ndarray, ...]:
    """Scaled queries, keys and values whose queries and keys stand in groups of random order, so that each query has
    its mass on the keys of few groups; and the groups."""
    random = np.random.default_rng(seed)
    centres = np.linalg.qr(random.normal(size=(width, width)))[0][:groups]
    label = np.stack([random.permutation(np.arange(tokens) % groups) for _ in range(2 * items)])
    q, k = (centres[part] + noise * random.normal(size=(items, tokens, width)) for part in np.split(label, 2))
    return *(np.float32(x) for x in (12 * q, k)), normal((items, tokens, width), 9), *np.split(label, 2)


@functools.partial(jax.jit, static_argnums=(1,))
def clusters_of(points, count, seed=0) -> Clusters:
    return kmeans(points, drawn_centroids(points, count, jax.random.key(seed)), 30)


def by_position(points, count) -> Clusters:
    """The baseline: as many runs of neighbours."""
    labels = jnp.broadcast_to(jnp.arange(points.shape[1]) * count // points.shape[1], points.shape[:2])
    sums = jax.vmap(lambda x, label: jax.ops.segment_sum(x, label, count))(jnp.asarray(points), labels)
    sizes = cluster_sizes(labels, count)
    return Clusters(labels, sums / sizes[..., None], sizes, None, None)


def dense(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k), -1)
    return jnp.einsum("nqk,nkd->nqd", weights, v)


def recall(q, k, plan) -> float:
    """The share of the attention that is in the kept pairs, mean over the queries."""
    weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k), -1)
    return float(jnp.where(plan.elements(), weights, 0).sum(-1).mean())


RAGGED = np.repeat([0, 2, 3, 4, 6], [1, 17, 40, 5, 1])
"""Clusters of 1, 17, 40, 5 and 1 tokens; numbers 1 and 5 of seven are empty."""


def ragged_plan(seed=0) -> Plan:
    random = np.random.default_rng(seed)
    labels = np.stack([random.permutation(RAGGED) for _ in range(4)]).astype(np.int32)
    kept = random.random((2, 7, 7)) < 0.4
    kept[:, :, 3] = True
    return Plan(*(jnp.asarray(x) for x in (labels[:2], labels[2:], kept)))


def test_a_permutation_and_its_inverse_are_the_identity():
    x, random = normal((3, 64, 5)), np.random.default_rng(0)
    labels = jnp.asarray(np.stack([random.permutation(RAGGED) for _ in range(3)]))
    order, inverse = permutation(labels)
    np.testing.assert_array_equal(permute(permute(x, order), inverse), x)
    sorted_labels = jnp.take_along_axis(labels, order, axis=1)
    np.testing.assert_array_equal(sorted_labels, np.broadcast_to(RAGGED, (3, 64)))
    # Within a cluster the order stays.
    assert (np.diff(np.where(sorted_labels == 3, order, 0), axis=1)[:, 18:56] > 0).all()


def test_dense_attention_of_permuted_tokens_is_dense_attention():
    q, k, v = (normal((2, 64, 8), seed) for seed in range(3))
    plan = ragged_plan()
    of_queries, of_keys = permutation(plan.queries), permutation(plan.keys)
    moved = dense(permute(q, of_queries.order), permute(k, of_keys.order), permute(v, of_keys.order))
    np.testing.assert_allclose(permute(moved, of_queries.inverse), dense(q, k, v), atol=1e-6)


def test_every_cluster_has_whole_blocks():
    plan = ragged_plan()
    blocks = lay_blocks(plan.queries, 7, 8)
    assert blocks.owner.shape == (2, (64 + 7 * 7) // 8)
    for item in range(2):
        owner, token = np.asarray(blocks.owner[item]), np.asarray(blocks.token[item]).reshape(-1, 8)
        assert [int((owner == cluster).sum()) for cluster in range(7)] == [1, 0, 3, 5, 1, 0, 1]
        for number, cluster in enumerate(owner):
            own = token[number][token[number] < 64]
            assert (np.asarray(plan.queries[item])[own] == cluster).all() and (len(own) > 0) == (cluster >= 0)
        np.testing.assert_array_equal(token.reshape(-1)[np.asarray(blocks.slot[item])], np.arange(64))


@pytest.mark.parametrize("path", ["pairs", "kernel"])
@pytest.mark.parametrize("block", [8, 16])
def test_every_path_is_attention_with_a_mask_of_elements(path, block):
    q, k, v = (normal((2, 64, 8), seed) for seed in range(3))
    plan = ragged_plan()
    scores = np.einsum("nqd,nkd->nqk", q, k).astype(np.float64)
    allowed = np.asarray(plan.kept)[np.arange(2)[:, None, None], plan.queries[:, :, None], plan.keys[:, None, :]]
    weights = np.where(allowed, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    right = np.einsum("nqk,nkd->nqd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(masked(q, k, v, plan), right, atol=2e-6)
    np.testing.assert_allclose(jax.jit(PATHS[path], static_argnums=4)(q, k, v, plan, block), right, atol=2e-6)
    sizes = [np.stack([np.bincount(row, minlength=7) for row in side]) for side in (plan.queries, plan.keys)]
    share = np.einsum("nq,nqk,nk->n", sizes[0], plan.kept, sizes[1]) / 64**2
    np.testing.assert_allclose(plan.density(), share, rtol=1e-6)
    np.testing.assert_allclose(share, allowed.mean((1, 2)), rtol=1e-6)


def test_the_kernel_is_told_no_more_than_its_scalar_memory_holds(monkeypatch):
    from videogen.nn import block_sparse

    monkeypatch.setattr(block_sparse, "SCALARS", 60)
    q, k, v = (normal((2, 64, 8), seed) for seed in range(3))
    plan = ragged_plan(1)
    np.testing.assert_allclose(kernel(q, k, v, plan, 8), masked(q, k, v, plan), atol=2e-6)


def test_the_list_of_pairs_may_be_longer_than_a_turn_and_large_scores_do_no_harm():
    q, k, v = (normal((3, 256, 8), seed) for seed in range(3))
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 9, (3, 256)), jnp.int32)
    kept = jnp.asarray(np.random.default_rng(1).random((3, 9, 9)) < 0.5).at[:, :, 0].set(True)
    plan = Plan(labels, labels, kept)
    np.testing.assert_allclose(pairs(40 * q, k, v, plan, 8), masked(40 * q, k, v, plan), atol=2e-3)


def test_the_check_at_the_start_passes_on_this_device_and_finds_a_path_that_blurs(monkeypatch):
    assert max(difference_on_device(path, 8, jnp.float32, 16) for path in ("pairs", "kernel")) < 1e-5
    monkeypatch.setitem(PATHS, "pairs", lambda q, k, v, plan, block: 0.9 * masked(q, k, v, plan))
    assert difference_on_device("pairs", 8, jnp.float32, 16) == pytest.approx(0.1, rel=1e-3)


def test_the_kept_mass_reaches_p_and_without_the_last_cluster_it_does_not():
    mass = np.random.default_rng(0).dirichlet(np.full(20, 0.3), size=(3, 50)).astype(np.float32)
    for p in (0.3, 0.9, 0.99):
        kept = np.asarray(keep_clusters(mass, p))
        held = np.where(kept, mass, 0)
        assert (held.sum(-1) >= p - 1e-6).all()
        smallest = np.where(kept, mass, 2).min(-1)
        assert (held.sum(-1) - smallest < p + 1e-6).all()
        # They are the heaviest.
        assert (smallest >= np.where(kept, 0, mass).max(-1)).all()
    kept = np.asarray(keep_clusters(mass, 0.3, minimum=0.33))
    assert kept.sum(-1).min() == 7  # 6.6 of 20, rounded up
    np.testing.assert_array_equal(keep_clusters(mass[0, :1] * 0 + 0.05, 0.4).sum(-1), 8)


def test_p_of_one_keeps_all_whatever_the_sums_are():
    """Ten times 0.1 in float32 is above 1: a comparison with the sum would leave some out."""
    mass = np.full((1, 3, 1000), 1e-3, np.float32)
    assert np.asarray(keep_clusters(mass, 1.0)).all()
    q, k, v = (normal((2, 64, 8), seed) for seed in range(3))
    found = clusters_of(q, 6), clusters_of(k, 9)
    np.testing.assert_allclose(masked(q, k, v, plan_of(*found, 1.0, 0.0)), dense(q, k, v), atol=1e-6)
    every = clusters_of(q, 64), clusters_of(k, 64)
    plan = plan_of(*every, 1.0, 0.0)
    np.testing.assert_allclose(pairs(q, k, v, plan, 8), dense(q, k, v), atol=1e-6)
    np.testing.assert_array_equal(plan.density(), 1.0)


def test_density_rises_with_p_and_with_the_minimum():
    q, k = (normal((2, 128, 8), seed) for seed in range(2))
    found = clusters_of(q, 8), clusters_of(k, 16)
    by_p = [float(plan_of(*found, p, 0.0).density().mean()) for p in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
    assert (np.diff(by_p) > 0).all() and by_p[-1] == 1
    by_minimum = [float(plan_of(*found, 0.1, share).density().mean()) for share in (0.0, 0.2, 0.5, 1.0)]
    assert (np.diff(by_minimum) > 0).all() and by_minimum[-1] == 1


def test_the_mass_of_a_cluster_grows_with_its_size_as_the_true_one_does():
    q, k = normal((1, 6, 8)), normal((1, 5, 8), 1)
    sizes = jnp.array([[3, 1, 4, 0, 2]])
    mass = estimated_mass(q, k, sizes)
    repeated = np.repeat(k, np.asarray(sizes[0]), axis=1)
    owner = np.repeat(np.arange(5), np.asarray(sizes[0]))
    weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, repeated), -1)
    truth = np.stack([weights[..., owner == cluster].sum(-1) for cluster in range(5)], -1)
    # All keys of a cluster are its centroid: the estimate is exact.
    np.testing.assert_allclose(mass, truth, rtol=1e-5, atol=1e-8)
    assert (np.asarray(mass)[..., 3] == 0).all()
    tripled = estimated_mass(q, k, sizes.at[0, 0].set(9))
    np.testing.assert_allclose(
        tripled[..., 0] / tripled[..., 1], 3 * np.asarray(mass[..., 0] / mass[..., 1]), rtol=1e-5
    )


def test_density_falls_strictly_with_p_on_real_features():
    """Patches of moving shapes, projected at random: no noise that was drawn to have clusters."""
    source = data.build({"name": "shapes"}, clip=data.Clip(4, 16, 16, 8.0), seed=0, split="train")
    patches = np.stack([source[i]["video"] for i in range(2)]).reshape(2, 4, 8, 2, 8, 2, 3) / 127.5 - 1
    patches = patches.transpose(0, 1, 2, 4, 3, 5, 6).reshape(2, 256, 12).astype(np.float32)
    q, k = (patches @ normal((12, 16), seed) for seed in range(2))
    found = clusters_of(0.5 * q, 24), clusters_of(k, 24)
    density = [float(plan_of(*found, p, 0.0).density().mean()) for p in (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)]
    assert (np.diff(density) < 0).all() and density[0] < 1


def test_planted_clusters_are_recalled_and_scattered_points_need_nearly_all():
    q, k, v, *_ = clustered(2, 256, 16, 8, 0.05)
    plan = plan_of(clusters_of(q, 12), clusters_of(k, 12), 0.9, 0.0)
    assert recall(q, k, plan) > 0.9 and float(plan.density().mean()) < 0.35
    error = np.abs(masked(q, k, v, plan) - dense(q, k, v)).mean() / np.abs(dense(q, k, v)).mean()
    assert error < 0.05
    q, k = normal((2, 256, 16), 3), normal((2, 256, 16), 4)
    loose = plan_of(clusters_of(q / 4, 12), clusters_of(k, 12), 0.9, 0.0)
    assert float(loose.density().mean()) > 0.75


def test_error_falls_with_density_and_is_below_that_of_blocks_by_position():
    q, k, v, *_ = clustered(4, 256, 16, 8, 0.15)
    truth = dense(q, k, v)

    def curve(group) -> np.ndarray:
        found = group(q, 16), group(k, 16)
        plans = [plan_of(*found, p, 0.0) for p in (0.3, 0.5, 0.7, 0.9, 0.97)]
        return np.array([(plan.density().mean(), np.abs(masked(q, k, v, plan) - truth).mean()) for plan in plans])

    own, positions = curve(clusters_of), curve(by_position)
    assert (np.diff(own[:, 0]) > 0).all() and (np.diff(own[:, 1]) < 0).all()
    for density, error in own[:4]:
        assert error < 0.8 * np.interp(density, positions[:, 0], positions[:, 1])


@pytest.mark.parametrize("path", ["reference", "pairs"])
def test_a_prompt_sees_and_is_seen_by_all_and_padding_by_itself(path):
    plan, exists = ragged_plan(), jnp.arange(6) < jnp.array([[4], [6]])
    whole = with_text(plan, exists)
    allowed = np.asarray(whole.elements())
    np.testing.assert_array_equal(allowed[:, 6:, 6:], plan.elements())
    there = np.concatenate([np.asarray(exists), np.ones((2, 64), bool)], axis=1)
    text = np.arange(70) < 6
    pair = there[:, :, None] & there[:, None, :]
    np.testing.assert_array_equal(allowed[:, text], np.where(there[:, :6, None], pair[:, :6], ~there[:, None, :]))
    np.testing.assert_array_equal(allowed[:, :, text], np.where(there[:, None, :6], pair[:, :, :6], ~there[:, :, None]))
    q, k, v = (normal((2, 70, 8), seed) for seed in range(3))
    compute = functools.partial(PATHS[path], plan=whole, block=8)
    out = np.asarray(compute(q, k, v))
    wild = np.where((there | ~text)[..., None], 1, 100).astype(np.float32)
    changed = np.asarray(compute(q, k * wild, v * wild))
    np.testing.assert_array_equal(np.where(there[..., None], changed, 0), np.where(there[..., None], out, 0))
    everything = with_text(Plan(plan.queries, plan.keys, jnp.ones_like(plan.kept)), exists)
    full = attend(*(x[:, :, None] for x in (q, k, v)), key_mask=jnp.asarray(there), backend="reference")[:, :, 0]
    np.testing.assert_allclose(
        np.where(there[..., None], PATHS[path](q, k, v, everything, 8), 0),
        np.where(there[..., None], full, 0),
        atol=1e-6,
    )
