"""Interleaved parts of a clip, and their order afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.nn.interleaving import in_parts, interleaved, rejoined


def test_32_frames_in_four_parts_of_eight_come_back_in_order():
    ids = jnp.arange(32)[None]
    parts = interleaved(ids, 4)
    assert parts.shape == (4, 8) and parts[1].tolist() == [1, 5, 9, 13, 17, 21, 25, 29]
    np.testing.assert_array_equal(rejoined(parts, 4), ids)


def test_it_is_its_own_inverse_for_batches_of_grids_and_nothing_of_one_part():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12, 2, 5)))
    for parts in (1, 2, 3, 12):
        np.testing.assert_array_equal(rejoined(interleaved(x, parts), parts), x)
    np.testing.assert_array_equal(interleaved(x, 1), x)


def test_an_encoder_sees_parts_that_span_the_clip():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 3)))

    def encode(frames):
        """Every frame and the mean of those it was seen with."""
        return jnp.stack([frames, jnp.broadcast_to(frames.mean(1, keepdims=True), frames.shape)], axis=2)

    found = in_parts(encode, x, 2)
    np.testing.assert_allclose(found[:, :, 0], x)
    for t in range(8):
        np.testing.assert_allclose(found[:, t, 1], x[:, t % 2 :: 2].mean(1), rtol=1e-6)
    np.testing.assert_array_equal(in_parts(encode, x, 1), encode(x))
    with pytest.raises(UserError, match="8 frames do not divide into 3 interleaved parts"):
        in_parts(encode, x, 3)


def test_it_works_under_jit():
    x = jnp.arange(12.0).reshape(1, 12)
    np.testing.assert_array_equal(jax.jit(lambda x: in_parts(lambda y: 2 * y, x, 3))(x), 2 * x)
