"""Ids as digits: bijections with known values."""

import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.heads.digits import bits, factor, merge, split


def test_factors_are_digits():
    assert factor((2**18,), 2) == ((512, 512),)
    assert factor((64, 4096), 3) == ((4, 4, 4), (16, 16, 16))
    ids = jnp.array([[[5 * 512 + 7], [2**18 - 1]]])
    np.testing.assert_array_equal(split(ids, factor((2**18,), 2)), [[[5, 7], [511, 511]]])
    with pytest.raises(UserError, match="does not split into equal factors"):
        factor((1000,), 2)


def test_bits_stand_from_the_most_significant_down():
    assert bits((16, 2)) == ((2, 2, 2, 2), (2,))
    np.testing.assert_array_equal(
        split(jnp.array([[1, 1], [12, 0]]), bits((16, 2))), [[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]]
    )
    # 18 bits, lopsided: 1 and 131,072 are the last bit and the first one.
    ends = np.asarray(split(jnp.array([[1], [2**17]]), bits((2**18,))))
    assert ends[0].argmax() == 17 and ends[1].argmax() == 0 and (ends.sum(-1) == 1).all()


@pytest.mark.parametrize("bases", [factor((64, 4096), 3), factor((64, 4096), 1), bits((64, 4096))], ids=str)
def test_splitting_is_a_bijection(bases):
    every = jnp.stack([jnp.arange(4096) % 64, jnp.arange(4096)], -1)
    parts = split(every, bases)
    np.testing.assert_array_equal(merge(parts, bases), every)
    assert len(np.unique(np.asarray(parts), axis=0)) == 4096 and (parts >= 0).all()
    assert (parts < np.array([size for level in bases for size in level])).all()
