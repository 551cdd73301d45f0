"""Resizes against numbers worked out by hand and against PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from videogen.nn import area_weights, cubic_weights, resize_area, resize_cubic

PAIRS = [(1, 2), (2, 5), (4, 8), (10, 14), (14, 14), (22, 27), (27, 12), (16, 6), (3, 1)]


def test_cubic_interpolation_has_pytorchs_constant_and_repeats_the_edge():
    expected = [0, -0.035156, -0.105469, 0.261719, 0.878906, 0.878906, 0.261719, -0.105469]
    np.testing.assert_allclose(cubic_weights(4, 8) @ [0, 0, 1, 0], expected, atol=1e-6)
    np.testing.assert_allclose(cubic_weights(2, 4) @ [0, 1], [-0.10546875, 0.2265625, 0.7734375, 1.10546875], atol=1e-7)


def test_an_area_is_the_mean_of_all_that_it_touches():
    bins = [(0, 2), (2, 5), (5, 7), (8, 10), (10, 13), (13, 15)]
    touched = [np.flatnonzero(row) for row in area_weights(16, 6)]
    assert [(row[0], row[-1]) for row in touched] == bins
    np.testing.assert_allclose(area_weights(16, 6) @ np.arange(16), [np.mean(pair) for pair in bins], rtol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), PAIRS)
def test_grids_are_resized_as_by_pytorch(inputs, outputs):
    grid = np.random.default_rng(0).normal(size=(2, inputs, inputs + 1, 3)).astype(np.float32)
    sides = (outputs, outputs + 2)
    theirs = torch.tensor(grid.astype(np.float64)).permute(0, 3, 1, 2)
    for resize, mode in ((resize_area, "area"), (resize_cubic, "bicubic")):
        expected = torch.nn.functional.interpolate(theirs, size=sides, mode=mode).permute(0, 2, 3, 1)
        np.testing.assert_allclose(resize(jnp.asarray(grid), sides), expected, atol=2e-6)


def test_sides_that_stay_are_left_to_the_bit_and_time_is_one_more_side():
    video = np.random.default_rng(1).normal(size=(2, 4, 3, 5, 2)).astype(np.float32)
    for resize, weights in ((resize_area, area_weights), (resize_cubic, cubic_weights)):
        np.testing.assert_array_equal(resize(jnp.asarray(video), (4, 3, 5)), video)
        expected = np.einsum("st,bthwc->bshwc", weights(4, 2), video)
        np.testing.assert_allclose(resize(jnp.asarray(video), (2, 3, 5)), expected, atol=1e-6)
