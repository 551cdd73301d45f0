"""Binary spherical quantization: the sphere, its error bound, entropies, and vector-quantize-pytorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.losses import entropy
from videogen.quantizers import BinarySphericalQuantizer

torch = pytest.importorskip("torch")
oracle = pytest.importorskip("vector_quantize_pytorch")


def latents(bits: int, count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, count, bits)).astype(np.float32)


def unit(x) -> np.ndarray:
    return np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)


def test_codes_have_unit_length_and_the_error_its_bound():
    quantizer, bound = BinarySphericalQuantizer(18), 2 - 2 / np.sqrt(18)
    assert bound == pytest.approx(1.5286, abs=1e-4)
    z = latents(18, 2000)
    codes = jax.jit(quantizer)(jnp.asarray(z)).latents
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1, rtol=1e-5)
    assert np.sum((unit(z) - codes) ** 2, -1).max() < 0.95
    corner = jnp.eye(18)[:1]
    np.testing.assert_allclose(jnp.sum((corner - quantizer(corner).latents) ** 2), bound, rtol=1e-5)


@pytest.mark.parametrize(("bits", "levels"), [(6, 1), (36, 2), (36, 4)])
def test_bits_and_ids_are_a_bijection(bits, levels):
    quantizer = BinarySphericalQuantizer(bits, levels=levels)
    quantized = quantizer(jnp.asarray(latents(bits)))
    assert quantizer.vocabulary == (2 ** (bits // levels),) * levels
    np.testing.assert_array_equal(quantizer.lookup(quantized.indices) > 0, latents(bits) > 0)
    np.testing.assert_array_equal(quantizer(quantizer.lookup(quantized.indices)).indices, quantized.indices)


@pytest.mark.parametrize("bits", [1, 5, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_entropies_equal_brute_force_over_all_codes(bits, temperature):
    quantizer, u = BinarySphericalQuantizer(bits, temperature=temperature), unit(latents(bits)).reshape(-1, bits)
    codes = quantizer.lookup(jnp.arange(2**bits)[:, None])
    p = jax.nn.softmax(2 * u @ codes.T / temperature, axis=-1)
    sample, batch = quantizer.entropy_loss(jnp.asarray(u))
    np.testing.assert_allclose([sample, batch], [entropy(p).mean(), entropy(p.mean(0))], rtol=1e-4, atol=1e-5)


def test_batch_entropy_of_many_bits_sums_over_groups():
    u = unit(latents(12))
    whole, parts = BinarySphericalQuantizer(12, group_bits=4), np.split(u, 3, axis=-1)
    # A group of 4 bits keeps the temperature of 12.
    group = BinarySphericalQuantizer(4, temperature=(12 / 4) ** 0.5)
    expected = sum(float(group.entropy_loss(jnp.asarray(part))[1]) for part in parts)
    np.testing.assert_allclose(whole.entropy_loss(jnp.asarray(u))[1], expected, rtol=1e-5)


def test_codes_and_gradients_equal_the_oracle():
    """The library's first dimension is its highest bit, ours the lowest: its input and codes are reversed."""
    z, weight = latents(6), np.random.default_rng(1).normal(size=(2, 40, 6)).astype(np.float32)
    quantizer = BinarySphericalQuantizer(6, entropy_weight=0.0)
    library = oracle.LFQ(dim=6, spherical=True, entropy_loss_weight=0.0).train()
    leaf = torch.tensor(z[..., ::-1].copy(), requires_grad=True)
    codes, indices, _ = library(leaf)
    (codes * torch.tensor(weight[..., ::-1].copy())).sum().backward()
    gradient = jax.grad(lambda z: jnp.sum(quantizer(z).latents * weight))(jnp.asarray(z))
    quantized = quantizer(jnp.asarray(z))
    np.testing.assert_allclose(quantized.latents, codes.detach().numpy()[..., ::-1], atol=1e-6)
    np.testing.assert_array_equal(quantized.indices[..., 0], indices.numpy())
    np.testing.assert_allclose(gradient, leaf.grad.numpy()[..., ::-1], atol=1e-5)


def test_the_loss_rewards_sure_bits_and_even_use():
    """weight · (mean entropy of a latent - diversity · entropy of the mean), from the probabilities of all codes."""
    quantizer = BinarySphericalQuantizer(4, entropy_weight=0.3, diversity=2.0, temperature=0.5)
    z = latents(4)
    codes = np.asarray(quantizer.lookup(jnp.arange(16)[:, None]))
    logits = 2 * unit(z).reshape(-1, 4) @ codes.T / 0.5
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 0.3 * (-(p * np.log(p)).sum(-1).mean() + 2.0 * (p.mean(0) * np.log(p.mean(0))).sum())
    np.testing.assert_allclose(quantizer(jnp.asarray(z)).losses["entropy"], expected, rtol=1e-4)
