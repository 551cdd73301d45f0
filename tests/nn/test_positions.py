"""Rotary, learned and continuous positions, and the causal position generator."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.encoders.decoders import frequencies
from videogen.errors import UserError
from videogen.nn import (
    Attention,
    ContinuousPositionBias,
    LearnedPositions,
    PositionGenerator,
    RotaryScaling,
    angles_at,
    depthwise,
    rotary_angles,
    rotate,
    sincos_positions,
)


def score(q, k, q_position, k_position, shape) -> float:
    """The product of one query and one key after rotation to their places of a grid."""
    width = q.shape[-1]
    turned = [
        rotate(x[None, None, None], rotary_angles([1] * len(shape), width, offset=place))
        for x, place in ((q, q_position), (k, k_position))
    ]
    return float(jnp.sum(turned[0] * turned[1]))


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 5)])
def test_rotary_scores_depend_on_the_offset_only(shape):
    q, k = jax.random.normal(jax.random.key(0), (2, 12))
    here, there = [0] * len(shape), [1, 2, 3][: len(shape)]
    for shift in ([5, 0, 0], [0, 3, 0], [2, 7, 4]):
        shift = shift[: len(shape)]
        moved = [[a + s for a, s in zip(place, shift, strict=True)] for place in (here, there)]
        assert score(q, k, *moved, shape) == pytest.approx(score(q, k, here, there, shape), abs=1e-4)
    assert abs(score(q, k, here, there, shape) - score(q, k, there, here, shape)) > 1e-3
    for axis in range(len(shape)):
        step = [int(i == axis) for i in range(len(shape))]
        assert abs(score(q, k, here, step, shape) - score(q, k, here, here, shape)) > 1e-4


def test_rotary_grid_is_in_raster_order():
    angles = rotary_angles([2, 3, 4], 12)
    assert angles.shape == (24, 6)
    for row, place in enumerate(itertools.product(range(2), range(3), range(4))):
        np.testing.assert_allclose(angles[row : row + 1], rotary_angles([1, 1, 1], 12, offset=place))


@pytest.mark.parametrize("kind", ["linear", "ntk"])
def test_a_scale_of_one_changes_nothing(kind):
    scaling = RotaryScaling(kind=kind)
    np.testing.assert_array_equal(rotary_angles([3, 2, 4], 24, scaling=scaling), rotary_angles([3, 2, 4], 24))
    places = jnp.asarray(np.random.default_rng(0).random((2, 5, 1)) * 9)
    np.testing.assert_array_equal(angles_at(places, 8, scaling=scaling), angles_at(places, 8))


def test_longer_sequences_are_scaled_linearly_or_by_the_base():
    plain = rotary_angles([8], 16)
    linear = rotary_angles([32], 16, scaling=RotaryScaling(factor=4.0))
    np.testing.assert_allclose(linear[::4], plain, rtol=1e-6)
    ntk = rotary_angles([32], 16, scaling=RotaryScaling(factor=4.0, kind="ntk"))
    np.testing.assert_allclose(ntk, rotary_angles([32], 16, base=1e4 * 4 ** (16 / 14)), rtol=1e-6)
    # The fastest pair turns as before, the slowest as with linear scaling.
    np.testing.assert_allclose(ntk[:, 0], np.arange(32))
    np.testing.assert_allclose(ntk[:, -1], linear[:, -1], rtol=1e-5)
    own = frequencies(16, 1e4, {"rope_type": "ntk", "factor": 4.0})
    np.testing.assert_allclose(ntk[1], own, rtol=1e-6)
    np.testing.assert_allclose(linear[1], frequencies(16, 1e4, {"type": "linear", "factor": 4.0}), rtol=1e-6)
    with pytest.raises(UserError, match="factor of RotaryScaling must be a number of at least 1, got 0.5"):
        RotaryScaling(factor=0.5)


def test_rotary_offset_continues_a_grid():
    whole = rotary_angles([5, 2], 8)
    np.testing.assert_array_equal(rotary_angles([3, 2], 8, offset=[2, 0]), whole[4:])


def test_rotary_of_one_axis_has_the_published_frequencies():
    angles = rotary_angles([4], 8)
    expected = np.arange(4)[:, None] * 10_000.0 ** (-np.arange(4) * 2 / 8)
    np.testing.assert_allclose(angles, expected, rtol=1e-6)


def test_rotation_keeps_norms_and_dtype():
    x = jax.random.normal(jax.random.key(0), (2, 6, 3, 8))
    turned = rotate(x, rotary_angles([6], 8))
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    assert rotate(x.astype(jnp.bfloat16), rotary_angles([6], 8)).dtype == jnp.bfloat16


@pytest.mark.parametrize(("shape", "width"), [([4], 7), ([2, 2, 2], 4)])
def test_rotary_refuses_too_small_heads(shape, width):
    with pytest.raises(UserError, match="even head width"):
        rotary_angles(shape, width)


def test_sincos_positions_are_the_published_ones_and_differ_everywhere():
    features = sincos_positions([5], 8)
    angles = np.arange(5)[:, None] / 10_000.0 ** (np.arange(4) * 2 / 8)
    np.testing.assert_allclose(features, np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=1e-6)
    grid = sincos_positions([2, 3, 4], 12)
    assert grid.shape == (24, 12) and len(np.unique(grid.round(4), axis=0)) == 24
    # Raster order: the last axis moves first.
    np.testing.assert_allclose(grid[:4, [0, 1, 2, 3]], np.repeat(grid[:1, :4], 4, 0), atol=1e-6)


def test_learned_positions():
    positions = LearnedPositions(6, 4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(positions(4), positions.table.get_value()[:4])
    with pytest.raises(UserError, match="7 tokens do not fit the position table of 6"):
        positions(7)


@pytest.mark.parametrize("grid", [(2, 3), (1, 4)])
def test_continuous_bias_equals_the_direct_evaluation(grid):
    bias = ContinuousPositionBias(3, hidden=8, rngs=nnx.Rngs(0))
    bias.hidden.bias.set_value(jax.random.normal(jax.random.key(1), (8,)))
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    table = bias(*grid)
    assert table.shape == (3, len(places), len(places))
    for (i, query), (j, key) in itertools.product(enumerate(places), repeat=2):
        offset = np.array(query) - np.array(key)
        features = jnp.asarray(np.sign(offset) * np.log1p(np.abs(offset)), jnp.float32)
        direct = bias.out(jax.nn.gelu(bias.hidden(features)))
        np.testing.assert_allclose(table[:, i, j], direct, atol=1e-5)


def generator(width: int = 4, causal: bool = True) -> PositionGenerator:
    module = PositionGenerator(width, causal=causal, rngs=nnx.Rngs(0))
    module.taps.set_value(jax.random.normal(jax.random.key(5), (3, 3, 3, width)))
    return module


def grid(shape=(2, 5, 4, 3, 4)) -> jax.Array:
    return jax.random.normal(jax.random.key(2), shape)


def test_position_generator_is_causal_in_time_and_local():
    module, x = generator(), grid()
    out = module(x, time_axis=1)
    for t in range(5):
        changed = module(x.at[:, t].add(1.0), time_axis=1)
        touched = np.abs(np.asarray(changed - out)).max(axis=(0, 2, 3, 4)) > 1e-6
        np.testing.assert_array_equal(touched, [t <= s <= t + 2 for s in range(5)])
    changed = module(x.at[:, 0, 0, 0].add(1.0), time_axis=1)
    touched = np.abs(np.asarray(changed - out)).max(axis=(0, 1, 4)) > 1e-6
    np.testing.assert_array_equal(touched, [[i <= 1 and j <= 1 for j in range(3)] for i in range(4)])


def test_position_generator_prefix_equality():
    module, x = generator(), grid()
    np.testing.assert_allclose(module(x, time_axis=1)[:, :3], module(x[:, :3], time_axis=1), atol=1e-5)


def test_position_generator_layouts_agree():
    module, x = generator(), grid()
    time_last = jnp.moveaxis(x, 1, 3)
    expected = jnp.moveaxis(module(x, time_axis=1), 1, 3)
    np.testing.assert_allclose(module(time_last, time_axis=3), expected, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_position_generator_equals_a_grouped_convolution(causal):
    module, x = generator(causal=causal), grid()
    kernel = module.taps.get_value()[:, :, :, None, :]
    conv = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1, 1),
        ((2, 0) if causal else (1, 1), (1, 1), (1, 1)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=4,
    )
    np.testing.assert_allclose(module(x, time_axis=1), x + conv, atol=1e-4)


@pytest.mark.parametrize("before", [(2, 1, 1), (1, 1, 1), (1, 1, 2)])
def test_depthwise_gradients_equal_those_of_a_grouped_convolution(before):
    x, taps = grid(), jax.random.normal(jax.random.key(6), (3, 3, 3, 4))

    def conv(x, taps):
        padding = [(b, 2 - b) for b in before]
        names = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(
            x, taps[:, :, :, None], (1, 1, 1), padding, dimension_numbers=names, feature_group_count=4
        )

    weight = grid() * 0.5

    def loss(f):
        return jax.grad(lambda x, taps: jnp.sum(jnp.sin(f(x, taps)) * weight), argnums=(0, 1))(x, taps)

    for ours, theirs in zip(loss(lambda x, t: depthwise(x, t, before)), loss(conv), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_learned_positions_begin_with_deviation_a_fiftieth():
    table = LearnedPositions(200, 100, rngs=nnx.Rngs(0)).table.get_value()
    # Cut off at two deviations.
    assert float(table.std()) == pytest.approx(0.8796 * 0.02, rel=0.03)


def test_continuous_bias_computes_in_the_dtype_asked_for():
    assert ContinuousPositionBias(2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(2, 3).dtype == jnp.bfloat16


def test_angles_at_places_are_those_of_a_grid():
    for shape in ((5,), (3, 4), (2, 3, 4)):
        places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, len(shape))
        expected = rotary_angles(shape, 12, base=500.0)
        np.testing.assert_allclose(angles_at(jnp.asarray(places), 12, base=500.0), expected, rtol=1e-6)
    shifted = angles_at(jnp.array([[[3], [4]], [[0], [1]]]), 8)
    np.testing.assert_allclose(shifted, np.stack([rotary_angles([2], 8, offset=[o]) for o in (3, 0)]), rtol=1e-6)


def test_rotation_of_both_layouts_written_out():
    x, angles = jax.random.normal(jax.random.key(0), (2, 5, 3, 8)), rotary_angles([5], 8, base=100.0)
    np.testing.assert_allclose(angles, np.arange(5)[:, None] * 100.0 ** (-np.arange(4) / 4)[None], rtol=1e-6)
    for interleaved in (False, True):
        actual = rotate(x, angles, interleaved=interleaved)
        for place, pair in itertools.product(range(5), range(4)):
            i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
            turned = (np.asarray(x[:, place, :, i]) + 1j * np.asarray(x[:, place, :, j])) * np.exp(
                1j * angles[place, pair]
            )
            np.testing.assert_allclose(actual[:, place, :, i], turned.real, atol=1e-5)
            np.testing.assert_allclose(actual[:, place, :, j], turned.imag, atol=1e-5)
    order = np.arange(8).reshape(2, 4).T.ravel()
    np.testing.assert_allclose(
        rotate(x[..., order], angles, interleaved=True), rotate(x, angles)[..., order], atol=1e-6
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_with_an_angle_for_every_channel(interleaved):
    """Equal angles in a pair are a rotation; else each channel has its own, as V-JEPA 2 does it."""
    x, angles = jax.random.normal(jax.random.key(0), (2, 5, 3, 8)), rotary_angles([5], 8, base=100.0)
    both = np.repeat(angles, 2, axis=-1) if interleaved else np.tile(angles, 2)
    expected = rotate(x, angles, interleaved=interleaved)
    np.testing.assert_allclose(rotate(x, both, interleaved=interleaved), expected, atol=1e-6)
    own = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    actual = np.asarray(rotate(x, own, interleaved=interleaved))
    for pair in range(4):
        i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
        a, b = np.asarray(x[..., i]), np.asarray(x[..., j])
        np.testing.assert_allclose(actual[..., i], a * np.cos(own[:, i, None]) - b * np.sin(own[:, i, None]), atol=1e-5)
        np.testing.assert_allclose(actual[..., j], b * np.cos(own[:, j, None]) + a * np.sin(own[:, j, None]), atol=1e-5)


def test_rotation_by_examples():
    x, starts = jax.random.normal(jax.random.key(0), (2, 3, 2, 8)), (4, 0)
    angles = angles_at(jnp.array(starts)[:, None, None] + jnp.arange(3)[:, None], 8)
    for example, start in enumerate(starts):
        alone = rotate(x[example : example + 1], rotary_angles([3], 8, offset=[start]))
        np.testing.assert_allclose(rotate(x, angles)[example], alone[0], atol=1e-6)


@pytest.mark.parametrize("attended_axes", [1, 2])
def test_attention_with_angles_of_examples_on_a_grid(attended_axes):
    attention = Attention(16, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 16))
    rows = 2 * 3 if attended_axes == 1 else 2
    positions = jax.random.randint(jax.random.key(1), (rows, 24 // rows, 1), 0, 9)
    angles = angles_at(positions, 8)
    actual = attention(x, rotary=angles, attended_axes=attended_axes)
    flat = x.reshape(rows, -1, 16)
    for row in range(rows):
        alone = attention(flat[row : row + 1], rotary=angles[row])[0]
        np.testing.assert_allclose(actual.reshape(flat.shape)[row], alone, atol=1e-5)


def test_axes_may_share_a_head_unevenly_and_places_need_not_be_whole():
    """8 + 28 + 28 of 64 channels: axis 0 turns the first 4 pairs, the others 14 each."""
    places = jnp.array([[3.0, 0, 0], [0, 1.5, 0], [0, 0, 2.0]])
    angles = angles_at(places, 64, channels=(8, 28, 28))
    assert angles.shape == (3, 32)
    np.testing.assert_allclose(angles[0, :4], 3 * 10_000.0 ** -(np.arange(4) / 4), rtol=1e-6)
    np.testing.assert_allclose(angles[1, 4:18], 1.5 * 10_000.0 ** -(np.arange(14) / 14), rtol=1e-6)
    np.testing.assert_allclose(angles[2, 18:], 2 * 10_000.0 ** -(np.arange(14) / 14), rtol=1e-6)
    assert not angles[0, 4:].any() and not angles[1, :4].any() and not angles[1, 18:].any() and not angles[2, :18].any()
    for wrong in ((8, 28, 26), (7, 29, 28), (32, 32)):
        with pytest.raises(UserError, match="share the 64 channels of a head among 3 axes by even numbers"):
            angles_at(places, 64, channels=wrong)
