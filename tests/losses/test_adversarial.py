"""Adversarial objectives: exact values, directions, and the gradient penalty in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.losses import ADVERSARIAL, LeCam, adversarial_loss, r1_penalty

REAL, FAKE = jnp.array([2.0, 0.5, -1.0]), jnp.array([-3.0, 0.0, 0.5])


def test_hinge_values():
    hinge = adversarial_loss("hinge")
    assert float(hinge.discriminator(REAL, FAKE)) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 1.5) / 3)
    assert float(hinge.generator(FAKE)) == pytest.approx(2.5 / 3)


def test_nonsaturating_values():
    loss = adversarial_loss("nonsaturating")
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x)))  # noqa: E731
    expected = -np.log(sigmoid(REAL)).mean() - np.log(1 - sigmoid(FAKE)).mean()
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx(expected, rel=1e-5)
    assert float(loss.generator(FAKE)) == pytest.approx(-np.log(sigmoid(FAKE)).mean(), rel=1e-5)
    assert float(loss.discriminator(jnp.zeros(4), jnp.zeros(4))) == pytest.approx(2 * np.log(2))
    assert np.isfinite(loss.discriminator(jnp.full(2, -1e4), jnp.full(2, 1e4)))


def test_smoothed_labels_are_the_cross_entropy_with_their_target():
    smoothed = adversarial_loss("nonsaturating", label_smoothing=0.1)
    p = 1 / (1 + np.exp(-np.asarray(REAL)))
    real = -(0.9 * np.log(p) + 0.1 * np.log(1 - p)).mean()
    fake = float(adversarial_loss("nonsaturating").discriminator(jnp.full(1, 1e4), FAKE))
    assert float(smoothed.discriminator(REAL, FAKE)) == pytest.approx(real + fake, rel=1e-5)
    # A real example that is 90 % sure is sure enough.
    at_target = jax.grad(smoothed.discriminator)(jnp.array([np.log(9.0)]), FAKE)
    np.testing.assert_allclose(at_target, 0, atol=1e-6)
    with pytest.raises(UserError, match="'hinge' has no label_smoothing"):
        adversarial_loss("hinge", label_smoothing=0.1)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_two_sides_pull_in_opposite_directions(name):
    loss = ADVERSARIAL[name]
    to_real, to_fake = jax.grad(loss.discriminator, argnums=(0, 1))(jnp.zeros(3), jnp.zeros(3))
    assert (to_real < 0).all() and (to_fake > 0).all()
    assert (jax.grad(loss.generator)(jnp.zeros(3)) < 0).all()


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_losses_are_float32(name):
    half = REAL.astype(jnp.bfloat16)
    assert ADVERSARIAL[name].discriminator(half, half).dtype == jnp.float32
    assert ADVERSARIAL[name].generator(half).dtype == jnp.float32


def test_unknown_name_suggests_the_near_one():
    with pytest.raises(UserError, match="'hinge'"):
        adversarial_loss("hing")


def test_r1_of_a_quadratic_discriminator():
    # D(x) = Σ w x²/2 has gradient w x.
    weight = jax.random.normal(jax.random.key(0), (4, 5))
    real = jax.random.normal(jax.random.key(1), (3, 4, 5))
    penalty = r1_penalty(lambda x: jnp.sum(weight * x**2, axis=(1, 2)) / 2, real)
    expected = jnp.mean(jnp.sum((weight * real) ** 2, axis=(1, 2)))
    np.testing.assert_allclose(penalty, expected, rtol=1e-5)


def test_r1_is_differentiable_in_the_parameters():
    real = jax.random.normal(jax.random.key(1), (3, 4))
    gradient = jax.grad(lambda w: r1_penalty(lambda x: jnp.tanh(x @ w), real))(jnp.array([0.1, -0.2, 0.3, 0.4]))
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).min() > 0


def test_lecam_follows_the_logits_and_holds_back_a_winner():
    lecam = LeCam(decay=0.5)
    lecam.update(REAL.mean(), FAKE.mean(), active=jnp.array(False))
    assert float(lecam.real.get_value()) == float(lecam.fake.get_value()) == 0
    for _ in range(20):
        lecam.update(REAL.mean(), FAKE.mean(), active=jnp.array(True))
    assert float(lecam.real.get_value()) == pytest.approx(float(REAL.mean()), abs=1e-4)
    assert float(lecam.fake.get_value()) == pytest.approx(float(FAKE.mean()), abs=1e-4)
    above, below = np.maximum(0, REAL - FAKE.mean()), np.maximum(0, REAL.mean() - FAKE)
    assert float(lecam(REAL, FAKE)) == pytest.approx(float((above**2).mean() + (below**2).mean()), rel=1e-3)
    to_real, to_fake = jax.grad(lecam, argnums=(0, 1))(REAL + 9, FAKE - 9)
    assert (to_real > 0).all() and (to_fake < 0).all()
