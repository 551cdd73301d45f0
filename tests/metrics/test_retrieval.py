"""Recall at K: values of ties, of rows that are not finite and of caption rules, and the laws."""

import numpy as np
import pytest

from videogen.errors import UserError
from videogen.metrics.retrieval import Places, by_text, by_video, dual_softmax

OWN = np.eye(3, dtype=bool)
CAPTIONS = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
OWNERS = [0, 0, 1]


def at_one(places: Places) -> float:
    return places.measured()["recall_at_1"]


def random_scores(queries: int, items: int, seed: int = 0) -> np.ndarray:
    # Few values, so that there are ties.
    return np.random.default_rng(seed).integers(0, 4, (queries, items)) / 4


def test_a_tie_counts_as_its_chance():
    assert at_one(Places.of(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]]), OWN)) == pytest.approx(100 * 2.5 / 3)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_equal_scores_are_chance(size):
    found = Places.of(np.full((size, size), 0.3), np.eye(size, dtype=bool)).measured()
    assert found["recall_at_1"] == pytest.approx(100 / size)
    assert found["recall_at_5"] == pytest.approx(100 * min(5 / size, 1))
    assert found["median_rank"] == pytest.approx((size + 1) / 2)


def test_rows_that_are_not_finite_are_misses_and_named():
    scores = np.eye(3)
    scores[1, 2] = np.nan
    places = Places.of(scores, OWN)
    found = places.measured()
    assert found["recall_at_1"] == pytest.approx(200 / 3) and found["not_finite"] == 1 and places.broken == [1]
    assert places.ranks().tolist() == [1, 3, 1]
    scores[1, 2] = np.inf
    assert at_one(Places.of(scores, OWN)) == pytest.approx(200 / 3)


def test_the_caption_rule_decides():
    assert at_one(by_text(CAPTIONS, OWNERS)) == pytest.approx(200 / 3)
    assert at_one(by_text(CAPTIONS, OWNERS, "first")) == pytest.approx(100)
    assert at_one(by_video(CAPTIONS, OWNERS)) == pytest.approx(50)
    assert by_text(CAPTIONS, OWNERS, "first").measured()["queries"] == 2
    with pytest.raises(UserError, match="unknown caption rule 'frist'.*first"):
        by_text(CAPTIONS, OWNERS, "frist")


def test_the_first_caption_is_the_first_in_the_order_of_the_captions():
    scores = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    # Captions of v1, v0, v1: the last one alone is wrong, and it is not its video's first.
    assert at_one(by_text(scores, [1, 0, 1], "first")) == 100
    assert at_one(by_text(scores, [1, 0, 1])) == pytest.approx(200 / 3)


def test_several_right_items_are_found_by_the_best():
    right = np.array([[True, True, False, False]])
    # Four tied items, two right: the first two hold a right one but in 1 of 6 cases.
    tied = Places.of(np.ones((1, 4)), right)
    assert tied.hits(1)[0] == pytest.approx(1 / 2) and tied.hits(2)[0] == pytest.approx(5 / 6)
    assert tied.hits(3)[0] == 1 and tied.ranks()[0] == pytest.approx(5 / 3)
    apart = Places.of(np.array([[0.2, 0.9, 0.5, 1.0]]), right)
    assert apart.hits(1)[0] == 0 and apart.hits(2)[0] == 1 and apart.ranks()[0] == 2


def test_recall_is_the_mean_over_all_orders_of_ties():
    scores, right = random_scores(1, 5, 3), np.zeros((1, 5), bool)
    right[0, [1, 4]] = True
    rng, hits = np.random.default_rng(0), np.zeros(3)
    for _ in range(4000):
        order = np.argsort(-(scores[0] + 1e-6 * rng.random(5)))
        hits += [right[0, order[:k]].any() for k in (1, 2, 3)]
    expected = [Places.of(scores, right).hits(k)[0] for k in (1, 2, 3)]
    np.testing.assert_allclose(hits / 4000, expected, atol=0.03)


def test_joint_permutation_changes_nothing():
    scores, order = random_scores(12, 12), np.random.default_rng(1).permutation(12)
    expected = Places.of(scores, np.eye(12, dtype=bool)).measured()
    assert Places.of(scores[order][:, order], np.eye(12, dtype=bool)).measured() == pytest.approx(expected)
    # Items alone, too, where their owners go with them.
    owners = np.arange(12) % 5
    texts = random_scores(12, 5)
    columns = np.random.default_rng(2).permutation(5)
    moved = by_text(texts[:, columns], np.argsort(columns)[owners]).measured()
    assert moved == pytest.approx(by_text(texts, owners).measured())


def test_recall_grows_with_k_and_the_sum_is_the_sum():
    places = Places.of(random_scores(30, 30), np.eye(30, dtype=bool))
    recalls = [places.hits(k).mean() for k in range(1, 31)]
    assert np.all(np.diff(recalls) >= -1e-12) and recalls[-1] == pytest.approx(1)
    found = places.measured()
    assert found["recall_sum"] == pytest.approx(sum(found[f"recall_at_{k}"] for k in (1, 5, 10)))


def test_dual_softmax_with_a_uniform_prior_is_plain_ranking():
    scores = np.broadcast_to(np.array([0.3, 0.9, 0.1]), (4, 3))
    np.testing.assert_allclose(dual_softmax(scores, 50.0), scores, rtol=1e-12)
    any_scores = np.random.default_rng(0).random((4, 3))
    np.testing.assert_allclose(dual_softmax(any_scores, 0.0), any_scores, rtol=1e-12)


def test_dual_softmax_takes_an_item_from_the_queries_it_suits_less():
    # Item 0 suits everybody and query 0 best: query 1 is left with item 1.
    scores = np.array([[0.9, 0.1], [0.6, 0.5]])
    own = np.eye(2, dtype=bool)
    assert at_one(Places.of(scores, own)) == 50 and at_one(Places.of(dual_softmax(scores, 10.0), own)) == 100
    prior = 2 / (1 + np.exp(-10 * 0.3))
    assert dual_softmax(scores, 10.0)[0, 0] == pytest.approx(0.9 * prior)
    broken = np.vstack([scores, [np.nan, 1.0]])
    np.testing.assert_allclose(dual_softmax(broken, 10.0)[:2], dual_softmax(scores, 10.0))


def test_wrong_shapes_are_one_line():
    with pytest.raises(UserError, match="query 1 has no right item"):
        Places.of(np.eye(2), np.array([[True, False], [False, False]]))
    with pytest.raises(UserError, match=r"both \[queries, items\]"):
        Places.of(np.eye(2), OWN)
    with pytest.raises(UserError, match="numbered from 0"):
        by_text(CAPTIONS, [0, 0, 2])
