"""Reducers on small inputs whose results are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen import reducers
from videogen.errors import UserError
from videogen.nn.medoids import density_peaks, kkz, medoids, spectral
from videogen.reducers import TokenSet, of_grid
from videogen.reducers.budgets import KeyFrames, after_merging, shares
from videogen.reducers.merging import greedy_groups, merged_counts, schedule
from videogen.reducers.pooling import WindowPooling
from videogen.reducers.selection import evenly
from videogen.reducers.time import (
    cut,
    depth_scores,
    jensen_shannon,
    segments,
    still_windows,
)

POINTS = np.array([(0, 0), (0.1, 0), (0, 0.1), (5, 5), (5.1, 5), (5, 5.3), (10, 0)], np.float32)
ALL = jnp.ones(7, bool)


def tokens(*rows) -> TokenSet:
    return TokenSet(jnp.asarray([rows], jnp.float32))


def grid_of(values) -> TokenSet:
    """Frames of a row of scalars as tokens of one channel and a constant one."""
    x = np.asarray(values, np.float32)[None, :, None, :, None]
    return of_grid(jnp.asarray(np.concatenate([x, np.ones_like(x)], -1)))


def test_bipartite_merging_joins_the_likest_pair():
    found, said = reducers.build({"name": "bipartite", "removed": 1}).reduce(tokens((1, 0), (0, 1), (0.9, 0.1), (1, 0)))
    np.testing.assert_allclose(found.x[0], [(0, 1), (0.9, 0.1), (1, 0)], atol=1e-6)
    np.testing.assert_allclose(found.size[0], [1, 1, 2])
    assert found.source[0].tolist() == [2, 0, 1, 2]
    assert float(said["asked"]) == 3


def test_protected_tokens_stay_alone():
    found, _ = reducers.build({"name": "bipartite", "removed": 2, "protected": 1}).reduce(
        tokens((1, 0), (1, 0), (1, 0), (0, 1), (0, 1))
    )
    assert found.size[0, 0] == 1 and found.source[0, 0] == 0
    # Of the other four the pairs at odd and even places behind it are (1, 2) and (3, 4).
    assert sorted(found.size[0].tolist()) == [1, 2, 2]


def test_schedules_sum_exactly_and_refuse_what_cannot_be():
    steps = schedule("decreasing", 8, 12, 400)
    assert sum(steps) == 96 and steps[0] == max(steps) and steps[-1] == 0
    assert schedule("constant", 8, 12, 400) == [8] * 12
    with pytest.raises(UserError, match=r"layer 11 has 21 tokens, 1 of them protected: at most 10 .* not 16"):
        schedule("constant", 16, 12, 197, protected=1)
    with pytest.raises(UserError, match="at most 2 can be merged away in 1 round"):
        reducers.build({"name": "bipartite", "removed": 3}).reduce(tokens((1, 0), (0, 1), (1, 1), (2, 1)))


def test_counts_of_tokens_that_merge_within_and_across_clips():
    """TempMe's tower of patches of 32 for 12 frames."""
    counts = merged_counts(50, 12, removed=2, layers=8, joins=(2, 2, 3), rest=1)
    assert counts == [48, 46, 44, 42, 40, 38, 36, 34, 68, 48, 44, 88, 62, 56, 168, 118, 107, 97]
    assert merged_counts(50, 12, removed=0, layers=3, joins=(), rest=0) == [50] * 3
    with pytest.raises(UserError, match="12 frames do not join by 2 · 5"):
        merged_counts(50, 12, removed=2, layers=8, joins=(2, 5))
    with pytest.raises(UserError, match="has 26 tokens, 1 of them protected: at most 12 .* not 24"):
        merged_counts(50, 12, removed=24, layers=2, joins=())


def test_medoids_from_the_longest_vector_and_density_peaks():
    assert kkz(POINTS, 3, ALL)[0] == 6
    assert medoids(POINTS, 3, ALL)[0].tolist() == [0, 3, 6]
    centres, cluster = density_peaks(POINTS, 3, 2, ALL)
    first, second, third = centres.tolist()
    assert first in (0, 1, 2) and second in (3, 4) and third == 5 and 6 not in centres
    assert cluster[0] == cluster[1] == cluster[2] and cluster[3] == cluster[4]


