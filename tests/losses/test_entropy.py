"""Values and gradients of the categorical entropy."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

from videogen.losses import entropy


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
