"""Cross-entropy of pixels and soft Dice in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.losses.masks import pixel_cross_entropy, soft_dice

WANTED = jnp.array([[[True, True, False, False]]])


def test_cross_entropy_of_pixels():
    assert float(pixel_cross_entropy(jnp.zeros((1, 1, 4)), WANTED)[0]) == pytest.approx(np.log(2))
    sure = jnp.where(WANTED, 50.0, -50.0)
    assert float(pixel_cross_entropy(sure, WANTED)[0]) == pytest.approx(0, abs=1e-6)
    assert float(pixel_cross_entropy(-sure, WANTED)[0]) == pytest.approx(50, rel=1e-5)
    logits = jnp.array([[[np.log(3.0), 0.0, 0.0, -np.log(3.0)]]])
    expected = (2 * np.log(4 / 3) + 2 * np.log(2)) / 4
    assert float(pixel_cross_entropy(logits, WANTED)[0]) == pytest.approx(expected, rel=1e-5)


def test_dice():
    sure = jnp.where(WANTED, 50.0, -50.0)
    assert float(soft_dice(sure, WANTED)[0]) == pytest.approx(0, abs=1e-6)
    # Nothing found of two pixels: 1 - 1 / 3.
    assert float(soft_dice(jnp.full((1, 1, 4), -50.0), WANTED)[0]) == pytest.approx(2 / 3, rel=1e-5)
    # Halves everywhere: 1 - (2 · 1 + 1) / (2 + 2 + 1).
    assert float(soft_dice(jnp.zeros((1, 1, 4)), WANTED)[0]) == pytest.approx(0.4, rel=1e-5)
    none = jnp.zeros((1, 1, 4), bool)
    assert float(soft_dice(jnp.full((1, 1, 4), -50.0), none)[0]) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice(jnp.full((1, 1, 4), 50.0), none)[0]) == pytest.approx(0.8, rel=1e-5)


def test_masks_are_apart_and_have_gradients():
    logits = jax.random.normal(jax.random.key(0), (3, 2, 4, 5))
    wanted = jax.random.bernoulli(jax.random.key(1), 0.3, logits.shape)
    for loss in (pixel_cross_entropy, soft_dice):
        found = loss(logits, wanted)
        assert found.shape == (3, 2)
        np.testing.assert_allclose(found[1, 0], loss(logits[1, 0], wanted[1, 0]), rtol=1e-5)
        slope = jax.grad(lambda x, loss=loss: jnp.sum(loss(x, wanted)))(logits)
        assert bool(((slope < 0) == wanted).all())
