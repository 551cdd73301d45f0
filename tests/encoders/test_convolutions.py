"""Convolutions and poolings with TensorFlow's padding, written out in NumPy, on odd and even sides."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from tests.encoders.oracles import assert_near
from videogen.encoders.convolutions import BatchNorm, Convolve, paddings, pool


def same_padded(x, size, stride, fill=0.0):
    """TensorFlow's rule, side by side: outputs = ceil(side / stride), the odd place behind."""
    edges = [(0, 0)]
    for n, k, s in zip(x.shape[1:-1], size, stride, strict=True):
        missing = max((int(np.ceil(n / s)) - 1) * s + k - n, 0)
        edges.append((missing // 2, missing - missing // 2))
    return np.pad(x, [*edges, (0, 0)], constant_values=fill)


def windows(x, size, stride):
    """Every window of a padded map: ``[batch, *out, *size, channel]``."""
    axes = tuple(range(1, x.ndim - 1))
    view = np.moveaxis(np.lib.stride_tricks.sliding_window_view(x, size, axes), len(axes) + 1, -1)
    return view[:, *(slice(None, None, s) for s in stride)]


def convolve_same(x, kernel, stride):
    size = kernel.shape[:-2]
    found = windows(same_padded(x, size, stride), size, stride)
    return np.tensordot(found, kernel, len(size) + 1)


def pool_same(x, size, stride):
    found = windows(same_padded(x, size, stride, -np.inf), size, stride)
    return found.max(axis=tuple(range(-1 - len(size), -1)))


SIDES = [(5, 6, 7), (8, 9, 4), (2, 13, 10)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("size", "stride"), [((7, 7, 7), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((1, 1, 1), (1, 1, 1))])
def test_convolution_with_same_padding(sides, size, stride):
    x = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32)
    module = Convolve(3, 5, size, stride=stride, padding="same", bias=False, rngs=nnx.Rngs(0))
    expected = convolve_same(x, np.asarray(module.kernel.get_value()), stride)
    assert_near(jax.jit(module)(x), expected, 1e-5)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(
    ("size", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))]
)
def test_max_pooling_with_same_padding(sides, size, stride):
    x = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32) - 5
    np.testing.assert_array_equal(pool(x, size, kind="max", stride=stride, padding="same"), pool_same(x, size, stride))


def test_same_padding_of_known_sides():
    assert paddings("same", (224, 225), (7, 7), (2, 2)) == [(2, 3), (3, 3)]
    assert paddings("same", (112, 7), (3, 2), (2, 2)) == [(0, 1), (0, 1)]
    assert paddings("same", (5,), (1,), (2,)) == [(0, 0)]


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 0), (2, 1)])
@pytest.mark.parametrize("count", [True, False])
def test_poolings_with_even_padding_are_those_of_torch(stride, padding, count):
    x = np.random.default_rng(0).normal(size=(2, 8, 9, 3)).astype(np.float32)
    theirs, settings = torch.tensor(np.moveaxis(x, -1, 1).copy()), dict(stride=stride, padding=padding)
    mean = torch.nn.functional.avg_pool2d(theirs, 3, **settings, count_include_pad=count)
    ours = pool(x, (3, 3), kind="mean", **settings, count_padding=count)
    assert_near(ours, np.moveaxis(mean.numpy(), 1, -1), 1e-6)
    largest = torch.nn.functional.max_pool2d(theirs, 3, **settings)
    np.testing.assert_array_equal(pool(x, (3, 3), kind="max", **settings), np.moveaxis(largest.numpy(), 1, -1))


def test_dilation_in_time():
    x = np.random.default_rng(0).normal(size=(1, 9, 5, 6, 3)).astype(np.float32)
    ours = Convolve(3, 4, (3, 1, 1), padding=(4, 0, 0), dilation=4, rngs=nnx.Rngs(0))
    kernel = torch.tensor(np.asarray(ours.kernel.get_value())).permute(4, 3, 0, 1, 2)
    theirs = torch.tensor(np.moveaxis(x, -1, 1).copy())
    expected = torch.nn.functional.conv3d(theirs, kernel, padding=(4, 0, 0), dilation=(4, 1, 1))
    assert_near(jax.jit(ours)(x), np.moveaxis(expected.numpy(), 1, -1), 1e-5)


def test_batch_norm_by_stored_statistics():
    theirs, ours = torch.nn.BatchNorm2d(3, eps=0.1).eval(), BatchNorm(3, epsilon=0.1, rngs=nnx.Rngs(0))
    pairs = dict(mean="running_mean", variance="running_var", scale="weight", shift="bias")
    for k, (own, name) in enumerate(pairs.items()):
        value = np.linspace(0.5, 2 + k, 3).astype(np.float32)
        theirs.state_dict()[name].copy_(torch.tensor(value))
        vars(ours)[own].set_value(value)
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    expected = theirs(torch.tensor(np.moveaxis(x, -1, 1).copy()))
    assert_near(ours(x), np.moveaxis(expected.detach().numpy(), 1, -1), 1e-5)
