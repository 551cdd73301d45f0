"""Similarities of texts and embeddings, bins of size, stability and rank correlations, by values worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from videogen.errors import UserError
from videogen.metrics.recognition import (
    binned,
    cosine,
    edit_distance,
    rank_correlation,
    temporal_stability,
    text_similarity,
)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("abc", "abc", 1),
        ("abc", "abd", 2 / 3),
        ("", "", 1),
        ("abc", "", 0),
        ("Abc", "abc", 2 / 3),
        ("kitten", "sitting", 4 / 7),
    ],
)
def test_text_similarity(a, b, expected):
    assert text_similarity(a, b) == pytest.approx(expected)
    assert text_similarity(b, a) == text_similarity(a, b)


def test_edit_distance_counts_each_kind_of_change():
    assert [edit_distance("abcd", other) for other in ("abd", "abxcd", "abxd", "badc")] == [1, 1, 1, 3]


def test_cosine_ignores_the_scale_and_is_at_most_one():
    a, b = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32)
    assert cosine(a, b) == pytest.approx(cosine(1e3 * a, 1e-3 * b), abs=1e-7)
    assert cosine(a, a) == 1 and cosine(a, -a) == -1 and cosine([1, 0], [1, 1]) == pytest.approx(0.5**0.5)
    with pytest.raises(UserError, match="zero or not finite"):
        cosine(a, 0 * b)
    with pytest.raises(UserError, match="zero or not finite"):
        cosine(a, b * np.nan)


EDGES = (0.02, 0.03, 0.04, 1)


def test_an_edge_belongs_to_the_bin_above_and_what_is_smaller_is_dropped():
    ratios = [0.0199, 0.02, 0.0299, 0.03, 0.04, 0.9, 1.0]
    found = binned(ratios, {"x": range(7)}, EDGES)
    assert [b.count for b in found.bins] == [2, 1, 2] and found.ignored == 2
    assert [b.means["x"] for b in found.bins] == [1.5, 3, 4.5]


def test_an_empty_bin_is_missing_and_left_out_of_the_mean():
    found = binned([0.025, 0.5], {"x": [0.2, 0.6]}, EDGES)
    assert found.missing == ["0.03-0.04"] and found.mean("x") == pytest.approx(0.4)
    described = found.describe()
    assert described["missing_bins"] == ["0.03-0.04"] and described["bins"]["0.03-0.04"] == {"count": 0}
    assert described["x"] == pytest.approx(0.4)
    nothing = binned([], {"x": []}, EDGES)
    assert nothing.mean("x") is None and len(nothing.missing) == 3


def test_the_mean_is_that_of_the_bins_not_of_the_instances():
    found = binned([0.025] * 9 + [0.5], {"x": [0.0] * 9 + [1.0]}, EDGES)
    assert found.mean("x") == 0.5  # of all instances it would be 0.1


def test_temporal_stability():
    assert temporal_stability([0.7, 0.7, 0.7]) == pytest.approx(1)
    assert temporal_stability([1, 0]) == 0.5


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 5, (2, 12))
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1], [1, 2]) is None and rank_correlation([], []) is None
    with pytest.raises(UserError, match="two values for each"):
        rank_correlation([1], [1, 2])
