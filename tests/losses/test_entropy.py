"""Values and gradients of the categorical entropy."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

from videogen.losses import entropy
from videogen.losses.entropy import entropy_penalty


def test_entropy_of_known_distributions():
    p = jnp.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(entropy(p), [np.log(4), 0, np.log(2)], atol=1e-6)


def test_entropy_of_an_underflowed_softmax_has_a_finite_gradient():
    logits = jnp.array([0.0, 500.0, -300.0])
    assert jax.nn.softmax(logits)[0] == 0
    gradient = jax.grad(lambda x: entropy(jax.nn.softmax(x)))(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_entropy_gradient_matches_finite_differences():
    logits = jnp.array([0.3, -0.7, 1.1])
    jax.test_util.check_grads(lambda x: entropy(jax.nn.softmax(x)), (logits,), 1, ["rev"], atol=1e-2, rtol=1e-2)


def test_entropy_penalty_at_its_extremes():
    """-log K when confident and even; 0 when confident and collapsed; 0 when every sample is undecided."""
    sure = 1e4 * jnp.eye(5)
    for logits, expected in ((sure, -np.log(5)), (sure[:1].repeat(3, 0), 0), (jnp.zeros((4, 5)), 0)):
        np.testing.assert_allclose(entropy_penalty(logits), expected, atol=1e-5)
    np.testing.assert_allclose(entropy_penalty(sure, diversity=0.0), 0, atol=1e-6)
