"""Windows that overlap: where they stand, and what they give."""

import jax.numpy as jnp
import numpy as np
import pytest

from videogen.diffusion import over_windows, window_starts
from videogen.errors import UserError


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (24, (0,)),
        (10, (0,)),
        (25, (0, 1)),
        (44, (0, 20)),
        (45, (0, 20, 21)),
        (64, (0, 20, 40)),
        (100, (0, 20, 40, 60, 76)),
    ],
)
def test_windows_of_24_that_share_4_cover_every_frame(length, starts):
    assert window_starts(length, 24, 4) == starts
    if length >= 24:
        covered = np.zeros(length, int)
        for start in starts:
            covered[start : start + 24] += 1
        assert covered.min() >= 1 and len(covered) == length


@pytest.mark.parametrize("length", [3, 6, 7, 11, 14])
def test_a_constant_stays_constant_over_overlaps(length):
    """Property 9, also where the lengths do not divide."""
    noisy, along = jnp.full((2, length, 1, 1, 3), 0.7), jnp.full((2, length, 2), 0.1)
    out = over_windows(lambda x, a: 2 * x + a.mean(-1)[..., None, None, None], noisy, along, 6, 2)
    np.testing.assert_allclose(out, 1.5, rtol=1e-6)


def test_where_two_windows_overlap_it_is_their_mean():
    """A network that gives the mean of its window: frames 0–5 and 4–9 of the numbers 0 … 9."""
    noisy = jnp.arange(10.0).reshape(1, 10, 1, 1, 1)
    out = over_windows(lambda x, _: jnp.full_like(x, x.mean()), noisy, (), 6, 2)
    np.testing.assert_allclose(out.ravel(), [2.5] * 4 + [4.5] * 2 + [6.5] * 4)


@pytest.mark.parametrize("overlap", [6, 7, -1])
def test_windows_that_go_nowhere_are_refused(overlap):
    with pytest.raises(UserError, match="overlap by 0 to 5"):
        window_starts(10, 6, overlap)
