"""Normalisation: definitions, float32 statistics, and finite gradients at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.nn import LayerNorm, RMSNorm, l2_normalize

X = 3 + 5 * jax.random.normal(jax.random.key(0), (4, 6, 32))


def test_rms_norm_definition():
    norm = RMSNorm(32, rngs=nnx.Rngs(0))
    norm.scale.set_value(jnp.linspace(0.5, 2, 32))
    x = np.asarray(X, np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.linspace(0.5, 2, 32)
    np.testing.assert_allclose(norm(X), expected, rtol=1e-5)


def test_layer_norm_definition():
    norm = LayerNorm(32, rngs=nnx.Rngs(0))
    norm.scale.set_value(jnp.linspace(0.5, 2, 32))
    norm.shift.set_value(jnp.linspace(-1, 1, 32))
    x = np.asarray(X, np.float64)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(X), y * np.linspace(0.5, 2, 32) + np.linspace(-1, 1, 32), atol=1e-5)


def test_layer_norm_ignores_shift_and_scale_of_its_input_and_rms_norm_only_scale():
    layer, rms = LayerNorm(32, rngs=nnx.Rngs(0)), RMSNorm(32, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(7 * X + 100), layer(X), atol=1e-3)
    np.testing.assert_allclose(rms(7 * X), rms(X), atol=1e-5)
    assert jnp.abs(rms(X + 10) - rms(X)).max() > 0.1


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_statistics_of_bfloat16_inputs_are_float32(norm):
    # 256 + small: a bfloat16 mean of squares would lose the variance altogether.
    x = (256 + jax.random.normal(jax.random.key(1), (8, 512))).astype(jnp.bfloat16)
    module = norm(512, rngs=nnx.Rngs(0))
    y = module(x)
    assert y.dtype == jnp.bfloat16
    expected = module(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_zero_input_has_finite_gradients(norm):
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(norm(8, rngs=nnx.Rngs(0))(x))))(jnp.zeros((2, 8)))
    assert jnp.isfinite(gradient).all()


def test_l2_normalize_gives_unit_vectors_and_keeps_zero():
    unit = l2_normalize(X)
    np.testing.assert_allclose(jnp.linalg.norm(unit, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(unit * jnp.linalg.norm(X, axis=-1, keepdims=True), X, rtol=1e-4)
    np.testing.assert_array_equal(l2_normalize(jnp.zeros((2, 5))), 0)


def test_l2_normalize_gradient_is_finite_at_zero_and_tangent_elsewhere():
    def loss(x):
        return jnp.sum(l2_normalize(x) * jnp.arange(1.0, 6))

    assert jnp.isfinite(jax.grad(loss)(jnp.zeros(5))).all()
    x = jnp.array([1.0, -2.0, 0.5, 3.0, -0.1])
    assert float(jax.grad(loss)(x) @ x) == pytest.approx(0, abs=1e-5)
