"""The published aggregation of VBench."""

import pytest

from videogen.errors import UserError
from videogen.metrics.vbench import DIMENSIONS, normalised, totals

BEST = {name: dimension.high for name, dimension in DIMENSIONS.items()}
WORST = {name: dimension.low for name, dimension in DIMENSIONS.items()}


def test_the_ends_are_one_and_zero():
    assert totals(BEST) == {"quality": 1, "semantic": 1, "total": 1, "missing": [], "outside": []}
    assert totals(WORST)["total"] == pytest.approx(0)


def test_weights_are_the_published_ones():
    assert len(DIMENSIONS) == 16
    assert totals(WORST | {"dynamic_degree": 1.0})["quality"] == pytest.approx(0.5 / 6.5)
    assert totals(WORST | {"dynamic_degree": 1.0})["total"] == pytest.approx(0.8 * 0.5 / 6.5)
    assert totals(WORST | {"scene": 0.4111})["total"] == pytest.approx(0.2 * 0.5 / 9)


def test_a_missing_dimension_means_no_total():
    values = {name: value for name, value in BEST.items() if name != "motion_smoothness"}
    assert totals(values) == {"semantic": 1, "missing": ["motion_smoothness"], "outside": []}
    assert normalised("motion_smoothness", 0.0) == pytest.approx(-2.42, abs=0.005)


def test_values_outside_the_ends_are_kept_and_named():
    found = totals(BEST | {"subject_consistency": 0.1})
    assert found["outside"] == ["subject_consistency"]
    assert normalised("subject_consistency", 0.1) == pytest.approx(-0.054, abs=5e-4)
    assert found["quality"] == pytest.approx((5.5 - 0.0541) / 6.5, abs=1e-4)
    with pytest.raises(UserError, match="colour"):
        totals({"colour": 1.0})
