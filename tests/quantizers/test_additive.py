"""Additive quantization: greedy is residual quantization, a beam is never worse, all at once is best."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.quantizers import AdditiveQuantizer, build

SIZE, WIDTH, LEVELS = 6, 4, 3


def make(beam: int) -> AdditiveQuantizer:
    return AdditiveQuantizer(SIZE, WIDTH, LEVELS, beam=beam, rngs=nnx.Rngs(0))


def latents() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 40, WIDTH))


def error(quantizer) -> np.ndarray:
    return np.sum((latents() - jax.jit(quantizer)(latents()).latents) ** 2, -1)


def test_greedy_equals_residual_quantization():
    vq = {"name": "vq", "size": SIZE, "width": WIDTH, "cosine": False, "codebook_update": "gradient"}
    residual = build({"name": "residual", "base": vq, "levels": LEVELS}, rngs=nnx.Rngs(0))
    greedy = make(1)
    for level, codes in zip(residual.quantizers, greedy.codebooks.get_value(), strict=True):
        level.codebook.set_value(codes)
    np.testing.assert_array_equal(greedy(latents()).indices, residual(latents()).indices)
    np.testing.assert_allclose(greedy(latents()).latents, residual(latents()).latents, atol=1e-6)


@pytest.mark.parametrize("beam", [2, 4, SIZE])
def test_a_beam_is_never_worse_than_greedy(beam):
    assert (error(make(beam)) <= error(make(1)) + 1e-6).all()
    assert error(make(beam)).mean() < 0.97 * error(make(1)).mean()


def test_a_full_beam_over_two_levels_finds_the_best_sum():
    """With as many partial sums as codes nothing is pruned before the last level."""
    quantizer = AdditiveQuantizer(SIZE, WIDTH, 2, beam=SIZE, rngs=nnx.Rngs(0))
    pairs = np.array(list(itertools.product(range(SIZE), repeat=2)))
    sums = quantizer.lookup(jnp.asarray(pairs))
    best = np.min(np.sum((latents()[..., None, :] - sums) ** 2, -1), -1)
    np.testing.assert_allclose(error(quantizer), best, rtol=1e-4, atol=1e-6)


def test_latents_get_the_identity_and_all_used_codes_the_decoder_gradient():
    quantizer = make(3)
    graph, params = nnx.split(quantizer)
    z = latents()[0, :1]
    np.testing.assert_allclose(jax.jacobian(lambda z: quantizer(z).latents)(z)[0, :, 0], np.eye(WIDTH), atol=1e-6)
    weight = jnp.arange(1.0, WIDTH + 1)
    gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(z).latents * weight))(params)
    ids, expected = quantizer(z).indices[0], np.zeros((LEVELS, SIZE, WIDTH))
    expected[np.arange(LEVELS), ids] = weight
    np.testing.assert_allclose(gradient["codebooks"].get_value(), expected, atol=1e-6)


def test_codebook_loss_fits_the_sum():
    """Gradient descent on fixed latents lowers the error."""
    graph, params = nnx.split(make(4))

    @jax.jit
    def step(params):
        gradient = jax.grad(lambda p: nnx.merge(graph, p)(latents()).losses["codebook"])(params)
        return jax.tree.map(lambda p, g: p - 4 * g, params, gradient)

    before = error(nnx.merge(graph, params)).mean()
    for _ in range(30):
        params = step(params)
    assert error(nnx.merge(graph, params)).mean() < 0.8 * before