def test_medoids_are_the_best_members_and_never_get_worse():
    rng = np.random.default_rng(0)
    points, there = rng.normal(size=(20, 3)).astype(np.float32), jnp.ones(20, bool)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)

    def cost(chosen):
        return apart[:, np.unique(chosen)].min(1).sum()

    costs = [cost(medoids(points, 4, there, rounds)[0]) for rounds in (0, 1, 2, 20)]
    assert all(b <= a + 1e-5 for a, b in itertools.pairwise(costs))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    np.testing.assert_array_equal(medoids(points @ turn, 4, there)[0], medoids(points, 4, there)[0])
    # Duplicates are no two first centres while another point is left.
    twice = np.array([(3, 0), (3, 0), (0, 1), (0, 2)], np.float32)
    assert len(set(map(tuple, twice[np.asarray(kkz(twice, 3, jnp.ones(4, bool)))]))) == 3


def test_the_spectrum_of_blocks_tells_them_apart():
    rng = np.random.default_rng(0)
    blocks = np.concatenate([rng.normal(size=(5, 2)) * 0.1 + at for at in ((0, 0), (30, 0), (0, 30))])
    rows = spectral(jnp.asarray(blocks, jnp.float32), 3, jnp.ones(15, bool))
    chosen, cluster = medoids(rows, 3, jnp.ones(15, bool))
    assert {int(i) // 5 for i in chosen} == {0, 1, 2}
    assert all(len(set(np.asarray(cluster)[5 * i : 5 * i + 5].tolist())) == 1 for i in range(3))


def directions(sizes, spread, seed=0):
    """Tokens around as many directions as there are sizes."""
    rng = np.random.default_rng(seed)
    rows = [np.eye(6)[i] + spread * rng.normal(size=(size, 6)) for i, size in enumerate(sizes)]
    return TokenSet(jnp.asarray(np.concatenate(rows)[None], jnp.float32))


@pytest.mark.parametrize("rule", ["elbow", "silhouette"])
@pytest.mark.parametrize("sizes", [(6, 5, 7), (4, 4, 5, 6, 5)])
def test_a_clip_takes_as_many_clusters_as_it_has(rule, sizes):
    reducer = reducers.build({"name": "kmeans", "budget": 8, "choices": (2, 3, 4, 5, 6, 8), "rule": rule})
    found, said = jax.jit(lambda tokens: reducer.reduce(tokens))(directions(sizes, 0.02))
    assert float(said["clusters"]) == len(sizes) and int(found.mask.sum()) == len(sizes)
    assert found.size[0, : len(sizes)].tolist() == list(sizes)


def test_more_rounds_and_more_clusters_never_fit_worse():
    tokens = directions((6, 5, 7, 4), 0.6)

    def error(budget, rounds):
        reducer = reducers.build({"name": "kmeans", "budget": budget, "rounds": rounds})
        found = jax.jit(lambda tokens: reducer.reduce(tokens)[0])(tokens)
        x = np.asarray(tokens.x[0]) / np.linalg.norm(tokens.x[0], axis=-1, keepdims=True)
        source = np.asarray(found.source[0])
        return sum(((x[source == k] - x[source == k].mean(0)) ** 2).sum() for k in set(source))

    by_rounds = [error(4, rounds) for rounds in (1, 20)]
    by_clusters = [error(budget, 20) for budget in (1, 4, 22)]
    for errors in (by_rounds, by_clusters):
        assert all(b <= a + 1e-5 for a, b in itertools.pairwise(errors))
    # As many clusters as there are different tokens.
    assert by_clusters[-1] == pytest.approx(0.0, abs=1e-9)
    twice = TokenSet(jnp.concatenate([tokens.x[:, :5], tokens.x[:, :5]], axis=1))
    found, _ = reducers.build({"name": "kmeans", "budget": 5}).reduce(twice)
    np.testing.assert_allclose(reducers.restore(found), twice.x, atol=1e-6)
    with pytest.raises(UserError, match="choices of clusters are at least two, rise, and end at most at 4"):
        reducers.build({"name": "kmeans", "budget": 4, "choices": (2, 8)})


def test_a_still_clip_keeps_its_first_frame():
    clip = grid_of([[1, 2, 3, 4, 5, 6]] * 4)
    reducer = reducers.build({"name": "changes", "budget": 24, "by": "feature", "threshold": 0.5})
    kept = reducer.kept(clip).reshape(4, 6).sum(1)
    assert kept.tolist() == [6, 0, 0, 0]
    found, said = reducer.reduce(clip)
    assert int(found.mask.sum()) == 6 and float(said["dropped"]) == 0.75


def test_a_change_decides_about_its_own_frame_and_the_next_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 6, 2, 2, 4)).astype(np.float32)
    other = x.copy()
    other[:, 3] = rng.normal(size=(1, 2, 2, 4))
    reducer = reducers.build({"name": "changes", "budget": 24, "by": "feature", "threshold": 0.2})
    differs = (reducer.kept(of_grid(jnp.asarray(x))) != reducer.kept(of_grid(jnp.asarray(other)))).reshape(6, 4)
    assert set(np.flatnonzero(differs.any(1))) <= {3, 4}
    # Places are independent: permuting them permutes what is kept.
    turned = x[:, :, ::-1]
    a, b = (reducer.kept(of_grid(jnp.asarray(v))).reshape(6, 2, 2) for v in (x, turned))
    np.testing.assert_array_equal(a[:, ::-1], b)


