"""IBQ against its formula written out: every code gets a gradient through the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videogen.losses.entropy import entropy_penalty
from videogen.quantizers import IndexBackpropagationQuantizer

SIZE, WIDTH = 7, 3


def written_out(codes, z):
    """hard + p - sg(p), times the codebook, and the loss of the sheet."""
    p = jax.nn.softmax(z @ codes.T, axis=-1)
    hard = jax.nn.one_hot(jnp.argmax(p, -1), SIZE)
    quantized = (hard + p - jax.lax.stop_gradient(p)) @ codes
    chosen, stop = hard @ codes, jax.lax.stop_gradient
    loss = jnp.mean((quantized - z) ** 2) + jnp.mean((stop(chosen) - z) ** 2)
    return quantized, loss + 0.25 * jnp.mean((chosen - stop(z)) ** 2) + 0.3 * entropy_penalty(z @ codes.T)


def test_values_and_gradients_are_those_of_the_formula():
    quantizer = IndexBackpropagationQuantizer(SIZE, WIDTH, entropy_weight=0.3, rngs=nnx.Rngs(0))
    graph, params = nnx.split(quantizer)
    z, weight = jax.random.normal(jax.random.key(0), (2, 20, WIDTH))

    def ours(params, z):
        quantized = nnx.merge(graph, params)(z, train=True)
        return jnp.sum(quantized.latents * weight) + sum(quantized.losses.values())

    def expected(codes, z):
        quantized, loss = written_out(codes, z)
        return jnp.sum(quantized * weight) + loss

    codes = quantizer.codebook.get_value()
    np.testing.assert_allclose(ours(params, z), expected(codes, z), rtol=1e-5)
    to_params, to_z = jax.grad(ours, argnums=(0, 1))(params, z)
    to_codes, expected_to_z = jax.grad(expected, argnums=(0, 1))(codes, z)
    np.testing.assert_allclose(to_z, expected_to_z, atol=1e-5)
    np.testing.assert_allclose(to_params["codebook"].get_value(), to_codes, atol=1e-5)


def test_a_single_latent_moves_every_code():
    quantizer = IndexBackpropagationQuantizer(SIZE, WIDTH, rngs=nnx.Rngs(0))
    graph, params = nnx.split(quantizer)
    gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(jnp.ones((1, WIDTH))).latents ** 2))(params)
    assert (jnp.abs(gradient["codebook"].get_value()).max(-1) > 0).all()


def test_largest_product_wins():
    quantizer = IndexBackpropagationQuantizer(SIZE, WIDTH, rngs=nnx.Rngs(0))
    z = jax.random.normal(jax.random.key(0), (20, WIDTH))
    np.testing.assert_array_equal(quantizer(z).indices[:, 0], (z @ quantizer.codebook.get_value().T).argmax(-1))
