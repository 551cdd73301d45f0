"""The trainable text encoder: padding never matters, positions and every parameter do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.building import build
from videogen.conditioning import TEXT_ENCODERS, TextEncoder
from videogen.errors import UserError

IDS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
MASK = jnp.array([[True] * 5, [True] * 3 + [False] * 2])


@functools.cache
def encoder(length: int = 6) -> TextEncoder:
    return TextEncoder(11, length, 16, 2, 2, rngs=nnx.Rngs(0))


def test_shapes_and_mask():
    tokens = jax.jit(encoder())(IDS, MASK)
    assert tokens.features.shape == (2, 5, 16)
    np.testing.assert_array_equal(tokens.mask, MASK)
    assert (jnp.abs(tokens.features).max(-1) > 0)[MASK].all()


def test_padding_content_and_length_do_not_change_the_features():
    module = jax.jit(encoder())
    reference = module(IDS, MASK).features
    other = module(jnp.where(MASK, IDS, 7), MASK).features
    np.testing.assert_array_equal(other, reference)
    short = module(IDS[1:, :3], MASK[1:, :3]).features
    np.testing.assert_allclose(reference[1:, :3], short, atol=1e-5)


def test_a_text_without_tokens_is_zero():
    features = jax.jit(encoder())(IDS, jnp.zeros_like(MASK)).features
    np.testing.assert_array_equal(features, 0)


def test_attention_looks_both_ways_and_order_matters():
    module = jax.jit(encoder())
    reference = module(IDS, MASK).features
    assert jnp.abs(module(IDS.at[0, 4].set(8), MASK).features[0, 0] - reference[0, 0]).max() > 1e-6
    swapped = module(IDS.at[0, :2].set(jnp.array([1, 3])), MASK).features
    assert jnp.abs(swapped[0, 4] - reference[0, 4]).max() > 1e-6


def test_gradient_reaches_every_parameter():
    graph, state = nnx.split(encoder(length=5))
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(jnp.sin(nnx.merge(graph, s)(IDS, MASK).features))))(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_too_long_text_is_refused():
    with pytest.raises(UserError, match="position table of 4"):
        encoder(length=4)(IDS, MASK)


def test_built_by_name():
    config = {"name": "transformer", "vocabulary_size": 7, "length": 4, "width": 8, "layers": 1, "heads": 2}
    module = build(TEXT_ENCODERS, config, "text encoder", rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    tokens = module(jnp.zeros((1, 3), int), jnp.ones((1, 3), bool))
    assert tokens.features.dtype == jnp.bfloat16 and tokens.features.shape == (1, 3, module.width)
