"""Linear layers and embeddings: values, dtypes and the names their parameters carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.nn import Embedding, Linear, linear, parameter, truncated_normal

X = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_a_matrix_product_over_the_last_axis(bias):
    layer = Linear(8, 5, bias=bias, rngs=nnx.Rngs(0))
    if bias:
        layer.bias.set_value(jnp.arange(5.0))
    expected = np.einsum("...i,io->...o", X, layer.kernel.get_value()) + (np.arange(5) if bias else 0)
    np.testing.assert_allclose(layer(X), expected, atol=1e-5)
    np.testing.assert_allclose(layer(X[0, 0, 0]), expected[0, 0, 0], atol=1e-5)


def test_linear_computes_in_bfloat16_with_float32_parameters():
    layer, half = Linear(8, 5, rngs=nnx.Rngs(0)), Linear(8, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(X).dtype == jnp.bfloat16
    assert half.kernel.get_value().dtype == half.bias.get_value().dtype == jnp.float32
    np.testing.assert_allclose(half(X).astype(jnp.float32), layer(X), atol=0.05)
    rounded = jnp.einsum("...i,io->...o", X.astype(jnp.bfloat16), half.kernel.get_value().astype(jnp.bfloat16))
    np.testing.assert_allclose(half(X).astype(jnp.float32), rounded.astype(jnp.float32), atol=0.02)


def test_bfloat16_gradients_arrive_in_float32():
    graph, state = nnx.split(Linear(8, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    gradient = jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(X).astype(jnp.float32) ** 2))(state)
    assert all(leaf.dtype == jnp.float32 and jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_parameters_carry_their_logical_axes():
    layer = Linear(8, 5, axes=("embed", "mlp"), rngs=nnx.Rngs(0))
    assert layer.kernel.get_metadata()["axes"] == ("embed", "mlp")
    assert layer.bias.get_metadata()["axes"] == ("mlp",)


def test_initial_output_has_unit_variance():
    layer = Linear(256, 256, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (512, 256))
    assert float(jnp.std(layer(x))) == pytest.approx(1, abs=0.05)


def test_parameter_follows_the_random_stream():
    def draw(seed):
        return parameter(nnx.Rngs(seed), (4, 4), (None, None), truncated_normal(1.0)).get_value()

    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).all()


def test_embedding_looks_rows_up():
    table = Embedding(6, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    ids = jnp.array([[5, 0], [2, 5]])
    assert table(ids).dtype == jnp.bfloat16 and table.table.get_value().dtype == jnp.float32
    np.testing.assert_array_equal(table(ids), table.table.get_value().astype(jnp.bfloat16)[ids])


@pytest.mark.parametrize("parts", [1, 3])
def test_heads_are_the_split_output_on_every_platform(monkeypatch, parts):
    layer = Linear(8, 12, bias=False, rngs=nnx.Rngs(0))
    expected = np.split(np.asarray(layer(X)).reshape(2, 3, 4, -1, 2), parts, axis=-2)
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(linear, "target_platform", lambda platform=platform: platform)
        heads = layer.heads(X, (12 // parts // 2,) * parts)
        np.testing.assert_allclose(np.stack(heads), np.stack(expected), atol=1e-5)
