"""Grids of sampling times: those of the public systems to the digit."""

import jax
import numpy as np
import pytest

from videogen.diffusion import (
    EDM,
    KarrasGrid,
    LinearQuadraticGrid,
    LogSNRGrid,
    PowerGrid,
    RectifiedFlow,
    UniformGrid,
    VariancePreserving,
    shift_by_exponent,
    shift_time,
    stagger,
)
from videogen.errors import UserError

FLOW = RectifiedFlow()


@pytest.mark.parametrize(
    ("grid", "steps", "first", "last"),
    [
        (UniformGrid(0.999, 5.0), 50, [0.999800, 0.995732, 0.991530, 0.987187], [0.172265, 0.092507, 0]),
        # Of diffusers since 0.42, for the same model: from 1 to 0.001.
        (UniformGrid(1.0, 5.0, end=0.001), 50, [1, 0.995939, 0.991744, 0.987408], [0.175969, 0.096778, 0]),
        (UniformGrid(1.0, 5.0), 50, [1, 0.995935, 0.991736, 0.987395], [0.172414, 0.092593, 0]),
        (UniformGrid(0.999, 3.0), 40, [0.999666, 0.991189, 0.982420, 0.973342], [0.136240, 0.071361, 0]),
        (UniformGrid(1.0, 7.0), 50, [1, 0.997093, 0.994083, 0.990964], [0.225806, 0.125, 0]),
        (UniformGrid(1, shift_by_exponent(4096)), 8, [1, 0.98194, 0.95885, 0.92830, 0.88595], [0.72139, 0.52600, 0]),
        (UniformGrid(1, shift_by_exponent(4096), 0.1), 8, [1, 0.96571, 0.92187, 0.86386, 0.78345], [0.471, 0.1, 0]),
        (LinearQuadraticGrid(), 8, [1, 0.99375, 0.9875, 0.98125, 0.975, 0.90938], [0.725, 0.42188, 0]),
    ],
    ids=["wan_unipc", "wan_diffusers", "wan_dpm", "wan_40", "hunyuan", "ltx", "ltx_stretched", "linear_quadratic"],
)
def test_times_of_public_systems(grid, steps, first, last):
    times = grid(steps, FLOW)
    assert times.shape == (steps + 1,) and times.dtype == np.float32
    np.testing.assert_allclose(times[: len(first)], first, atol=6e-6)
    np.testing.assert_allclose(times[-len(last) :], last, atol=6e-6)


@pytest.mark.parametrize("process", [EDM(), FLOW, VariancePreserving()], ids=str)
def test_karras_grid_has_the_papers_sigmas_on_every_process(process):
    times = KarrasGrid(20.0)(12, process)
    ramp = np.arange(12) / 11
    expected = (20 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 20 ** (1 / 7))) ** 7
    # A cosine process of 1000 steps has no noise below 0.006 but between data and its first step.
    np.testing.assert_allclose(np.exp(-process.half_log_snr(times[:-1])), expected, rtol=2e-3)
    assert times[-1] == 0
    if isinstance(process, EDM):
        np.testing.assert_allclose(np.diff(times[:-1], n=2), 0, atol=1e-6)


def test_log_snr_grid_is_even_and_works_inside_jit():
    times = LogSNRGrid()(9, FLOW)
    np.testing.assert_allclose(np.diff(FLOW.half_log_snr(times[:-1]), n=2), 0, atol=1e-3)
    np.testing.assert_array_equal(jax.jit(lambda: LogSNRGrid()(9, FLOW))(), times)
    with pytest.raises(UserError, match="start below 1"):
        LogSNRGrid(start=1.0)(9, FLOW)


@pytest.mark.parametrize("grid", [UniformGrid(), UniformGrid(last=0.1), LinearQuadraticGrid(), KarrasGrid()], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_grids_of_few_steps_fall_to_zero(grid, steps):
    times = grid(steps, EDM())
    assert times.shape == (steps + 1,) and times[0] == 1 and times[-1] == 0 and (np.diff(times) < 0).all()


def test_staggered_frames():
    times = UniformGrid()(4, FLOW)
    np.testing.assert_array_equal(stagger(times, 3, 0), np.repeat(times[:, None], 3, 1))
    pyramid = stagger(times, 3, 1)
    np.testing.assert_allclose(pyramid[2], [0.5, 0.75, 1])
    assert (pyramid[0] == 1).all() and (pyramid[-1] == 0).all() and pyramid.shape == (7, 3)
    one_by_one = stagger(times, 3, 4)
    assert (((one_by_one > 0) & (one_by_one < 1)).sum(1) <= 1).all() and one_by_one.shape == (13, 3)


def test_the_models_shift_comes_before_the_stretch():
    """LTX: the shift follows the tokens of the clip, and the last step still begins at 0.1."""
    shift = shift_by_exponent(4096)
    times = UniformGrid(last=0.1)(8, FLOW, shift)
    np.testing.assert_allclose(times, UniformGrid(1.0, shift, 0.1)(8, FLOW), atol=1e-6)
    np.testing.assert_allclose(times[-2:], [0.1, 0], atol=1e-6)
    np.testing.assert_allclose(UniformGrid(shift=2.0)(5, FLOW, 3.0), UniformGrid(shift=6.0)(5, FLOW), atol=1e-6)
    quadratic = LinearQuadraticGrid()
    np.testing.assert_allclose(quadratic(5, FLOW, 3.0), shift_time(quadratic(5, FLOW), 3.0), rtol=1e-6)


@pytest.mark.parametrize("process", [EDM(), FLOW, VariancePreserving()], ids=str)
@pytest.mark.parametrize("grid", [KarrasGrid(20.0), LogSNRGrid()], ids=str)
def test_grids_in_sigma_are_left_alone_by_the_models_shift(grid, process):
    np.testing.assert_array_equal(grid(12, process, 5.0), grid(12, process))


@pytest.mark.parametrize(
    ("grid", "settings"),
    [
        (UniformGrid, {"start": 0.0}),
        (UniformGrid, {"start": 1.5}),
        (UniformGrid, {"last": 0.0}),
        (UniformGrid, {"shift": -1.0}),
        (LinearQuadraticGrid, {"share": float("nan")}),
        (KarrasGrid, {"sigma_min": 0.0}),
        (LogSNRGrid, {"last": 1.0}),
    ],
)
def test_grids_that_cannot_fall_are_refused(grid, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        grid(**settings)


def test_a_power_crowds_the_steps_near_the_data():
    np.testing.assert_allclose(PowerGrid()(4, None), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(PowerGrid(2.0)(4, None), [1, 0.5625, 0.25, 0.0625, 0])
