"""Attention against the library's with every kind of mask; null keys, rotary positions and contexts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import (
    Attention,
    BlockCausal,
    Causal,
    Full,
    Linear,
    PrefixLM,
    Stream,
    Window,
    attend,
    mask_array,
    rotary_angles,
)

KEY_MASK = jnp.array([[True, True, False, True, True, False], [True, False, True, True, False, False]])


def heads(queries: int = 6, keys: int = 6, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    key = jax.random.key(0)
    shapes = [(2, queries, 3, 4), (2, keys, 3, 4), (2, keys, 3, 4)]
    return tuple(jax.random.normal(k, s, dtype) for k, s in zip(jax.random.split(key, 3), shapes, strict=True))


@pytest.mark.parametrize("mask", [Full(), Causal(), BlockCausal(2), PrefixLM(3), Window(1)], ids=str)
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_attend_equals_the_library(mask, padding, biased):
    q, k, v = heads()
    # The diagonal stays visible: a row without any key has no defined result.
    key_mask = KEY_MASK.at[:, 0].set(True) if padding else None
    if padding and isinstance(mask, Window):
        key_mask = jnp.ones_like(KEY_MASK).at[:, 2].set(False)
    bias = jax.random.normal(jax.random.key(1), (3, 6, 6)) if biased else None
    dense = mask_array(mask, 6, 6)[None, None]
    dense = dense & key_mask[:, None, None] if padding else dense
    expected = jax.nn.dot_product_attention(q, k, v, bias=None if bias is None else bias[None], mask=dense, scale=1.0)
    actual = jax.jit(attend, static_argnames="mask")(q, k, v, mask=mask, key_mask=key_mask, bias=bias)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_attend_with_other_numbers_of_queries_and_keys():
    q, k, v = heads(queries=2, keys=5)
    np.testing.assert_allclose(attend(q, k, v), jax.nn.dot_product_attention(q, k, v, scale=1.0), atol=1e-5)


def test_bfloat16_softmax_is_float32():
    q, k, v = heads(dtype=jnp.bfloat16)
    actual = attend(8 * q, k, v)
    exact = attend(*(x.astype(jnp.float32) for x in (8 * q, k, v)))
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(jnp.float32), exact, atol=0.03)


def test_masked_keys_never_matter():
    q, k, v = heads()
    clean = attend(q, k, v, key_mask=KEY_MASK)
    hidden = KEY_MASK[..., None, None]
    np.testing.assert_array_equal(
        attend(q, jnp.where(hidden, k, 99), jnp.where(hidden, v, -7), key_mask=KEY_MASK), clean
    )


def test_unknown_backend_suggests_a_near_one():
    with pytest.raises(UserError, match="'reference'"):
        attend(*heads(), backend="referense")


def written_out(module: Attention, x, context=None, angles=None) -> np.ndarray:
    """The module head by head: projections, QK-norm, rotary pairs, scaled softmax, output projection."""
    x = np.asarray(x, np.float64)
    width = module.head_width
    if module.cross:
        q = x @ module.query.kernel.get_value()
        k, v = np.split(np.asarray(context, np.float64) @ module.key_value.kernel.get_value(), 2, -1)
    else:
        q, k, v = np.split(x @ module.query_key_value.kernel.get_value(), 3, -1)

    def normalise(y, norm):
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * norm.scale.get_value() if norm else y

    def turn(y):
        if angles is None:
            return y
        complex_pairs = (y[..., : width // 2] + 1j * y[..., width // 2 :]) * np.exp(1j * angles)
        return np.concatenate([complex_pairs.real, complex_pairs.imag], -1)

    outputs = []
    for h in range(module.heads):
        part = slice(h * width, (h + 1) * width)
        qh = turn(normalise(q[..., part], module.query_norm))
        kh = turn(normalise(k[..., part], module.key_norm))
        scores = qh @ kh.swapaxes(-1, -2) / np.sqrt(width)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ v[..., part])
    return np.concatenate(outputs, -1) @ module.out.kernel.get_value()


@pytest.mark.parametrize("qk_norm", ["head", None])
@pytest.mark.parametrize("rotary", [True, False])
def test_self_attention_written_out(qk_norm, rotary):
    module = Attention(12, 3, qk_norm=qk_norm, rngs=nnx.Rngs(0))
    if qk_norm:
        module.query_norm.scale.set_value(jnp.linspace(0.5, 2, 4))
    x = jax.random.normal(jax.random.key(0), (2, 5, 12))
    angles = rotary_angles([5], 4) if rotary else None
    actual = jax.jit(lambda x: module(x, rotary=angles))(x)
    np.testing.assert_allclose(actual, written_out(module, x, angles=angles), atol=1e-5)


def test_cross_attention_written_out():
    module = Attention(12, 3, context_width=7, rngs=nnx.Rngs(0))
    x, context = (
        jax.random.normal(jax.random.key(0), (2, 5, 12)),
        jax.random.normal(jax.random.key(1), (2, 4, 7)),
    )
    np.testing.assert_allclose(jax.jit(module)(x, context), written_out(module, x, context), atol=1e-5)


def test_null_keys_are_always_visible():
    module = Attention(12, 3, context_width=7, null_keys=2, rngs=nnx.Rngs(0))
    x, context = (
        jax.random.normal(jax.random.key(0), (2, 5, 12)),
        jax.random.normal(jax.random.key(1), (2, 4, 7)),
    )
    hidden = jnp.zeros((2, 4), bool)
    alone = module(x, context, key_mask=hidden)
    np.testing.assert_array_equal(module(x, -context, key_mask=hidden), alone)
    # Without any context key, the softmax runs over the two null slots.
    q = module.query_norm(module.query(x).reshape(2, 5, 3, 4)) / 2
    null_key, null_value = module.null_keys.get_value()
    weights = jax.nn.softmax(jnp.einsum("bqhd,khd->bhqk", q, null_key), -1)
    expected = module.out(jnp.einsum("bhqk,khd->bqhd", weights, null_value).reshape(2, 5, 12))
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    assert jnp.abs(module(x, context) - alone).max() > 1e-3


def test_null_keys_shift_the_bias():
    module = jax.jit(Attention(8, 2, null_keys=1, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (1, 3, 8))
    zero = module(x, bias=jnp.zeros((2, 3, 3)))
    np.testing.assert_allclose(module(x), zero, atol=1e-6)
    hidden = jnp.zeros((2, 3, 3)).at[:, :, 1].set(-1e9)
    expected = module(x, key_mask=jnp.array([[True, False, True]]))
    np.testing.assert_allclose(module(x, bias=hidden), expected, atol=1e-5)


def test_null_keys_refuse_positional_masks():
    with pytest.raises(UserError, match="Full mask"):
        Attention(8, 2, null_keys=1, rngs=nnx.Rngs(0))(jnp.ones((1, 3, 8)), mask=Causal())


def test_width_must_divide_by_heads():
    with pytest.raises(UserError, match="width 10 does not divide by 4"):
        Attention(10, 4, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("settings", [{}, {"context_width": 8, "null_keys": 1}])
def test_gradient_reaches_every_parameter(settings):
    graph, state = nnx.split(Attention(8, 2, **settings, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 4, 8))
    context = x[:, ::-1] if settings else None
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(jnp.sin(nnx.merge(graph, s)(x, context)))))(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from videogen.nn import Attention, Causal
from videogen.parallel import make_mesh

attention = Attention(16, 4, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(0), (4, 8, 16))
plain = attention(x, mask=Causal())
for sizes in ({"tensor": 2, "data": 2}, {"context": 2, "data": 2}, {"fsdp": 4}):
    with jax.set_mesh(make_mesh(sizes)):
        np.testing.assert_allclose(jax.jit(lambda x: attention(x, mask=Causal()))(x), plain, atol=1e-5)
"""