def test_slow_change_is_seen_against_what_was_kept():
    angle = np.linspace(0, np.pi / 2, 10)
    x = np.stack([np.cos(angle), np.sin(angle)], -1)[None, :, None, None].astype(np.float32)
    rule = {"name": "changes", "budget": 10, "by": "feature", "threshold": 0.9}
    against = {
        r: int(reducers.build({**rule, "reference": r}).kept(of_grid(jnp.asarray(x))).sum())
        for r in ("previous", "kept")
    }
    # Neighbours have a cosine of 0.985; cos 20° = 0.94, cos 30° = 0.87: every third frame.
    assert against == {"previous": 1, "kept": 4}


def test_a_share_drops_as_many_of_every_frame():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, 3, 4)), jnp.float32)
    kept = reducers.build({"name": "changes", "budget": 45, "share": 0.5}).kept(of_grid(x)).reshape(2, 5, 9).sum(-1)
    assert kept.tolist() == [[9, 5, 5, 5, 5]] * 2


LIKENESS = np.array([(0.9, 0.9, 0.9, 0.1), (0.9,) * 4, (0.1,) * 4, (0.9, 0.1, 0.1, 0.1), (0.9, 0.9, 0.1, 0.1)])


def saved_by(alike, begins, threshold):
    """What a cut into windows saves, counted."""
    starts = [*np.flatnonzero(begins), len(alike) + 1]
    total = 0
    for a, b in itertools.pairwise(starts):
        total += (b - 1 - a) * int((alike[a : b - 1] > threshold).all(0).sum()) if b - 1 > a else 0
    return total


def test_still_windows_are_the_best_cut():
    saved, begins = still_windows(jnp.asarray(LIKENESS), 0.8)
    assert float(saved) == 8.0 and saved_by(LIKENESS, begins, 0.8) == 8 and begins[0]
    rng, find = np.random.default_rng(0), jax.jit(still_windows, static_argnums=1)
    for _ in range(50):
        alike = rng.random((6, 3))
        saved, begins = find(jnp.asarray(alike, jnp.float32), 0.5)
        cuts = itertools.product((False, True), repeat=6)
        best = max(saved_by(alike, np.array([True, *one]), 0.5) for one in cuts)
        assert float(saved) == best == saved_by(alike, begins, 0.5)
    still, begins = still_windows(jnp.ones((4, 6)), 0.8)
    assert float(still) == 24.0 and begins.tolist() == [True] + [False] * 4
    none, begins = still_windows(jnp.ones((4, 6)), 1.0)
    assert float(none) == 0.0


def test_merging_still_places_leaves_as_many_tokens_as_are_not_saved():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, 2, 2, 3)).astype(np.float32)
    x[0, 1:4, 0] = x[0, :1, 0]  # two places of example 0 stand still for four frames
    reducer = reducers.build({"name": "still", "budget": 24, "threshold": 0.999})
    found, said = reducer.reduce(of_grid(jnp.asarray(x)))
    assert found.mask.sum(1).tolist() == [24 - 6, 24] and float(said["saved"]) == 3.0
    assert sorted(np.asarray(found.size[0])[np.asarray(found.mask[0])].tolist())[-2:] == [4.0, 4.0]
    np.testing.assert_allclose(found.size.sum(1), 24.0)


