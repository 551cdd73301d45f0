"""A bias of keys is added to the scores, whether it is an array or a channel of the heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.nn import Attention, Causal, Full, attend, carry_key_bias
from videogen.nn.cudnn import cudnn
from videogen.nn.masking import Masking
from videogen.nn.reference import reference


def heads(length: int, width: int = 12, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    """Queries, keys, values and a bias: the logarithm of 1 to 40 tokens."""
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = (jax.random.normal(key, (2, length, 2, width), dtype) for key in keys[:3])
    return *arrays, jnp.log(jax.random.randint(keys[3], (2, length), 1, 41).astype(jnp.float32))


@pytest.mark.parametrize("mask", [Full(), Causal()], ids=str)
def test_it_is_added_to_the_scores(mask):
    q, k, v, bias = heads(7)
    scores = np.einsum("bqhd,bkhd->bhqk", *map(np.asarray, (q, k))) + np.asarray(bias)[:, None, None]
    scores = np.where(np.tri(7, dtype=bool) | isinstance(mask, Full), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), np.asarray(v))
    np.testing.assert_allclose(attend(q, k, v, mask=mask, key_bias=bias), expected, rtol=1e-5, atol=1e-6)


def test_a_token_of_size_three_is_three_tokens():
    """Proportional attention of merged tokens (ToMe): the bias is the logarithm of how many tokens a key stands for."""
    q, k, v, _ = heads(5)
    sizes = np.array([1, 3, 1, 2, 1])
    whole = attend(q, jnp.repeat(k, sizes, 1), jnp.repeat(v, sizes, 1))
    merged = attend(q, k, v, key_bias=jnp.log(jnp.array([sizes, sizes], jnp.float32)))
    np.testing.assert_allclose(merged, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_channel_is_the_bias(dtype):
    q, k, v, bias = heads(9, dtype=dtype)
    expected = attend(q, k, v, key_bias=bias)
    longer = carry_key_bias(q, k, v, bias)
    assert {x.shape[-1] for x in longer} == {16} and {x.dtype for x in longer} == {jnp.dtype(dtype)}
    actual = attend(*longer)[..., :12]
    # Weights are rounded to bfloat16 either way: a difference of one last digit of a score may show.
    rtol = 1e-5 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(actual.astype(jnp.float32), expected.astype(jnp.float32), atol=rtol * 4)


def test_channels_of_bfloat16_keep_the_digits_of_the_bias():
    q, k, v, bias = heads(9, dtype=jnp.bfloat16)
    _, key, _ = carry_key_bias(q, k, v, bias)
    np.testing.assert_allclose(key[:, :, 0, 12:15].astype(jnp.float32).sum(-1), bias, rtol=2**-23, atol=0)


def test_the_channel_undoes_the_scale():
    q, k, v, bias = heads(6)
    longer = carry_key_bias(q, k, v, bias, scale=0.25)
    expected = attend(0.25 * q, k, v, key_bias=bias)
    np.testing.assert_allclose(attend(0.25 * longer[0], *longer[1:])[..., :12], expected, rtol=1e-5, atol=1e-6)


def test_splash_carries_it():
    q, k, v, bias = heads(150, width=40)

    @jax.jit
    def both(q, k, v, bias):
        def run(backend):
            out, pull = jax.vjp(lambda *x: attend(*x[:3], mask=Causal(), key_bias=x[3], backend=backend), q, k, v, bias)
            return out, *pull(jnp.cos(out))

        return run("splash"), run("reference")

    for actual, expected in zip(*both(q / 6, k, v, bias), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4 * float(jnp.abs(expected).max()))


def test_cudnn_carries_it(monkeypatch):
    """What cuDNN would be given, computed by XLA."""
    asked, attention = [], jax.nn.dot_product_attention

    def by_xla(query, key, value, *, implementation, **call):
        asked.append((implementation, query.shape[-1], call["bias"]))
        return attention(query, key, value, **call)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q, k, v, bias = heads(8)
    masking = Masking(Causal(), key_bias=bias, key_mask=jnp.arange(8)[None] < jnp.array([[8], [5]]))
    np.testing.assert_allclose(cudnn(q, k, v, masking), reference(q, k, v, masking), rtol=1e-5, atol=1e-6)
    assert asked == [("cudnn", 16, None)]


def test_null_keys_have_none():
    module = Attention(8, 2, null_keys=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 8))
    expected = module(x, bias=jnp.broadcast_to(jnp.arange(4.0), (2, 4, 4)))
    actual = module(x, key_bias=jnp.broadcast_to(jnp.arange(4.0), (2, 4)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_sizes_is_that_of_the_scores():
    q, k, v, bias = heads(6)
    through_array = jax.grad(lambda b: jnp.sum(jnp.sin(attend(q, k, v, key_bias=b))))(bias)
    through_channel = jax.grad(lambda b: jnp.sum(jnp.sin(attend(*carry_key_bias(q, k, v, b))[..., :12])))(bias)
    assert float(jnp.abs(through_array).max()) > 0.01 and math.isfinite(float(through_array.sum()))
    np.testing.assert_allclose(through_channel, through_array, rtol=1e-4, atol=1e-5)
