"""Numbers in few bits: how far they are off, how many bytes they take, and caches of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.nn import KeyValues
from videogen.nn.rounding import bits_per_number, rounded, rounded_cache

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 32)) * 4 + 1, jnp.float32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [8, 32])
def test_a_number_is_at_most_half_a_step_off(bits, group):
    found = rounded(X, bits, group)
    assert found.codes.dtype == jnp.uint8 and found.codes.size == X.size * bits // 8
    parts = np.asarray(X).reshape(3, 5, -1, group)
    step = (parts.max(-1) - parts.min(-1)) / (2**bits - 1)
    np.testing.assert_allclose(found.step, step, rtol=1e-5)
    error = np.abs(np.asarray(found.values()).reshape(parts.shape) - parts).max(-1)
    assert (error <= 0.5 * step * (1 + 1e-4)).all() and error.max() > 0.3 * step.max()
    # The least and the largest of a group are exact.
    back = np.asarray(found.values()).reshape(parts.shape)
    np.testing.assert_allclose(back.min(-1), parts.min(-1), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(back.max(-1), parts.max(-1), rtol=1e-6, atol=1e-5)


def test_few_different_numbers_are_kept_and_rounding_twice_changes_nothing():
    few = jnp.asarray(np.random.default_rng(1).integers(0, 4, (2, 16)) * 0.5 - 1.0, jnp.float32)
    few = few.at[:, 0].set(-1.0).at[:, 1].set(0.5)
    np.testing.assert_allclose(rounded(few, 2, 16).values(), few, atol=1e-6)
    even = jnp.full((2, 16), 0.37)
    np.testing.assert_array_equal(rounded(even, 2, 16).values(), even)
    once = rounded(X, 4, 16).values()
    np.testing.assert_allclose(rounded(once, 4, 16).values(), once, atol=1e-5)


def test_bits_of_a_number_count_those_of_its_group():
    assert bits_per_number(2, 64) == 3.0 and bits_per_number(4, 32) == 6.0
    found = rounded(X, 2, 32)
    taken = 8 * found.codes.size + 32 * (found.low.size + found.step.size)
    assert taken / X.size == bits_per_number(2, 32)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="2, 4 or 8 bits, not 3"):
        rounded(X, 3, 8)
    with pytest.raises(UserError, match="groups of 12 do not divide a width of 32"):
        rounded(X, 4, 12)


def few(cache, bits):
    return jax.jit(lambda cache: rounded_cache(cache, bits, 16))(cache)


def cache(count=5, room=8):
    key, value = jax.random.normal(jax.random.key(0), (2, 2, count, 2, 16))
    empty = KeyValues(jnp.zeros((2, 2, 16, room)), jnp.zeros((2, 2, room, 16)), jnp.zeros((), int))
    return empty.append(key, value), key, value


def test_a_cache_of_few_bits_measures_what_it_loses():
    whole, key, value = cache()
    errors = {}
    for bits in (2, 4, 8):
        small, said = few(whole, bits)
        assert small.key.shape == whole.key.shape and int(small.length) == 5
        expected = rounded(key, bits, 16).values()
        np.testing.assert_allclose(small.key[..., :5].transpose(0, 3, 1, 2), expected, atol=1e-6)
        share = np.sqrt(((expected - key) ** 2).sum() / (key**2).sum())
        assert float(said["key_error"]) == pytest.approx(float(share), rel=1e-4)
        errors[bits] = float(said["value_error"])
    # Four times as many bits, a step of 1/3, 1/15 and 1/255 of the range.
    assert errors[2] / errors[4] == pytest.approx(5, rel=0.2) and errors[4] / errors[8] == pytest.approx(17, rel=0.2)


def test_rounding_as_it_is_appended_is_rounding_at_the_end():
    whole, key, value = cache()
    part = KeyValues(jnp.zeros((2, 2, 16, 8)), jnp.zeros((2, 2, 8, 16)), jnp.zeros((), int))
    for t in range(5):
        part, _ = few(part.append(key[:, t : t + 1], value[:, t : t + 1]), 4)
    np.testing.assert_allclose(part.key, few(whole, 4)[0].key, atol=1e-5)