def test_depth_scores_and_their_cuts():
    alike = jnp.array([0.9, 0.8, 0.2, 0.7, 0.9, 0.6, 0.95])
    np.testing.assert_allclose(depth_scores(alike), [0, 0.1, 1.4, 0.2, 0, 0.65, 0], atol=1e-6)
    np.testing.assert_allclose(depth_scores(alike + 3.0), depth_scores(alike), atol=1e-5)
    assert cut(alike, "depth").tolist() == [False, False, True, False, False, True, False]
    assert segments(cut(alike, "depth")).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert not cut(jnp.full(6, 0.7), "depth").any()
    assert cut(alike, "lowest", 2).tolist() == [False, False, True, False, False, True, False]
    hard = jnp.array([1.0, 1.0, 0.0, 1.0])
    assert cut(hard, "depth").tolist() == cut(hard, "lowest", 1).tolist() == [False, False, True, False]


def test_weights_share_out_a_budget():
    weights = jnp.array([0.9, 0.2, 0.6, 0.1]) ** 2
    np.testing.assert_allclose(weights / weights.sum(), [0.6639, 0.0328, 0.2951, 0.0082], atol=5e-5)
    assert shares(weights, 784).tolist() == [520, 25, 231, 6]
    assert shares(weights, 784, exact=True).tolist() == [521, 26, 231, 6]
    assert shares(jnp.ones(4), 12).tolist() == [3, 3, 3, 3]
    # What a cap frees goes to the others in proportion.
    assert shares(jnp.array([6.0, 2.0, 1.0, 1.0]), 100, cap=40).tolist() == [40, 30, 15, 15]
    assert float(after_merging(0.15, 24, jnp.asarray(8.0))) == pytest.approx(0.15 * 24 / 16)
    assert float(after_merging(0.9, 24, jnp.asarray(8.0))) == 1.0


def test_greedy_groups_lose_nothing():
    """Cosines 0.85, 0.85 and 0.6: the middle one joins the first, and the third opens a group of its own."""
    a, b = np.arccos(0.85), 2 * np.arccos(0.85)
    rows = [(1, 0), (np.cos(a), np.sin(a)), (np.cos(b), np.sin(b))]
    group = greedy_groups(jnp.asarray(rows, jnp.float32), jnp.ones(3, bool), 0.8)
    assert group.tolist() == [0, 0, 2]
    found, _ = reducers.build({"name": "greedy", "budget": 3, "threshold": 0.8}).reduce(tokens(*rows))
    assert found.mask[0].tolist() == [True, True, False] and found.size[0].tolist() == [2, 1, 0]
    one, _ = reducers.build({"name": "greedy", "budget": 3, "threshold": -1.0}).reduce(tokens(*rows))
    np.testing.assert_allclose(one.x[0, 0], np.mean(rows, axis=0), atol=1e-6)
    assert one.mask[0].sum() == 1


def test_a_question_without_preferences_averages_windows():
    rng = np.random.default_rng(0)
    clip = of_grid(jnp.asarray(rng.normal(size=(1, 4, 6, 6, 5)), jnp.float32))
    plain, _ = WindowPooling((2, 3, 3)).reduce(clip)
    told = {"joint": jnp.ones((1, 144, 3)), "question": jnp.ones((1, 3))}
    found, _ = reducers.build({"name": "question_pooling"}).reduce(clip, told)
    np.testing.assert_allclose(found.x, plain.x, atol=1e-5)
    # A token that alone fits the question is the window.
    joint = jnp.asarray(rng.normal(size=(1, 144, 3)) * 0.01, jnp.float32).at[0, 0].set(jnp.array([1.0, 0, 0]))
    joint = joint.at[0, 1:, 0].set(-1.0)
    sharp, _ = reducers.build({"name": "question_pooling"}).reduce(
        clip, {"joint": joint, "question": jnp.array([[1.0, 0, 0]])}
    )
    np.testing.assert_allclose(sharp.x[0, 0], clip.x[0, 0], atol=1e-5)


def test_nests_of_pooling():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 24, 24, 3)), jnp.float32)
    fine = of_grid(x)
    half, _ = reducers.build({"name": "grid", "side": 12}).reduce(fine)
    for side in (6, 3, 1):
        direct, _ = reducers.build({"name": "grid", "side": side}).reduce(fine)
        nested, _ = reducers.build({"name": "grid", "side": side}).reduce(half)
        np.testing.assert_allclose(nested.x, direct.x, atol=1e-5)
        np.testing.assert_allclose(nested.size, direct.size, rtol=1e-5)
        np.testing.assert_allclose(direct.x.mean(1), fine.x.mean(1), atol=1e-5)


