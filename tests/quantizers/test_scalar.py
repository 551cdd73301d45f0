"""Finite scalar quantization against vector-quantize-pytorch and the sheet's exact values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.quantizers import FiniteScalarQuantizer

torch = pytest.importorskip("torch")
oracle = pytest.importorskip("vector_quantize_pytorch")

SETS = [[8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [3, 4]]


@pytest.mark.parametrize("levels", SETS, ids=str)
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_bit_equal_to_vector_quantize_pytorch(levels, scale):
    z = np.random.default_rng(0).normal(scale=scale, size=(4, 500, len(levels))).astype(np.float32)
    ours = jax.jit(FiniteScalarQuantizer(levels))(jnp.asarray(z))
    codes, indices = oracle.FSQ(levels).eval()(torch.tensor(z))
    np.testing.assert_array_equal(ours.indices[..., 0], indices.numpy())
    np.testing.assert_array_equal(ours.latents, codes.numpy())


@pytest.mark.parametrize("levels", SETS, ids=str)
def test_lookup_is_bit_equal_for_every_id(levels):
    quantizer = FiniteScalarQuantizer(levels)
    ids = np.arange(quantizer.size)
    expected = oracle.FSQ(levels).indices_to_codes(torch.tensor(ids)[None])[0]
    np.testing.assert_array_equal(quantizer.lookup(jnp.asarray(ids)[:, None]), expected.numpy())


@pytest.mark.parametrize(("levels", "expected"), [(3, (-1, 1)), (4, (-2, 1)), (5, (-2, 2)), (7, (-3, 3)), (8, (-4, 3))])
def test_every_level_is_reached(levels, expected):
    z = jnp.linspace(-6, 6, 4001)[:, None]
    integers = np.unique(jax.jit(FiniteScalarQuantizer([levels]))(z).latents * (levels // 2))
    np.testing.assert_array_equal(integers, np.arange(expected[0], expected[1] + 1))


@pytest.mark.parametrize("levels", [801, 1001, 1002, 1003, 4096, 65_537])
def test_many_levels_stay_in_the_vocabulary(levels):
    quantizer = FiniteScalarQuantizer([levels])
    ids = quantizer(jnp.array([[-50.0], [0.0], [50.0]])).indices[:, 0]
    np.testing.assert_array_equal(ids, [0, levels // 2, levels - 1])


@pytest.mark.parametrize("levels", range(3, 20))
def test_zero_maps_to_zero_and_the_middle_id(levels):
    quantized = jax.jit(FiniteScalarQuantizer([levels]))(jnp.zeros((1, 1)))
    assert float(quantized.latents[0, 0]) == 0 and int(quantized.indices[0, 0]) == levels // 2


def test_first_dimension_is_fastest_and_codes_lie_in_the_unit_cube():
    quantizer = FiniteScalarQuantizer([3, 4, 5])
    codes = quantizer.lookup(jnp.arange(60)[:, None])
    digits = np.array([d[::-1] for d in itertools.product(range(5), range(4), range(3))])
    np.testing.assert_array_equal(codes, ((digits - [1, 2, 2]) / np.array([1, 2, 2])).astype(np.float32))
    assert jnp.abs(codes).max() <= 1
    assert quantizer.vocabulary == (60,)


def test_gradient_is_that_of_the_bound():
    quantizer = FiniteScalarQuantizer([8, 5])
    z = jax.random.normal(jax.random.key(0), (2,))
    levels = np.array([8, 5])
    half = (levels - 1) * 1.001 / 2
    shift = np.arctanh(np.array([0.5, 0.0]) / half)
    expected = np.diag(half * (1 - np.tanh(z + shift) ** 2) / (levels // 2))
    np.testing.assert_allclose(jax.jacobian(lambda z: quantizer(z).latents)(z), expected, atol=1e-5)


def test_gradient_equals_the_oracle():
    z = np.random.default_rng(0).normal(size=(1, 50, 3)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=z.shape).astype(np.float32)
    ours = jax.grad(lambda z: jnp.sum(FiniteScalarQuantizer([8, 6, 5])(z).latents * weight))(jnp.asarray(z))
    leaf = torch.tensor(z, requires_grad=True)
    (oracle.FSQ([8, 6, 5])(leaf)[0] * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(ours, leaf.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("levels", [[2, 2, 2], [4, 3, 2], [5, 8, 7]], ids=str)
@pytest.mark.parametrize("bound", ["symmetric", "clamp"])
def test_symmetric_form_equals_the_oracle(levels, bound):
    z = np.random.default_rng(0).normal(size=(2, 200, len(levels))).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=z.shape).astype(np.float32)
    library = oracle.FSQ(levels, preserve_symmetry=True, bound_hard_clamp=bound == "clamp")
    quantizer = FiniteScalarQuantizer(levels, bound=bound)
    leaf = torch.tensor(z, requires_grad=True)
    codes, indices = library(leaf)
    (codes * torch.tensor(weight)).sum().backward()
    quantized = jax.jit(quantizer)(jnp.asarray(z))
    np.testing.assert_array_equal(quantized.indices[..., 0], indices.numpy())
    np.testing.assert_allclose(quantized.latents, codes.detach().numpy(), atol=1e-6)
    gradient = jax.grad(lambda z: jnp.sum(quantizer(z).latents * weight))(jnp.asarray(z))
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("levels", range(2, 10))
def test_symmetric_levels_lie_evenly_from_minus_one_to_one(levels):
    codes = FiniteScalarQuantizer([levels], bound="symmetric").lookup(jnp.arange(levels)[:, None])[:, 0]
    np.testing.assert_allclose(codes, np.linspace(-1, 1, levels), atol=1e-6)


def test_clamped_codes_are_the_nearest_levels():
    z = jnp.linspace(-1.5, 1.5, 301)[:, None]
    codes = FiniteScalarQuantizer([4], bound="clamp")(z).latents
    distance = jnp.abs(z - jnp.linspace(-1, 1, 4))
    np.testing.assert_allclose(jnp.abs(codes - z)[:, 0], distance.min(-1), atol=1e-6)


def test_there_is_nothing_to_train():
    assert not FiniteScalarQuantizer([3, 3])(jnp.zeros((1, 2))).losses


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("levels", [(8, 8, 8, 8), (8, 5, 5, 5), (8, 8, 8, 6, 5)])
def test_no_input_has_an_id_beyond_the_vocabulary(levels, dtype):
    """Users' notes on tokens, case 4: ids come from rounded integers, whatever the size or type of what comes in."""
    quantizer = FiniteScalarQuantizer(levels)
    random = np.random.default_rng(0).normal(0, 1, (100_000, len(levels)))
    inputs = np.concatenate([random, np.zeros((1, len(levels))), *(np.full((1, len(levels)), x) for x in (1e4, -1e4))])
    for train in (False, True):
        found = quantizer(jnp.asarray(inputs, dtype), train=train, key=jax.random.key(0))
        assert found.indices.min() >= 0 and found.indices.max() == quantizer.size - 1
        # All codes of few are reached in bfloat16, too: 1001 and 1002 are one number there.
        assert quantizer.size > 1000 or (found.statistics["counts"] > 0).all()


def test_very_many_codes_have_an_id_for_every_dimension():
    """4 ** 16 = 2 ** 32 is no int32, and a table of all codes would take 34 GB."""
    quantizer = FiniteScalarQuantizer((4,) * 16)
    assert quantizer.vocabulary == (4,) * 16 and not jax.tree.leaves(nnx.state(quantizer))
    found = quantizer(jnp.asarray(np.random.default_rng(0).normal(0, 2, (50, 16)), jnp.float32))
    assert found.indices.shape == (50, 16) and found.indices.min() == 0 and found.indices.max() == 3
    assert found.statistics["counts"].shape == (64,) and found.statistics["counts"].sum() == 50 * 16
    np.testing.assert_array_equal(quantizer.lookup(found.indices), found.latents)
    assert FiniteScalarQuantizer((8,) * 8).vocabulary == (2**24,)
    assert FiniteScalarQuantizer((8,) * 8 + (3,)).vocabulary == (8,) * 8 + (3,)
