"""Lookup-free quantization: bits, ids, and losses against brute force and vector-quantize-pytorch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.losses import entropy
from videogen.quantizers import LookupFreeQuantizer, build
from videogen.quantizers.binary import binary_entropy

torch = pytest.importorskip("torch")
oracle = pytest.importorskip("vector_quantize_pytorch")


def latents(bits: int, count: int = 60, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=scale, size=(2, count, bits)).astype(np.float32)


@pytest.mark.parametrize("bits", [1, 4, 10])
def test_bit_equal_to_vector_quantize_pytorch(bits):
    """The library's first dimension is its highest bit, ours the lowest: its input and codes are reversed."""
    z = latents(bits, 500, scale=30.0)
    ours = jax.jit(LookupFreeQuantizer(bits))(jnp.asarray(z))
    codes, indices, _ = oracle.LFQ(dim=bits).eval()(torch.tensor(z[..., ::-1].copy()))
    np.testing.assert_array_equal(ours.latents, codes.numpy()[..., ::-1])
    np.testing.assert_array_equal(ours.indices[..., 0], indices.numpy())


@pytest.mark.parametrize("bits", [1, 5, 13])
def test_bits_and_ids_are_a_bijection(bits):
    quantizer = LookupFreeQuantizer(bits)
    ids = np.arange(2**bits)
    codes = np.asarray(quantizer.lookup(jnp.asarray(ids)[:, None]))
    np.testing.assert_array_equal((codes > 0) @ (2 ** np.arange(bits)), ids)
    np.testing.assert_array_equal(np.abs(codes), 1)
    assert quantizer.vocabulary == (2**bits,)


def test_zero_counts_as_negative():
    quantized = jax.jit(LookupFreeQuantizer(2))(jnp.array([[0.0, 1e-20], [-0.0, -1e-20]]))
    np.testing.assert_array_equal(quantized.latents, [[-1, 1], [-1, -1]])


def brute_force(z: np.ndarray, bits: int, temperature: float) -> tuple[float, float]:
    codes = LookupFreeQuantizer(bits).lookup(jnp.arange(2**bits)[:, None])
    p = jax.nn.softmax(2 * z.reshape(-1, bits) @ codes.T / temperature, axis=-1)
    return float(entropy(p).mean()), float(entropy(p.mean(0)))


@pytest.mark.parametrize("bits", [1, 7, 10])
@pytest.mark.parametrize("temperature", [0.01, 10.0])
def test_entropies_equal_brute_force_over_all_codes(bits, temperature):
    z = latents(bits, 20)
    sample, batch = jax.jit(LookupFreeQuantizer(bits, temperature=temperature).entropy_loss)(jnp.asarray(z))
    expected = brute_force(z, bits, temperature)
    np.testing.assert_allclose([sample, batch], expected, rtol=2e-4, atol=2e-5)


def test_entropy_of_many_bits_sums_over_groups():
    bits, temperature = 14, 2.0
    z = latents(bits, 40)
    quantizer = LookupFreeQuantizer(bits, temperature=temperature)
    sample, batch = jax.jit(quantizer.entropy_loss)(jnp.asarray(z))
    groups = [brute_force(z[..., columns], 7, temperature) for columns in (slice(0, 7), slice(7, 14))]
    np.testing.assert_allclose([sample, batch], np.sum(groups, axis=0), rtol=2e-4)


@pytest.mark.parametrize("bits", [2, 6])
def test_entropy_loss_at_its_extremes(bits):
    """-log K when confident and even; 0 when confident and collapsed; 0 when every latent is undecided."""
    quantizer = LookupFreeQuantizer(bits, entropy_weight=1.0)
    corners = quantizer.lookup(jnp.arange(2**bits)[:, None])
    for z, expected in ((corners, -bits * np.log(2)), (corners[:1].repeat(5, 0), 0), (0 * corners, 0)):
        np.testing.assert_allclose(jax.jit(quantizer)(z).losses["entropy"], expected, atol=1e-5)