def test_a_grid_and_the_mean_of_every_frame():
    x = jnp.arange(2 * 16, dtype=jnp.float32).reshape(1, 2, 4, 4, 1)
    found, said = reducers.build({"name": "grid_and_mean", "side": 2}).reduce(of_grid(x))
    # Of the first frame 0 … 15 the mean is 7.5, and the quarters are 2.5, 4.5, 10.5 and 12.5.
    frame = np.array([7.5, 2.5, 4.5, 10.5, 12.5])
    np.testing.assert_allclose(found.x[0, :, 0], np.concatenate([frame, frame + 16]))
    # The mean and the quarters share the mass of a frame, 16.
    np.testing.assert_allclose(found.size[0], [8, 2, 2, 2, 2] * 2)
    np.testing.assert_allclose(found.position[0, 5:7], [[1, 1.5, 1.5], [1, 0.5, 0.5]])
    assert found.source[0].reshape(2, 4, 4)[:, ::2, ::2].tolist() == [[[1, 2], [3, 4]], [[6, 7], [8, 9]]]
    assert float(said["asked"]) == 10 and found.grid is None


def test_a_bank_of_three():
    rows = [(1, 0), (0, 1), (0.1, 1), (1, 0.1), (-1, 0)]
    found, _ = reducers.build({"name": "bank", "budget": 3}).reduce(tokens(*rows))
    np.testing.assert_allclose(found.x[0], [(1, 0), (1, 0.1), (-1, 0)], atol=1e-6)
    # The newest is always there, and equal ones do no harm.
    same, _ = reducers.build({"name": "bank", "budget": 3}).reduce(tokens(*[(1, 0)] * 9))
    assert same.mask.all() and same.source[0, -1] == 2
    merged, _ = reducers.build({"name": "bank", "budget": 3, "evict": "merge"}).reduce(tokens(*rows))
    assert merged.size[0].tolist() == [1, 3, 1] and merged.source[0].tolist() == [0, 1, 1, 1, 2]


def test_evenly_spaced_places():
    assert evenly(300, 8).tolist() == [0, 43, 85, 128, 171, 214, 256, 299]
    assert evenly(9, 1).tolist() == [4] and evenly(4, 9).tolist() == [0, 1, 2, 3]
    index = evenly(50 * 576, 2880)
    assert index[:2].tolist() == [0, 10] and index[-1] == 28_799 and (np.diff(index) > 0).all()
    # The step of 10.003 visits every column of a grid that is 24 wide.
    assert set(index % 24) == set(range(24))


def test_thumbnails_are_frames_side_by_side():
    x = np.arange(4, dtype=np.float32)[None, :, None, None, None] * np.ones((1, 4, 4, 4, 1), np.float32)
    found, said = reducers.build({"name": "thumbnails", "picks": 4, "tiles": (2, 2)}).reduce(of_grid(jnp.asarray(x)))
    picture = found.x[0, 4:, 0].reshape(4, 4)
    np.testing.assert_array_equal(picture, np.kron([[0, 1], [2, 3]], np.ones((2, 2))))
    assert float(said["asked"]) == 4 + 16


