"""Dropping conditioning marks exactly the chosen examples and keeps every shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.conditioning import NULL_LABEL, Conditioning, EncodedText
from videogen.errors import UserError
from videogen.nn import MicroBatch


def example() -> Conditioning:
    mask = jnp.array([[True, True, False], [True, False, False], [True, True, True]])
    return Conditioning(text=EncodedText(jnp.ones((3, 3, 4)), mask), label=jnp.array([5, 0, 7]))


def test_null_is_absent_everywhere_with_the_same_shapes():
    conditioning = example()
    null = conditioning.null()
    assert not null.text.mask.any()
    np.testing.assert_array_equal(null.label, [NULL_LABEL] * 3)
    assert jax.tree.map(jnp.shape, null) == jax.tree.map(jnp.shape, conditioning)
    assert jax.tree.structure(null) == jax.tree.structure(conditioning)


def test_drop_touches_only_the_marked_examples():
    dropped = example().drop(jnp.array([False, True, False]))
    np.testing.assert_array_equal(dropped.text.mask[jnp.array([0, 2])], example().text.mask[jnp.array([0, 2])])
    assert not dropped.text.mask[1].any()
    np.testing.assert_array_equal(dropped.label, [5, NULL_LABEL, 7])


def test_a_share_is_dropped_by_the_place_of_an_example_in_the_whole_batch():
    labels, key = Conditioning(label=jnp.arange(400)), jax.random.key(0)
    dropped = np.asarray(labels.drop_share(0.25, key, MicroBatch()).label)
    assert 70 < (dropped == NULL_LABEL).sum() < 130
    np.testing.assert_array_equal(dropped[dropped != NULL_LABEL], np.arange(400)[dropped != NULL_LABEL])
    second = Conditioning(label=jnp.arange(1, 400, 2)).drop_share(0.25, key, MicroBatch(1, 2))
    np.testing.assert_array_equal(second.label, dropped[1::2])
    np.testing.assert_array_equal(labels.drop_share(1.0, key, MicroBatch()).label, np.full(400, NULL_LABEL))
    assert labels.drop_share(0.0, key, MicroBatch()) is labels
    assert Conditioning().drop_share(0.5, key, MicroBatch()) == Conditioning()


def test_with_null_is_the_batch_and_then_its_unconditional_twin():
    both = example().with_null()
    np.testing.assert_array_equal(both.label, [5, 0, 7, *[NULL_LABEL] * 3])
    np.testing.assert_array_equal(both.text.mask[:3], example().text.mask)
    assert not both.text.mask[3:].any()
    np.testing.assert_array_equal(both.text.features[3:], example().text.features)


@pytest.mark.parametrize("part", ["text", "label"])
def test_absent_parts_stay_absent(part):
    conditioning = Conditioning(**{part: getattr(example(), part)})
    assert conditioning.batch_size == 3
    other = {"text": "label", "label": "text"}[part]
    assert getattr(conditioning.null(), other) is None


def test_conditioning_without_parts():
    assert Conditioning().null() == Conditioning()
    with pytest.raises(UserError, match="no part"):
        _ = Conditioning().batch_size


def test_conditioning_crosses_jit():
    null = jax.jit(lambda conditioning, drop: conditioning.drop(drop))(example(), jnp.ones(3, bool))
    np.testing.assert_array_equal(null.label, example().null().label)