def test_every_mesh_gives_the_same_result(run_python):
    result = run_python(SHARDED, devices=4)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("settings", [{}, {"context_width": 5}], ids=["self", "cross"])
def test_projections_have_no_biases(settings):
    model = nnx.eval_shape(lambda: Attention(12, 3, **settings, rngs=nnx.Rngs(0)))
    linear = [m for _, m in nnx.iter_modules(model) if isinstance(m, Linear)]
    assert len(linear) == (3 if settings else 2) and all(m.bias is None for m in linear)


def test_scores_of_bfloat16_are_float32():
    q, k, v = heads(dtype=jnp.bfloat16)
    program = str(jax.make_jaxpr(lambda q, k, v: attend(q, k, v, backend="reference"))(q, k, v))
    scores = next(line for line in program.splitlines() if "dot_general" in line)
    assert "f32" in scores.partition("=")[0]


def test_position_by_position_is_the_whole_causal_sequence():
    """Keys and values are appended, the future is hidden, weights are a softmax, the cache begins empty."""
    attention = Attention(12, 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 12))
    angles = rotary_angles((5,), 4)
    whole = attention(x, mask=Causal(), rotary=angles)
    cache, parts = (attention.empty(2, 8),), []
    assert int(cache[0].length) == 0
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        stream = Stream(cache)
        parts.append(attention(x[:, start:stop], mask=Causal(), rotary=angles[start:stop], stream=stream))
        cache = stream.cache
    assert int(cache[0].length) == 5
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-6)


def test_a_cached_context_is_the_context():
    attention = Attention(12, 3, context_width=5, null_keys=2, rngs=nnx.Rngs(0))
    x, context = jax.random.normal(jax.random.key(1), (2, 4, 12)), jax.random.normal(jax.random.key(2), (2, 6, 5))
    whole = attention(x, context, key_mask=KEY_MASK)
    stream = Stream((attention.keys_values(context),))
    np.testing.assert_allclose(attention(x, key_mask=KEY_MASK, stream=stream), whole, rtol=1e-5, atol=1e-6)