def test_entropies_are_logged_apart_beside_their_best_values():
    z = latents(6)
    result = build({"name": "lfq", "bits": 6, "entropy_weight": 0.5, "diversity": 2.0}, rngs=nnx.Rngs(0))(z)
    sample, batch = brute_force(z, 6, 0.01)
    figures = {name: float(value) for name, value in result.figures.items()}
    best = 6 * np.log(2)
    assert figures == pytest.approx(
        {"token_entropy": sample, "batch_entropy": batch, "batch_entropy_best": best}, rel=1e-4
    )
    assert float(result.losses["entropy"]) == pytest.approx(0.5 * (sample - 2.0 * batch), rel=1e-4)
    # Latents that are sure of all codes as often reach both.
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=6)), np.float32)
    figures = build({"name": "lfq", "bits": 6}, rngs=nnx.Rngs(0))(corners).figures
    assert float(figures["token_entropy"]) == pytest.approx(0.0, abs=1e-5)
    assert float(figures["batch_entropy"]) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_descent_on_the_entropies_alone_raises_the_use_of_the_codes(name):
    quantizer = build({"name": name, "bits": 6, "entropy_weight": 1.0, "temperature": 1.0}, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(256, 6)), jnp.float32)
    layer = (0.1 * jnp.eye(6), jnp.full(6, 0.5))

    def quantized(layer):
        return quantizer(x @ layer[0] + layer[1])

    gradient = jax.jit(jax.grad(lambda layer: quantized(layer).losses["entropy"]))
    before = len(np.unique(quantized(layer).indices))
    for _ in range(50):
        layer = jax.tree.map(lambda w, g: w - 0.5 * g, layer, gradient(layer))
    # From nearly one code to nearly all of 64.
    assert before <= 2 and len(np.unique(quantized(layer).indices)) >= 48


def test_a_loss_of_weight_zero_is_not_there():
    assert set(build({"name": "lfq", "bits": 6, "entropy_weight": 0.0}, rngs=nnx.Rngs(0))(latents(6)).losses) == {
        "commitment"
    }
    assert build({"name": "bsq", "bits": 6, "entropy_weight": 0.0}, rngs=nnx.Rngs(0))(latents(6)).losses == {}


def test_losses_equal_the_oracle():
    z = latents(6, scale=0.02)
    library = oracle.LFQ(dim=6, entropy_loss_weight=0.3, diversity_gamma=0.7, commitment_loss_weight=0.2)
    ours = LookupFreeQuantizer(6, entropy_weight=0.3, diversity=0.7, commitment_weight=0.2)
    ours = jax.jit(ours)(jnp.asarray(z))
    _, _, loss = library.train()(torch.tensor(z[..., ::-1].copy()))
    # The library clamps probabilities at 1e-5 inside the logarithm, which costs it the last digits.
    np.testing.assert_allclose(sum(ours.losses.values()), float(loss), rtol=1e-3)


def test_binary_entropy_is_stable_and_exact():
    logits = jnp.array([-1e4, -3.0, 0.0, 3.0, 1e4])
    p = 1 / (1 + np.exp(-np.array([-3.0, 0.0, 3.0])))
    expected = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(binary_entropy(logits), [0, *expected, 0], atol=1e-6)
    assert jnp.isfinite(jax.vmap(jax.grad(binary_entropy))(logits)).all()


def test_straight_through_gradient_is_the_identity():
    quantizer = LookupFreeQuantizer(4)
    z = jnp.asarray(latents(4)[0, 0])
    np.testing.assert_array_equal(jax.jit(jax.jacobian(lambda z: quantizer(z).latents))(z), np.eye(4))


def test_commitment_gradient():
    quantizer = LookupFreeQuantizer(4, commitment_weight=0.25)
    z = jnp.asarray(latents(4))
    gradient = jax.jit(jax.grad(lambda z: quantizer(z).losses["commitment"]))(z)
    np.testing.assert_allclose(gradient, 0.25 * 2 * (z - jnp.sign(z)) / z.size, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 100.0])
def test_entropy_gradients_are_finite(scale):
    quantizer = LookupFreeQuantizer(6)
    z = jnp.asarray(latents(6, scale=scale))
    gradient = jax.jit(jax.grad(lambda z: quantizer(z).losses["entropy"]))(z)
    assert jnp.isfinite(gradient).all()


def test_factorised_ids_are_the_bits_of_one_id():
    z = jnp.asarray(latents(6))
    one, two = LookupFreeQuantizer(6)(z), LookupFreeQuantizer(6, levels=2)(z)
    assert LookupFreeQuantizer(6, levels=2).vocabulary == (8, 8)
    np.testing.assert_array_equal(two.indices[..., 0] + 8 * two.indices[..., 1], one.indices[..., 0])
    np.testing.assert_array_equal(two.latents, one.latents)


def test_a_codebook_of_18_bits_needs_neither_table_nor_joint_softmax():
    """Forward and backward over 16 clips of 5 × 16 × 16 tokens: distances to 2^18 codes would take 21 GB."""
    quantizer = LookupFreeQuantizer(18)

    def loss(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        quantized = quantizer(z, train=True)
        return jnp.sum(quantized.latents**2) + sum(quantized.losses.values()), quantized.statistics["counts"]

    z = jax.ShapeDtypeStruct((16, 5, 16, 16, 18), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(z).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e9
