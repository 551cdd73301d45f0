"""What all quantizers share: ids and codes name one thing to the bit, and gradients pass straight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.evaluation import codebook_usage, expected_usage
from videogen.quantizers import build, straight_through
from videogen.quantizers.base import count_codes

CONFIGS = {
    "vq-cosine": {"name": "vq", "size": 16, "width": 4},
    "vq-euclidean": {"name": "vq", "size": 16, "width": 4, "cosine": False},
    "vq-gradient": {"name": "vq", "size": 16, "width": 4, "cosine": False, "update": "gradient"},
    "fsq": {"name": "fsq", "levels": [4, 3, 5, 8]},
    "lfq": {"name": "lfq", "bits": 4},
}


def make(name: str):
    return build(CONFIGS[name], rngs=nnx.Rngs(0))


def latents(dtype=jnp.float32) -> jax.Array:
    return (2 * jax.random.normal(jax.random.key(1), (2, 3, 5, 4))).astype(dtype)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scale", [1.0, 37.3])
def test_codes_of_the_indices_equal_the_forward_output_to_the_bit(name, scale):
    quantizer = make(name)
    quantized = jax.jit(quantizer)(scale * latents())
    assert quantized.latents.shape == latents().shape and quantized.latents.dtype == jnp.float32
    assert quantized.indices.shape == (2, 3, 5, 1) and quantized.indices.dtype == jnp.int32
    np.testing.assert_array_equal(quantized.latents, quantizer.lookup(quantized.indices))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_id_maps_to_itself_through_its_code(name):
    quantizer = make(name)
    (size,) = quantizer.vocabulary
    ids = jnp.arange(size)[:, None]
    codes = quantizer.lookup(ids)
    assert codes.shape == (size, quantizer.width) and len(np.unique(codes, axis=0)) == size
    # FSQ bounds its input: a code reaches itself from where the bound has it.
    levels = np.array(CONFIGS[name].get("levels", ()))
    z = codes if name != "fsq" else np.arctanh(np.clip(preimage(codes, levels), -0.999, 0.999)) - shift(levels)
    np.testing.assert_array_equal(jax.jit(quantizer)(jnp.asarray(z)).indices, ids)


def shift(levels: np.ndarray) -> np.ndarray:
    return np.arctanh(np.where(levels % 2 == 0, 0.5, 0) / ((levels - 1) * 1.001 / 2))


def preimage(codes, levels: np.ndarray) -> np.ndarray:
    """tanh of the shifted latent whose bound is ``codes``."""
    return (codes * (levels // 2) + np.where(levels % 2 == 0, 0.5, 0)) / ((levels - 1) * 1.001 / 2)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_latents_are_quantised_in_float32(name):
    quantizer, half = make(name), latents(jnp.bfloat16)
    quantized, exact = jax.jit(quantizer)(half), jax.jit(quantizer)(half.astype(jnp.float32))
    np.testing.assert_array_equal(quantized.indices, exact.indices)
    assert quantized.latents.dtype == jnp.float32
    assert all(loss.dtype == jnp.float32 for loss in quantized.losses.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_those_of_the_indices(name):
    quantizer = make(name)
    quantized = jax.jit(quantizer)(latents())
    expected = np.bincount(np.asarray(quantized.indices).ravel(), minlength=quantizer.vocabulary[0])
    np.testing.assert_array_equal(quantized.statistics["counts"], expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_evaluation_changes_no_state(name):
    quantizer = make(name)
    before = jax.tree.map(jnp.copy, nnx.state(quantizer))
    quantizer(latents(), key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(quantizer))


def test_straight_through_has_the_value_of_the_code_and_the_gradient_of_the_latent():
    z, codes = 100 * jax.random.normal(jax.random.key(0), (2, 50)) * jnp.array([[1.0], [0.001]])
    np.testing.assert_array_equal(straight_through(z, codes), codes)
    np.testing.assert_array_equal(jax.jacobian(straight_through)(z, codes), np.eye(50))
    np.testing.assert_array_equal(jax.jacobian(straight_through, argnums=1)(z, codes), np.zeros((50, 50)))


def test_usage_of_even_ids_follows_the_formula():
    ids = jax.random.randint(jax.random.key(0), (30, 400), 0, 256)
    usage = [float(codebook_usage(count_codes(row, 256))) for row in ids]
    assert np.mean(usage) == pytest.approx(expected_usage(400, 256), abs=0.01)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "fsqq", "levels": [3]}, "'fsq'"),
        ({"name": "fsq", "levels": [3, 2]}, "levels >= 3"),
        ({"name": "fsq", "levels": []}, "at least one dimension"),
        ({"name": "lfq", "bits": 0}, "1 to 24 bits"),
        ({"name": "vq", "size": 4, "width": 2, "update": "momentum"}, "'ema' or 'gradient'"),
        ({"name": "vq", "size": 4, "widht": 2}, "'width'"),
    ],
)
def test_impossible_settings_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        build(config, rngs=nnx.Rngs(0))
