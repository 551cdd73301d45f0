"""Initial weights and noise come from streams named by the path of their part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import quantizers
from videogen.nn import Block, Linear, Stack, draw_by_name, example_keys, named_key
from videogen.nn.linear import for_each_layer, truncated_normal


class Pair(nnx.Module):
    def __init__(self, rngs, extra=False, depth=2):
        if extra:
            self.added = Linear(4, 4, rngs=rngs)
        self.first = Linear(4, 4, rngs=rngs)
        self.stack = Stack(lambda r: Block(8, {"heads": 2}, {"hidden": 8}, rngs=r), depth, rngs=rngs)
        self.quantizer = quantizers.build({"name": "vq", "size": 4, "width": 4}, rngs=rngs)


def drawn(seed=0, name="net", **settings):
    modules = {name: Pair(nnx.Rngs(1), **settings)}
    draw_by_name(modules, jax.random.key(seed))
    return modules[name]


def leaves(module):
    found = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in found}


def test_one_more_part_changes_no_other():
    alone, together = leaves(drawn()), leaves(drawn(extra=True))
    assert set(together) - set(alone) == {"added/kernel", "added/bias"}
    for path, value in alone.items():
        np.testing.assert_array_equal(value, together[path], err_msg=path)


def test_more_layers_leave_the_first_ones_as_they_are():
    path = "stack/layers/attention/out/kernel"
    few, many = leaves(drawn(depth=2))["stack/layers/attention/query_key_value/kernel"], leaves(drawn(depth=3))
    np.testing.assert_array_equal(few, many["stack/layers/attention/query_key_value/kernel"][:2])
    assert len({layer.tobytes() for layer in many[path]}) == 3


def test_values_are_those_of_the_key_of_their_path():
    kernel = leaves(drawn(seed=3))["first/kernel"]
    key = named_key(jax.random.key(3), "net/first/kernel")
    np.testing.assert_array_equal(kernel, jax.nn.initializers.lecun_normal()(key, (4, 4), jnp.float32))
    # Another seed and another name of the module give other values; two parts of one kind differ.
    assert not np.array_equal(kernel, leaves(drawn(seed=4))["first/kernel"])
    assert not np.array_equal(kernel, leaves(drawn(seed=3, name="other"))["first/kernel"])
    assert not np.array_equal(kernel, leaves(drawn(seed=3, extra=True))["added/kernel"])


def test_every_drawn_variable_is_drawn_anew():
    """Also those that are no parameters: the codes of a moving-average codebook, of length 1."""
    before, after = leaves(Pair(nnx.Rngs(1))), leaves(drawn())
    constant = {path for path, value in before.items() if np.ptp(value) == 0}
    same = {path for path in before if np.array_equal(before[path], after[path])}
    assert same == constant and "quantizer/sums" in constant
    np.testing.assert_allclose(np.linalg.norm(after["quantizer/codebook"], axis=-1), 1, rtol=1e-6)


def test_each_layer_is_drawn_by_its_number():
    key, initializer = jax.random.key(0), truncated_normal(0.5)
    stacked = for_each_layer(initializer)(key, (3, 2, 5), jnp.float32)
    one = [initializer(jax.random.fold_in(key, i), (2, 5), jnp.float32) for i in range(3)]
    np.testing.assert_array_equal(stacked, jnp.stack(one))


def test_a_named_key_of_examples_is_the_named_key_of_each():
    keys = example_keys(jax.random.key(2), 3)
    each = jnp.stack([jax.random.key_data(named_key(key, "noise")) for key in keys])
    np.testing.assert_array_equal(jax.random.key_data(named_key(keys, "noise")), each)
    assert len(np.unique(each, axis=0)) == 3
    assert not np.array_equal(jax.random.key_data(named_key(keys, "mask")), each)


@pytest.mark.parametrize("name", ["noise", ""])
def test_a_named_key_stays_what_it_was(name):
    """CRC-32 of the name: the same on every machine and in every version of Python."""
    number = {"noise": 4255749673, "": 0}[name]
    expected = jax.random.fold_in(jax.random.key(0), number)
    assert jnp.array_equal(jax.random.key_data(named_key(jax.random.key(0), name)), jax.random.key_data(expected))
