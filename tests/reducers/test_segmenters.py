"""Segments by every rule, budgets that are shared, and when a stream speaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.reducers.budgets import after_merging, ladder_place, of_each_frame, shares
from videogen.reducers.segmenters import RULES, Segmenter, agreed, chunked, transitions
from videogen.reducers.time import cut

RNG = np.random.default_rng(0)
SETTINGS = {"lowest": {"most": 1}, "distribution": {"threshold": 0.2}}


def shots(*lengths, places=3, width=6):
    """Shots that stand still, each of other features."""
    rows = [np.repeat(6.0 * np.eye(width)[i][None, None], length, 0) for i, length in enumerate(lengths)]
    return jnp.asarray(np.repeat(np.concatenate(rows), places, axis=1), jnp.float32)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "fixed"])
def test_a_still_video_has_no_cut_and_a_hard_one_is_found(rule):
    segmenter = jax.jit(Segmenter(rule=rule, **SETTINGS.get(rule, {})))
    assert segmenter(shots(9)).tolist() == [0] * 9
    assert segmenter(shots(4, 5)).tolist() == [0] * 4 + [1] * 5


@pytest.mark.parametrize("rule", RULES)
def test_numbers_of_segments_rise_by_at_most_one(rule):
    segmenter = jax.jit(Segmenter(rule=rule, threshold=0.3, longest=5))
    segment = np.asarray(segmenter(jnp.asarray(RNG.normal(size=(9, 3, 6)))))
    assert segment[0] == 0 and set(np.diff(segment)) <= {0, 1}
    assert np.bincount(segment).max() <= 5


def test_fixed_segments_and_long_ones_that_are_cut_again():
    assert jax.jit(Segmenter(rule="fixed", length=4))(shots(10)).tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert chunked(jnp.array([0, 0, 0, 0, 0, 1, 1, 1, 2]), 2).tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 5]
    found = jax.jit(Segmenter(rule="lowest", most=2, longest=8))(shots(10, 3, 9))
    assert found.tolist() == [0] * 8 + [1] * 2 + [2] * 3 + [3] * 8 + [4]
    with pytest.raises(UserError, match="unknown rule of Segmenter 'deep'"):
        Segmenter(rule="deep")


def test_the_least_alike_are_cut_and_the_strongest_stay():
    alike = jnp.array([0.9, 0.2, 0.8, 0.1, 0.3])
    assert cut(alike, "lowest", 24).tolist() == [False, True, True, True, True]
    assert cut(alike, "lowest", 2).tolist() == [False, True, False, True, False]
    deep = jnp.array([1.0, 0.1, 1.0, 0.2, 1.0, 0.3, 1.0])
    assert np.flatnonzero(cut(deep, "depth", 2)).tolist() == [1, 3]


def test_rules_may_vote():
    votes = [jnp.array(v, bool) for v in ([1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0])]
    assert agreed(votes).tolist() == [True, True, True, False]
    assert agreed(votes, 3).tolist() == [False] * 4


def test_shares_are_exact_monotone_and_within_their_bounds():
    settings = ({}, {"exact": True}, {"cap": 120, "exact": True})
    share = jax.jit(lambda weights: [shares(weights, 784, **one) for one in settings])
    for seed in range(20):
        weights = jnp.asarray(np.random.default_rng(seed).random(9) ** 2, jnp.float32)
        floor, exact, capped = map(np.asarray, share(weights))
        assert 784 - 9 < int(floor.sum()) <= 784 and int(exact.sum()) == 784
        assert (exact - floor).max() <= 1
        order = np.argsort(weights)
        assert (np.diff(floor[order]) >= 0).all()
        assert capped.max() <= 120 and (capped[order][:3] >= floor[order][:3]).all()
    sides = np.asarray(ladder_place(jnp.asarray(np.sort(floor)), (0, 2, 4, 7, 10, 14)))
    assert (np.diff(sides) >= 0).all()
    assert len(set(shares(jnp.full(7, 0.3), 100).tolist())) == 1
    # Where the cap leaves room for all, nothing is lost.
    assert int(shares(jnp.array([6.0, 2.0, 1.0, 1.0]), 100, cap=40, exact=True).sum()) == 100


def test_a_share_of_what_is_left_is_the_share_of_all():
    """0.15 of 1,000 tokens, of which merging saved 400: a quarter of the other 600."""
    assert float(after_merging(0.15, 1000, jnp.asarray(400.0))) == pytest.approx(0.25)
    assert float(after_merging(0.15, 1000, jnp.asarray(0.0))) == pytest.approx(0.15)
    assert [of_each_frame(t) for t in (16, 18, 64, 1000)] == [36, 32, 9, 1]


def test_a_still_stream_never_speaks_and_a_cut_makes_it_speak_once():
    still = np.full(60, 0.9, np.float32)
    still[0] = 0.0
    speaks = jax.jit(transitions)
    assert not speaks(still).any()
    for at in (2, 7, 40):
        dropped = np.where(np.arange(60) == at, 0.0, still).astype(np.float32)
        assert np.flatnonzero(speaks(dropped)).tolist() == [at + 1]
    noisy = (0.9 + 0.02 * RNG.normal(size=60)).astype(np.float32)
    noisy[30] = 0.1
    assert 31 in np.flatnonzero(speaks(noisy)).tolist()


def test_a_stream_speaks_by_what_has_been():
    dropped = jnp.asarray(RNG.random(40), jnp.float32)
    speaks, short = jax.jit(transitions), jax.jit(lambda dropped: transitions(dropped, 8))
    np.testing.assert_array_equal(speaks(dropped[:25]), speaks(dropped)[:25])
    # Frames that are long past count no more.
    far = dropped.at[1:4].set(0.0)
    np.testing.assert_array_equal(short(far)[13:], short(dropped)[13:])
