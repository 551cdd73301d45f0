"""Pixel losses are float32 means."""

import jax.numpy as jnp
import numpy as np
import pytest

from videogen.losses import l1, l2


def pair(dtype=jnp.float32):
    a, b = np.random.default_rng(0).normal(size=(2, 4, 5, 6))
    return jnp.asarray(a, dtype), jnp.asarray(b, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pixel_losses_are_float32_means_over_elements(dtype):
    a, b = pair(dtype)
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    for loss, expected in ((l2, np.mean(difference**2)), (l1, np.mean(np.abs(difference)))):
        value = loss(a, b)
        assert value.dtype == jnp.float32 and value.shape == ()
        np.testing.assert_allclose(value, expected, rtol=1e-6)
