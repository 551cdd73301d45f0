"""Attention over time before a block: nothing at first, and at each place by itself."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videogen.nn import block_stack
from videogen.nn.rolling import Rolled, rolled
from videogen.nn.space_time import Divided

SECTIONS = dict(attention={"heads": 2}, mlp={"hidden": 16})
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1 + 3 * 4, 8)), jnp.float32)
"""One token, and three frames of four patches."""


def divided(layers: int = 2):
    def around(block, rngs):
        return Divided(block, 8, 2, 1, rngs=rngs)

    return block_stack(8, layers, around=around, rngs=nnx.Rngs(0), **SECTIONS)


def test_it_begins_as_the_block():
    stack = divided()
    plain = block_stack(8, 2, rngs=nnx.Rngs(1), **SECTIONS)
    nnx.update(plain.layers, nnx.state(stack.layers.block))
    np.testing.assert_array_equal(stack(X, frames=3), plain(X))


def test_patches_attend_over_time_at_their_place():
    """What the attention adds is that of the rows of each place, by hand; the first tokens get nothing."""
    layer = divided(1).layer(0)
    kernel = layer.time.out.kernel
    kernel.set_value(jax.random.normal(jax.random.key(1), kernel.shape))
    layer.block = lambda x: x
    found = np.asarray(layer(X, frames=3) - X)
    assert not found[:, 0].any()
    norm, time = layer.time_norm, layer.time
    angles = np.arange(3)[:, None] * 10_000.0 ** (-np.arange(2) / 2)[None]
    for b in range(2):
        for place in range(4):
            rows = norm(X[b, 1 + place :: 4])
            q, k, v = (
                np.asarray(part).reshape(3, 2, 4)
                for part in np.split(np.asarray(time.query_key_value(rows)), 3, axis=-1)
            )

            def turned(x):
                a, b = x[..., :2], x[..., 2:]
                c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
                return np.concatenate([a * c - b * s, a * s + b * c], axis=-1)

            scores = np.einsum("qhd,khd->hqk", turned(q), turned(k)) / 2
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(3, 8)
            expected = mixed @ np.asarray(kernel.get_value())
            np.testing.assert_allclose(found[b, 1 + place :: 4], expected, rtol=1e-4, atol=1e-4)


def test_a_rolled_block_is_the_block_behind_the_roll():
    def around(block, rngs):
        return Rolled(block, fold=4, patches=4)

    stack = block_stack(8, 2, around=around, rngs=nnx.Rngs(0), **SECTIONS)
    x = jax.random.normal(jax.random.key(0), (6, 7, 8))
    expected = x
    for layer in range(2):
        moved = rolled(expected.reshape(2, 3, 7, 8), fold=4, patches=4).reshape(x.shape)
        expected = stack.layer(layer).block(moved)
    np.testing.assert_allclose(stack(x, frames=3), expected, atol=1e-5)
    # Texts alone are no frames.
    alone = stack.layer(1).block(stack.layer(0).block(x))
    np.testing.assert_allclose(stack(x), alone, atol=1e-5)
