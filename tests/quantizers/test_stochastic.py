"""Stochastic vector quantization: draws follow the softmax of cosines, evaluation takes the nearest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.quantizers import StochasticVectorQuantizer

SIZE, WIDTH = 6, 3


def make(**settings):
    return StochasticVectorQuantizer(SIZE, WIDTH, rngs=nnx.Rngs(0), **settings)


def unit(x) -> np.ndarray:
    return np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)


def cosines(quantizer, z) -> np.ndarray:
    return unit(z) @ unit(quantizer.codebook.get_value()).T


def test_evaluation_takes_the_nearest_by_cosine():
    quantizer, z = make(), jax.random.normal(jax.random.key(0), (30, WIDTH))
    quantized = quantizer(z, key=jax.random.key(3))
    np.testing.assert_array_equal(quantized.indices[:, 0], cosines(quantizer, z).argmax(-1))
    np.testing.assert_allclose(jnp.linalg.norm(quantized.latents, axis=-1), 1, rtol=1e-5)


def test_training_draws_follow_the_softmax():
    quantizer = make(temperature=0.5)
    z = jnp.array([[0.3, -1.0, 0.4]])
    ids = quantizer(jnp.broadcast_to(z, (20_000, WIDTH)), key=jax.random.key(0), train=True).indices
    frequency = np.bincount(np.asarray(ids).ravel(), minlength=SIZE) / len(ids)
    np.testing.assert_allclose(frequency, jax.nn.softmax(cosines(quantizer, z)[0] / 0.5), atol=0.015)


def test_draws_follow_their_key_and_need_one():
    quantizer, z = make(temperature=1.0), jax.random.normal(jax.random.key(0), (50, WIDTH))
    first, same, other = (quantizer(z, key=jax.random.key(k), train=True).indices for k in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    with pytest.raises(UserError, match="random key"):
        quantizer(z, train=True)


def test_losses_have_the_weights_of_the_paper():
    quantizer, z = make(), jax.random.normal(jax.random.key(0), (10, WIDTH))
    quantized = quantizer(z)
    error = float(np.mean((unit(z) - quantized.latents) ** 2))
    assert float(quantized.losses["commitment"]) == pytest.approx(0.1 * 0.25 * error, rel=1e-4)
    assert float(quantized.losses["codebook"]) == pytest.approx(0.1 * error, rel=1e-4)


def test_gradient_is_the_identity_with_respect_to_the_unit_latent():
    quantizer, z = make(), jnp.array([0.0, 0.0, 1.0])
    expected = np.diag([1.0, 1.0, 0.0])  # that of the normalisation
    np.testing.assert_allclose(jax.jacobian(lambda z: quantizer(z).latents)(z), expected, atol=1e-6)
