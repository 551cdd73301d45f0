"""Gradient estimators: the codes' value to the bit, and the promised Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.quantizers import ESTIMATORS, rotation, straight_through

torch = pytest.importorskip("torch")
rotate_to = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch").rotate_to


def pair(width: int = 50) -> jax.Array:
    return 100 * jax.random.normal(jax.random.key(0), (2, width)) * jnp.array([[1.0], [0.001]])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_value_is_the_code_to_the_bit_and_codes_get_no_gradient(name):
    z, codes = pair()
    np.testing.assert_array_equal(ESTIMATORS[name](z, codes), codes)
    np.testing.assert_array_equal(jax.jacobian(ESTIMATORS[name], argnums=1)(z, codes), np.zeros((50, 50)))


def test_straight_through_gradient_is_the_identity():
    np.testing.assert_array_equal(jax.jacobian(straight_through)(*pair()), np.eye(50))


@pytest.mark.parametrize("opposite", [False, True])
def test_rotation_gradient_is_a_scaled_rotation_that_maps_latent_to_code(opposite):
    z, codes = pair(5)
    codes = -0.3 * z if opposite else codes
    jacobian = jax.jacobian(rotation)(z, codes)
    scale = jnp.linalg.norm(codes) / jnp.linalg.norm(z)
    np.testing.assert_allclose(jacobian @ jacobian.T, scale**2 * np.eye(5), atol=1e-5 * float(scale) ** 2)
    np.testing.assert_allclose(jacobian @ z, codes, rtol=1e-4, atol=1e-5)


def test_rotation_gradient_equals_the_oracle():
    z, codes, weight = np.random.default_rng(0).normal(size=(3, 20, 4)).astype(np.float32)
    ours = jax.grad(lambda z: jnp.sum(rotation(z, codes) * weight))(jnp.asarray(z))
    leaf = torch.tensor(z, requires_grad=True)
    (rotate_to(leaf, torch.tensor(codes)) * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(ours, leaf.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_rotation_of_the_zero_vector_is_finite():
    gradient = jax.grad(lambda z: jnp.sum(rotation(z, jnp.ones(3))))(jnp.zeros(3))
    assert jnp.isfinite(gradient).all()
