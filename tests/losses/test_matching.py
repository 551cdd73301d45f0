"""Matching: which texts are negatives, and what even scores cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen import losses
from videogen.losses import Outputs, Pass, matching_loss, negatives, numbered
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape

KEYS = jax.random.split(jax.random.key(0), 6)
VIDEOS = jnp.array([0, 0, 1, 2, 3, 4])
CAPTIONS = jnp.array([[5, 6], [7, 8], [5, 6], [1, 2], [3, 3], [1, 2]])


def test_identical_captions_share_a_number():
    assert numbered(CAPTIONS).tolist() == [0, 1, 0, 3, 4, 3]


def test_a_negative_has_another_video_and_another_caption():
    found, seen = numbered(CAPTIONS), np.zeros((6, 6), bool)
    for seed in range(30):
        index, there = negatives(jax.random.split(jax.random.key(seed), 6), VIDEOS, found, 3)
        assert there.all() and all(len(set(row)) == 3 for row in index.tolist())
        for i, row in enumerate(index.tolist()):
            seen[i, row] = True
    allowed = (VIDEOS[:, None] != VIDEOS[None]) & (found[:, None] != found[None])
    np.testing.assert_array_equal(seen, allowed)


def test_a_batch_without_enough_others_says_so():
    index, there = negatives(KEYS[:3], jnp.array([0, 0, 1]), jnp.array([0, 1, 2]), 3)
    assert there.sum(1).tolist() == [1, 1, 2] and index.shape == (3, 3)
    assert index[0, 0] == 2 and sorted(index[2, :2].tolist()) == [0, 1]
    _, there = negatives(KEYS[:2], jnp.array([4, 4]), jnp.array([0, 1]), 3)
    alone = jnp.concatenate([jnp.ones((2, 1), bool), there], axis=1)
    assert not there.any() and float(matching_loss(jnp.ones((2, 4)), jnp.zeros(2, int), alone)) == 0.0


@pytest.mark.parametrize("candidates", [4, 2])
def test_even_scores_cost_the_logarithm_of_their_number(candidates):
    scores = jnp.full((3, candidates), 7.5)
    for target in range(candidates):
        loss = matching_loss(scores, jnp.full(3, target), temperature=0.05)
        assert float(loss) == pytest.approx(np.log(candidates), rel=1e-5)


def test_missing_candidates_have_no_part():
    there = jnp.array([[True, True, False, True], [True, True, True, True], [True, False, False, False]])
    scores = jnp.where(there, 0.0, 50.0)
    loss = matching_loss(scores, jnp.zeros(3, int), there)
    # The third example has no negative and does not count.
    assert float(loss) == pytest.approx((np.log(3) + np.log(4)) / 2, rel=1e-6)


def test_scores_are_divided_by_the_temperature():
    scores = jnp.array([[0.1, 0.0], [0.0, 0.3]])
    expected = np.mean(np.log1p(np.exp([-0.1 / 0.05, 0.3 / 0.05])))
    assert float(matching_loss(scores, jnp.zeros(2, int), temperature=0.05)) == pytest.approx(expected, rel=1e-5)


def test_the_term_is_the_loss_of_its_pass():
    setting = losses.Setting(VideoShape(1, 16, 16), tokens=1, code_width=1, steps=10)
    terms = losses.build({"match": {"name": "matching", "weight": 1.0, "temperature": 0.05}}, setting)
    scores = jnp.array([[0.3, 0.1, 0.2, 0.0], [0.0, 0.1, 0.0, 0.0]])
    outputs = Outputs({"matching": Pass(scores, jnp.zeros(2, int))})
    total, metrics = losses.combine(terms, {}, outputs, jax.random.key(0), jnp.zeros((), int), MicroBatch())
    assert float(total) == pytest.approx(float(matching_loss(scores, jnp.zeros(2, int), temperature=0.05)))
    assert float(metrics["match_accuracy"]) == 0.5
