"""The multi-condition encoder: shapes, gate, dropped conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.conditioning import MapEncoder
from videogen.errors import UserError


@pytest.fixture(scope="module")
def encoder():
    return MapEncoder(2, (4, 6, 8), (1, 2, 2), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def maps():
    return jax.random.uniform(jax.random.key(1), (2, 3, 12, 8, 6))


def test_published_sizes_give_512_channels_at_an_eighth():
    def embed(maps):
        return MapEncoder(rngs=nnx.Rngs(0))(maps)

    assert jax.eval_shape(embed, jnp.zeros((1, 2, 272, 224, 6))).shape == (1, 2, 34, 28, 512)


def test_the_convolutions_are_grouped_ones(encoder, maps):
    """The features equal those of convolutions with one group for each condition."""

    @jax.jit
    def grouped(x):
        for first, second in zip(*encoder.towers, strict=True):
            kernel = jnp.concatenate([first.kernel[...][0], second.kernel[...][0]], axis=-1)
            layout, sides = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
            x = jax.lax.conv_general_dilated(
                x, kernel, first.stride[1:], sides, dimension_numbers=layout, feature_group_count=2
            )
            x = jax.nn.silu(x + jnp.concatenate([first.bias[...], second.bias[...]]))
        return x

    wanted = grouped(maps.reshape(6, 12, 8, 6)).reshape(2, 3, 3, 2, 16)
    np.testing.assert_allclose(jnp.concatenate(encoder.features(maps), axis=-1), wanted, atol=1e-5)


def test_a_gate_at_its_ends_passes_one_condition_only(encoder, maps):
    """Property 7: logits of +100 and -100 give the features of the first condition, and zeros."""
    graph, state = nnx.split(encoder)
    extreme = nnx.merge(graph, jax.tree.map(lambda x: x, state))
    last = extreme.gate[1]
    last.kernel.set_value(jnp.zeros_like(last.kernel[...]))
    last.bias.set_value(jnp.array([100.0, -100.0]))
    out = extreme(maps)
    np.testing.assert_allclose(out[..., :8], encoder.features(maps)[0], rtol=1e-6)
    np.testing.assert_allclose(out[..., 8:], 0, atol=1e-30)


def test_a_dropped_condition_is_zero_and_its_map_does_not_matter(encoder, maps):
    dropped = jnp.array([[False, True], [True, False]])
    out = encoder(maps, dropped)
    np.testing.assert_array_equal(out[0, ..., 8:], 0)
    np.testing.assert_array_equal(out[1, ..., :8], 0)
    assert float(jnp.abs(out[0, ..., :8]).max()) > 0
    changed = maps.at[0, ..., 3:].set(0.9).at[1, ..., :3].set(0.1)
    np.testing.assert_array_equal(out, encoder(changed, dropped))


def test_frames_do_not_see_each_other(encoder, maps):
    np.testing.assert_allclose(encoder(maps)[:, 1:2], encoder(maps[:, 1:2]), atol=1e-6)


def test_a_gradient_reaches_every_parameter(encoder, maps):
    grads = nnx.grad(lambda m: jnp.sum(m(maps) ** 2))(encoder)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_channels_and_strides_of_other_numbers_are_refused():
    with pytest.raises(UserError, match="one of each"):
        MapEncoder(2, (4, 8), (1, 2, 2), rngs=nnx.Rngs(0))
