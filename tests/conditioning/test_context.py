"""Absent conditioning is one learned embedding and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.conditioning import Conditioning, EncodedText, NullableContext
from videogen.errors import UserError
from videogen.nn import Attention

MASK = jnp.array([[True, True, False], [False, False, False], [True, True, True]])


def text() -> EncodedText:
    return EncodedText(jax.random.normal(jax.random.key(0), (3, 3, 8)), MASK)


def test_text_is_kept_and_absent_text_becomes_the_null_vector():
    module = NullableContext(8, rngs=nnx.Rngs(0))
    context, mask = module(Conditioning(text=text()))
    np.testing.assert_array_equal(mask, MASK.at[1, 0].set(True))
    np.testing.assert_array_equal(context[0, :2], text().features[0, :2])
    np.testing.assert_array_equal(context[2], text().features[2])
    np.testing.assert_array_equal(context[1, 0], module.null_text.get_value())


def test_null_text_depends_on_nothing_but_the_null_embedding():
    module = NullableContext(8, classes=4, rngs=nnx.Rngs(0))
    attention = Attention(8, 2, context_width=8, rngs=nnx.Rngs(1))
    graph, state = nnx.split(module)
    query = jax.random.normal(jax.random.key(1), (3, 5, 8))

    def attended(state, features):
        conditioning = Conditioning(text=EncodedText(features, MASK), label=jnp.array([0, -1, 2]))
        context, mask = nnx.merge(graph, state)(conditioning)
        return attention(query, context, key_mask=mask)

    def null_example(state, features):
        return jnp.sum(jnp.sin(attended(state, features)[1]))

    to_state, to_features = jax.grad(null_example, argnums=(0, 1))(state, text().features)
    np.testing.assert_array_equal(to_features, 0)
    assert jnp.abs(to_state["null_text"].get_value()).max() > 0
    rows = jnp.abs(to_state["label"]["table"].get_value()).max(axis=1)
    assert rows[4] > 0 and not rows[:4].any()
    # And the other way round: an example with text does not see the null vector.
    to_state = jax.grad(lambda s: jnp.sum(attended(s, text().features)[0] ** 2))(state)
    np.testing.assert_array_equal(to_state["null_text"].get_value(), 0)


def test_features_of_masked_tokens_never_matter():
    module = NullableContext(8, rngs=nnx.Rngs(0))
    dirty = dataclasses.replace(text(), features=jnp.where(MASK[..., None], text().features, jnp.nan))
    clean_context, _ = module(Conditioning(text=text()))
    context, _ = module(Conditioning(text=dirty))
    np.testing.assert_array_equal(context, clean_context)
    assert jnp.isfinite(context).all()


def test_label_is_the_last_key():
    module = NullableContext(8, classes=4, rngs=nnx.Rngs(0))
    context, mask = module(Conditioning(text=text(), label=jnp.array([3, -1, 0])))
    assert context.shape == (3, 4, 8) and mask[:, -1].all()
    np.testing.assert_array_equal(context[:, -1], module.label.table.get_value()[jnp.array([3, 4, 0])])


def test_label_without_text():
    module = NullableContext(8, classes=4, rngs=nnx.Rngs(0))
    context, mask = module(Conditioning(label=jnp.array([3, 1])))
    assert context.shape == (2, 2, 8) and mask.all()
    np.testing.assert_array_equal(context[:, 0], jnp.stack([module.null_text.get_value()] * 2))


def test_missing_label_is_the_null_label():
    module = NullableContext(8, classes=4, rngs=nnx.Rngs(0))
    with_null, _ = module(Conditioning(text=text(), label=jnp.full(3, -1)))
    without, _ = module(Conditioning(text=text()))
    np.testing.assert_array_equal(with_null, without)


def test_every_parameter_gets_a_gradient():
    module = NullableContext(8, classes=2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    conditioning = Conditioning(text=text(), label=jnp.array([0, 1, -1]))
    gradient = jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(conditioning)[0] ** 2))(state)
    assert all(jnp.all(jnp.abs(leaf) > 0) for leaf in jax.tree.leaves(gradient))


def test_impossible_inputs():
    with pytest.raises(UserError, match="classes"):
        NullableContext(8, rngs=nnx.Rngs(0))(Conditioning(label=jnp.array([0])))
    with pytest.raises(UserError, match="width 8"):
        NullableContext(6, rngs=nnx.Rngs(0))(Conditioning(text=text()))
