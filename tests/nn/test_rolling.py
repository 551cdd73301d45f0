"""Tokens that roll between frames: which ones, back again, and none from the future where that is asked for."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn.rolling import Rolled, rolled, unrolled

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 4, 1 + 19 + 3, 5)), jnp.float32)
"""[CLS], 19 patches, three words."""
PLACES = dict(first=1, patches=19)


def test_an_eighth_comes_from_the_frame_before_and_an_eighth_from_the_one_behind():
    y, x = np.asarray(rolled(X, **PLACES)), np.asarray(X)
    for t in range(4):
        np.testing.assert_array_equal(y[:, t, 1:3], x[:, t - 1, 1:3])  # 19 // 8 = 2
        np.testing.assert_array_equal(y[:, t, 18:20], x[:, (t + 1) % 4, 18:20])
        np.testing.assert_array_equal(y[:, t, 3:18], x[:, t, 3:18])
    np.testing.assert_array_equal(y[:, :, [0, 20, 21, 22]], x[:, :, [0, 20, 21, 22]])


def test_it_rolls_back_keeps_all_tokens_and_is_the_same_at_all_times():
    y = rolled(X, **PLACES)
    np.testing.assert_array_equal(unrolled(y, **PLACES), X)
    np.testing.assert_array_equal(np.sort(np.asarray(y), axis=None), np.sort(np.asarray(X), axis=None))
    np.testing.assert_array_equal(rolled(jnp.roll(X, 1, axis=1), **PLACES), jnp.roll(y, 1, axis=1))
    np.testing.assert_array_equal(rolled(X[:, :1], **PLACES), X[:, :1])
    np.testing.assert_array_equal(rolled(X, fold=40, **PLACES), X)


def test_196_patches_move_24_to_each_side():
    moved = rolled(jnp.arange(2.0)[None, :, None, None] * jnp.ones((1, 2, 197, 1)))[0, 0, :, 0]
    assert np.flatnonzero(moved).tolist() == [*range(1, 25), *range(173, 197)]


@pytest.mark.parametrize("repeat", [False, True])
def test_the_causal_half_knows_no_future(repeat):
    causal = dict(causal=True, repeat=repeat, **PLACES)
    y, x = np.asarray(rolled(X, **causal)), np.asarray(X)
    np.testing.assert_array_equal(y[:, 1:, 1:3], x[:, :-1, 1:3])
    np.testing.assert_array_equal(y[:, 0, 1:3], x[:, 0, 1:3] if repeat else 0 * x[:, 0, 1:3])
    np.testing.assert_array_equal(y[:, :, 3:], x[:, :, 3:])
    other = rolled(X.at[:, 2:].set(9.0), **causal)
    np.testing.assert_array_equal(other[:, :2], y[:, :2])


def test_a_block_of_frames_sees_them_rolled():
    x, block = jnp.asarray(RNG.normal(size=(6, 9, 4)), jnp.float32), nnx.Linear(4, 5, rngs=nnx.Rngs(0))
    own = Rolled(block, fold=4)
    expected = block(rolled(x.reshape(2, 3, 9, 4), fold=4).reshape(x.shape))
    np.testing.assert_allclose(own(x, frames=3), expected, atol=1e-6)
    np.testing.assert_allclose(own(x), block(x), atol=1e-6)
    with pytest.raises(UserError, match="30 patches from token 1 on"):
        rolled(X, patches=30)
