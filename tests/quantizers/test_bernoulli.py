"""Bits that are drawn: their statistics, their gradient, their order, and the loss that makes them sure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.data.bits import Packing
from videogen.errors import UserError
from videogen.quantizers import BernoulliQuantizer, LookupFreeQuantizer
from videogen.tokens import Layout, SegmentLayout

Z = jnp.array([-2.0, -0.3, 0.0, 0.5, 4.0])
KEYS = jax.random.split(jax.random.key(0), 2)
MANY = 20_000


def test_bits_in_evaluation_are_the_threshold():
    found = BernoulliQuantizer(5)(Z)
    np.testing.assert_array_equal(found.latents, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(found.indices, [0, 0, 0, 1, 1])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_bits_in_training_are_drawn_with_the_probability_of_the_logits(temperature):
    quantizer = BernoulliQuantizer(5, temperature=temperature)
    found = quantizer(jnp.broadcast_to(Z, (2, MANY, 5)), key=KEYS, train=True)
    assert set(np.unique(found.latents)) == {0.0, 1.0}
    np.testing.assert_array_equal(found.indices, found.latents)
    # Four standard deviations of the mean of so many draws.
    expected = 1 / (1 + np.exp(-np.asarray(Z) / temperature))
    np.testing.assert_allclose(found.latents.mean(1), [expected] * 2, atol=2 / MANY**0.5)
    assert not np.array_equal(found.latents[0], found.latents[1])


def test_without_temperature_training_is_the_threshold():
    z = jax.random.normal(jax.random.key(1), (2, 100, 5))
    quantizer = BernoulliQuantizer(5, temperature=1e-6)
    np.testing.assert_array_equal(quantizer(z, key=KEYS, train=True).latents, quantizer(z).latents)


@pytest.mark.parametrize("train", [False, True])
def test_the_gradient_is_that_of_the_probability(train):
    """p (1 - p) times what comes from above, whatever was drawn and whatever the temperature of the draw."""
    quantizer, above = BernoulliQuantizer(5, uncertainty_weight=0.0), jnp.arange(1.0, 6.0)
    found = jax.grad(lambda z: jnp.sum(quantizer(z, key=KEYS, train=train).latents * above))(jnp.stack([Z, Z]))
    p = jax.nn.sigmoid(Z)
    np.testing.assert_allclose(found, [above * p * (1 - p)] * 2, rtol=1e-6)


def test_the_loss_is_largest_where_nothing_is_decided_and_0_where_all_is():
    quantizer = BernoulliQuantizer(5, uncertainty_weight=2.0)

    def loss(value):
        return float(quantizer(jnp.full((3, 5), value)).losses["uncertainty"])

    assert loss(0.0) == 0.5 and loss(100.0) == loss(-100.0) == 0.0
    p = 1 / (1 + np.exp(-np.linspace(-3, 3, 7)))
    np.testing.assert_allclose([loss(z) for z in np.linspace(-3, 3, 7)], 2 * p * (1 - p), rtol=1e-6)


def test_lopsided_ids_have_one_order_and_no_bit_is_lost():
    """The first bit is the lowest: 18 bits of which the first or the last is 1 are the ids 1 and 131,072."""
    quantizer = BernoulliQuantizer(18, levels=1)
    first, last = jnp.zeros(18).at[0].set(1.0), jnp.zeros(18).at[17].set(1.0)
    for bits, number in ((first, 1), (last, 131_072)):
        np.testing.assert_array_equal(quantizer(bits - 0.5).indices, [number])
        np.testing.assert_array_equal(quantizer.lookup(jnp.array([number])), bits)
    grouped = BernoulliQuantizer(18, levels=2)
    np.testing.assert_array_equal(grouped(last - 0.5).indices, [0, 256])
    np.testing.assert_array_equal(LookupFreeQuantizer(18)(last - 0.5).indices, [131_072])


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("train", [False, True])
def test_ids_stay_in_their_range(scale, dtype, train):
    z = (scale * jax.random.normal(jax.random.key(2), (2, 50, 24))).astype(dtype)
    found = BernoulliQuantizer(24, levels=1)(z, key=KEYS, train=train)
    assert found.indices.min() >= 0 and found.indices.max() < 2**24 and found.indices.dtype == jnp.int32
    assert jnp.isfinite(found.losses["uncertainty"])


def test_64_bits_are_64_levels_of_two_ids_and_eight_bytes():
    quantizer = BernoulliQuantizer(64)
    assert quantizer.vocabulary == (2,) * 64
    bits = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.5, (128, 64)), np.int32)
    np.testing.assert_array_equal(quantizer.lookup(jnp.asarray(bits)), bits)
    packing = Packing(Layout.of(row=SegmentLayout((("query", 128),), quantizer.vocabulary)))
    packed = packing.pack({"row": bits})
    assert packed == np.packbits(bits.reshape(-1).astype(np.uint8)).tobytes() and len(packed) == 1024
    np.testing.assert_array_equal(packing.unpack(packed)[0]["row"], bits)
    with pytest.raises(UserError, match="1 to 24 bits per level"):
        BernoulliQuantizer(64, levels=1)


def test_every_bit_is_counted_by_itself():
    """A bit that never changes shows under its own name, whatever the others do."""
    quantizer = BernoulliQuantizer(3)
    z = jnp.array([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    np.testing.assert_array_equal(quantizer(z).statistics["counts"], [0, 2, 1, 1, 1, 1])
    assert quantizer.counted == {"level_0": 2, "level_1": 2, "level_2": 2}


def test_training_needs_a_key():
    with pytest.raises(UserError, match="drawing bits needs a random key"):
        BernoulliQuantizer(5)(Z, train=True)
