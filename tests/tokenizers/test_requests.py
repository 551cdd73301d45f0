"""Errors that are asked for: their grid, and how those of the estimating pass drift (KARL, checkable 4 and 8)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.tokenizers.requests import BINS, DRIFT, RequestedErrors, bin_of, easier, harder


def test_errors_are_rounded_up_and_clamped():
    assert list(BINS) == sorted(set(BINS)) and len(BINS) == 19 and (BINS[0], BINS[-1]) == (0.005, 0.38)
    assert bin_of(jnp.asarray(BINS, jnp.float32)).tolist() == list(range(len(BINS)))
    for error, expected in ((1e-6, 0.005), (0.0051, 0.01), (0.071, 0.09), (0.0899, 0.09), (0.33, 0.38), (0.39, 0.38)):
        assert BINS[int(bin_of(error))] == expected, error
    assert BINS[int(bin_of(1e9))] == 0.38


def test_a_smaller_or_a_larger_error_is_drawn_evenly():
    keys = jax.random.split(jax.random.key(0), 6000)
    below, above = (np.asarray(function(jnp.full(6000, 3), keys)) for function in (harder, easier))
    assert np.bincount(below, minlength=3) / 6000 == pytest.approx([1 / 3] * 3, abs=0.03)
    shares = np.bincount(above, minlength=19) / 6000
    assert shares[:4].sum() == 0 and shares[4:] == pytest.approx([1 / 15] * 15, abs=0.02)
    last = len(BINS) - 1
    assert (harder(jnp.zeros(9, int), keys[:9]) == 0).all() and (easier(jnp.full(9, last), keys[:9]) == last).all()


def test_the_first_requests_are_near_lossless():
    requested = RequestedErrors()
    assert requested.shares.get_value().tolist() == pytest.approx([0.2] * 5 + [0.0] * 14)
    drawn = np.asarray(requested.draw(jax.random.split(jax.random.key(0), 5000)))
    assert np.bincount(drawn, minlength=19) / 5000 == pytest.approx([0.2] * 5 + [0.0] * 14, abs=0.02)


def test_what_is_reached_is_asked_for_less_and_less():
    """After n steps with a smallest error of 0.02 the bins from there on have 0.99ⁿ of their share to that below."""
    requested = RequestedErrors()
    for count in (1, 2, 3):
        requested.update(jnp.asarray(0.02))
        shares = np.asarray(requested.shares.get_value())
        assert shares.sum() == pytest.approx(1)
        assert shares[2:].sum() / shares[:2].sum() == pytest.approx(1.5 * DRIFT**count)
    for _ in range(197):
        requested.update(jnp.asarray(0.02))
    shares = np.asarray(requested.shares.get_value())
    assert shares[2:].sum() / shares[:2].sum() == pytest.approx(1.5 * 0.99**200, rel=1e-3)
    # An error that is in no bin drawn, and one below all of them, change nothing.
    for smallest in (0.2, 0.001):
        requested.update(jnp.asarray(smallest))
        np.testing.assert_allclose(requested.shares.get_value(), shares, rtol=1e-6)