def test_a_region_lies_around_what_is_asked_for():
    clip = of_grid(jnp.asarray(np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6, 1)))
    reducer = reducers.build({"name": "region", "share": 0.25})
    for row, column, corner in ((4, 4, (3, 3)), (0, 0, (0, 0)), (2, 3, (1, 2))):
        score = -((np.arange(36) // 6 - row) ** 2 + (np.arange(36) % 6 - column) ** 2)
        found, _ = reducer.reduce(clip, {"score": jnp.asarray(score, jnp.float32)[None]})
        inside = found.x[0, :, 0].reshape(3, 3)
        np.testing.assert_array_equal(
            inside, np.arange(36).reshape(6, 6)[corner[0] : corner[0] + 3, corner[1] : corner[1] + 3]
        )


def test_key_frames_are_cuts_or_come_when_a_group_is_long():
    reducer = KeyFrames(100, longest=4)
    assert np.flatnonzero(reducer.opened(jnp.zeros(10))).tolist() == [0, 4, 8]
    change = jnp.zeros(10).at[6].set(1.0)
    assert np.flatnonzero(reducer.opened(change)).tolist() == [0, 4, 6]
    clip = of_grid(jnp.asarray(np.random.default_rng(0).normal(size=(1, 10, 4, 4, 2)), jnp.float32))
    found, said = reducers.build({"name": "key_frames", "budget": 64, "longest": 4}).reduce(
        clip, {"change": change[None]}
    )
    # Two of the three have room: 10 · 4 + 2 · 12 = 64.
    assert int(found.mask.sum()) == 64 and float(said["key_frames"]) == 2.0
    with pytest.raises(UserError, match="10 frames of 2×2 tokens do not fit a budget of 39"):
        reducers.build({"name": "key_frames", "budget": 39}).reduce(clip, {"change": change[None]})


def test_clips_cost_as_much_as_frames():
    """A still stretch stays a frame, a moving one that is relevant grows."""
    rng = np.random.default_rng(0)
    features = np.tile([[1.0, 0, 0, 0]], (16, 1))
    features[8:12, 1:] = 3.0 * rng.normal(size=(4, 3))  # moving
    question = np.array([1.0, 0, 0, 0])
    clip = of_grid(jnp.asarray(rng.normal(size=(1, 16, 4, 4, 2)), jnp.float32))
    given = {"frames": jnp.asarray(features, jnp.float32)[None], "question": jnp.asarray(question, jnp.float32)[None]}
    reducer = reducers.build({"name": "clips", "anchors": 3, "pairs": ((1, 1), (4, 2))})
    found, said = reducer.reduce(clip, given)
    assert int(found.mask.sum()) == 16 * float(said["clips"]) <= float(said["asked"]) == 48
    still = {"frames": jnp.ones((1, 16, 4)), "question": jnp.ones((1, 4))}
    starts, pairs = reducer.chosen(still["frames"][0], still["question"][0])
    assert pairs.tolist() == [0, 0, 0]
    alone = reducers.build({"name": "clips", "anchors": 3, "pairs": ((1, 1),)})
    plain, _ = alone.reduce(clip, given)
    starts, _ = alone.chosen(given["frames"][0], given["question"][0])
    expected = np.concatenate([np.asarray(clip.x[0].reshape(16, 16, 2)[t]) for t in sorted(starts.tolist())])
    np.testing.assert_allclose(plain.x[0], expected, atol=1e-6)


def test_divergences_of_distributions():
    rng = np.random.default_rng(0)
    a, b = (jax.nn.softmax(jnp.asarray(rng.normal(size=5))) for _ in range(2))
    mean = (a + b) / 2
    expected = 0.5 * np.sum(a * np.log(a / mean)) + 0.5 * np.sum(b * np.log(b / mean))
    assert float(jensen_shannon(a, b)) == pytest.approx(float(expected), rel=1e-5)
    assert float(jensen_shannon(b, a)) == pytest.approx(float(expected), rel=1e-5)
    assert float(jensen_shannon(a, a)) == 0.0
    apart = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    assert float(jensen_shannon(*apart)) == pytest.approx(np.log(2))


def test_chains_follow_scores_and_refuse_what_is_gone():
    chain = reducers.build_chain(
        [{"name": "frames", "frames": 2}, {"name": "tokens", "budget": 3, "rule": "score"}], ("score",)
    )
    clip = grid_of([[0, 1], [2, 3], [4, 5], [6, 7]])
    score = jnp.arange(8.0)[None].at[0, 0].set(99.0)
    found, said = chain.reduce(clip, {"score": score})
    assert found.x[0, :, 0].tolist() == [0, 6, 7] and float(said["lost"]) == 5
    assert found.source[0].tolist() == [0, -1, -1, -1, -1, -1, 1, 2]
    with pytest.raises(
        UserError,
        match="WindowPooling needs the whole grid of tokens, which is gone behind TokenSelection; put it first",
    ):
        reducers.build_chain([{"name": "tokens", "budget": 3}, {"name": "windows"}], ())
    with pytest.raises(UserError, match="QuestionPooling needs 'joint', and there is score here; leave it out"):
        reducers.build_chain([{"name": "question_pooling"}], ("score",))


def test_tubes_of_a_label_map_are_windows_over_time():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 2, 4)), jnp.float32)
    found, _ = WindowPooling((0, 1, 1)).reduce(of_grid(x))
    np.testing.assert_allclose(found.x[0], x[0].mean(0).reshape(4, 4), atol=1e-6)
