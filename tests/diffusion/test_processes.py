"""The algebra of alpha and sigma: the sheet's schedules, exact conversions, frames at their own times."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.oracles import Mixture
from videogen.diffusion import (
    EDM,
    PREDICTIONS,
    PROCESSES,
    Gaussian,
    RectifiedFlow,
    VariancePreserving,
    ancestral,
    broadcast_right,
    build,
)
from videogen.errors import UserError

VP = VariancePreserving()
ALL = [RectifiedFlow(), VP, VariancePreserving("scaled_linear", zero_terminal_snr=True), EDM()]


def of(process: Gaussian, prediction: str) -> Gaussian:
    return dataclasses.replace(process, prediction=prediction)


def of_index(process: VariancePreserving, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.asarray(s) for s in process.scales((jnp.array(indices) + 1.0) / process.steps))


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(1.0, [0.999575, 0.999116, 0.492300, 0.000444, 0]), (3.0, [0.998726, 0.997397, 0.309790, 0.000250, 0])],
)
def test_cogvideox_schedule(shift, expected):
    process = VariancePreserving("scaled_linear", snr_shift=shift, zero_terminal_snr=True)
    alpha, sigma = of_index(process, [0, 1, 499, 998, 999])
    np.testing.assert_allclose(alpha, expected, atol=1e-6)
    assert alpha[-1] == 0 and sigma[-1] == 1
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)


def test_cosine_schedule_of_cdt():
    alpha, _ = of_index(VariancePreserving("cosine", 8192), [0, 4095, 8190, 8191])
    np.testing.assert_allclose(alpha**2, [0.9999952, 0.4938436, 3.619e-8, 3.619e-11], rtol=4e-4)


def test_linear_schedule_is_the_product_of_the_betas():
    alpha, sigma = of_index(VariancePreserving("linear"), list(range(1000)))
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(alpha, signal**0.5, rtol=2e-6)
    np.testing.assert_allclose(sigma, (1 - signal) ** 0.5, rtol=1e-4)


def test_zero_terminal_snr_keeps_the_start_and_the_order():
    plain, bent = (VariancePreserving("linear", zero_terminal_snr=zero) for zero in (False, True))
    (before, _), (after, _) = (of_index(process, list(range(1000))) for process in (plain, bent))
    assert before[-1] > 1e-3 and after[-1] == 0 and (np.diff(after) < 0).all()
    np.testing.assert_allclose(after[0], before[0], rtol=1e-6)


@pytest.mark.parametrize("process", [*ALL, VariancePreserving("linear"), VariancePreserving("cosine", 50)], ids=str)
def test_half_log_snr_falls_and_has_an_inverse(process):
    t = jnp.linspace(0.001, 0.999, 400)
    half_log_snr = process.half_log_snr(t)
    assert (jnp.diff(half_log_snr) < 0).all() and process.half_log_snr(jnp.array(0.0)) == jnp.inf
    np.testing.assert_allclose(process.time_of(half_log_snr), t, atol=2e-6)
    alpha, sigma = process.scales(jnp.array(0.0))
    assert alpha == 1 and sigma == 0


@pytest.mark.parametrize("process", [RectifiedFlow(), VP, EDM()], ids=str)
@pytest.mark.parametrize(("source", "target"), [*itertools.product(PREDICTIONS, PREDICTIONS)])
def test_every_prediction_gives_every_other(process, source, target):
    keys = jax.random.split(jax.random.key(0), 3)
    clean, noise = (jax.random.normal(key, (64, 3)) for key in keys[:2])
    # Where data and noise weigh within a factor of two; beyond, the equations amplify rounding by that factor.
    t = process.time_of(jax.random.uniform(keys[2], (64,), minval=-0.7, maxval=0.7))
    noisy = process.add_noise(clean, noise, t)
    value, expected = (of(process, name).target(clean, noise, t) for name in (source, target))
    converted = process.convert(value, noisy, t, source, target)
    np.testing.assert_allclose(converted, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(process.convert(converted, noisy, t, target, source), value, atol=3e-6)


@pytest.mark.parametrize("prediction", ["x0", "v", "velocity", "edm"])
def test_data_follow_at_both_ends_of_time(prediction):
    clean, noise = jax.random.normal(jax.random.key(0), (2, 2, 5))
    t = jnp.array([0.0, 1.0])
    for process in (RectifiedFlow(), VariancePreserving("linear", zero_terminal_snr=True)):
        process = of(process, prediction)
        value, noisy = process.target(clean, noise, t), process.add_noise(clean, noise, t)
        np.testing.assert_allclose(process.data(value, noisy, t), clean, atol=1e-6)


def test_edm_preconditioning_is_the_papers():
    process, t = EDM(prediction="edm"), jnp.array([0.1, 0.4, 0.9])
    noisy, network = jax.random.normal(jax.random.key(0), (2, 3, 4))
    sigma = np.asarray(process.scales(t)[1])[:, None]
    total = np.sqrt(sigma**2 + 0.25)
    expected = 0.25 / total**2 * noisy + 0.5 * sigma / total * network
    np.testing.assert_allclose(process.data(network, noisy, t), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(process.network_input(noisy, t), noisy / total, rtol=1e-6)
    np.testing.assert_array_equal(of(process, "v").network_input(noisy, t), noisy)
    data, noise = (
        0.5 * jax.random.normal(jax.random.key(1), (3, 50000)),
        jax.random.normal(jax.random.key(2), (3, 50000)),
    )
    scaled = process.network_input(process.add_noise(data, noise, t), t)
    np.testing.assert_allclose(scaled.std(1), 1, atol=0.01)
    np.testing.assert_allclose(process.target(data, noise, t).std(1), 1, atol=0.01)


@pytest.mark.parametrize("deviation", [0.5, 1.0, 3.0])
def test_edm_is_of_unit_scale_for_data_of_any_deviation(deviation):
    process, t = EDM(data_deviation=deviation, prediction="edm"), jnp.array([0.1, 0.4, 0.9])
    data, noise = jax.random.normal(jax.random.key(1), (2, 3, 50000)) * jnp.array([deviation, 1.0])[:, None, None]
    noisy = process.add_noise(data, noise, t)
    np.testing.assert_allclose(process.network_input(noisy, t).std(1), 1, atol=0.01)
    value = process.target(data, noise, t)
    np.testing.assert_allclose(value.std(1), 1, atol=0.01)
    np.testing.assert_allclose(process.data(value, noisy, t), data, atol=1e-4 * deviation)
    weight = dataclasses.replace(process, weighting="x0").loss_weight(t)
    alpha, sigma = process.scales(t)
    # c_out: the error of the data is that of the network times it.
    np.testing.assert_allclose(weight, (sigma * deviation) ** 2 / (sigma**2 + deviation**2), rtol=1e-5)


@pytest.mark.parametrize("process", ALL, ids=str)
def test_frames_have_their_own_times(process):
    clean, noise = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 5))
    t = jnp.array([[0.1, 0.5, 0.9], [0.3, 0.3, 0.3]])
    noisy = process.add_noise(clean, noise, t)
    for example, frame in np.ndindex(2, 3):
        alone = process.add_noise(clean[example, frame][None], noise[example, frame][None], t[example, frame][None])
        np.testing.assert_allclose(noisy[example, frame], alone[0], rtol=1e-6)
    np.testing.assert_allclose(noisy[1], process.add_noise(clean, noise, jnp.array([0.0, 0.3]))[1], rtol=1e-6)
    assert broadcast_right(t, clean).shape == (2, 3, 1, 1)


def test_mistakes_teach():
    with pytest.raises(UserError, match="did you mean 'scaled_linear'"):
        PROCESSES["variance_preserving"]("scaled_liner")
    with pytest.raises(UserError, match="snr_shift of VariancePreserving must be a number above 0"):
        VariancePreserving(snr_shift=0.0)
    with pytest.raises(UserError, match="did you mean 'velocity'"):
        VariancePreserving(prediction="velocty")


@pytest.mark.parametrize("process", ALL, ids=str)
def test_data_are_corrupted_by_the_key_of_each_example(process):
    clean, t = jax.random.normal(jax.random.key(0), (2, 3, 50_000)), jnp.array([[0.1, 0.5, 0.9], [0.0, 0.3, 1.0]])
    keys = jax.random.split(jax.random.key(1), 2)
    noisy = process.corrupt(clean, t, keys)
    np.testing.assert_array_equal(noisy.values, process.add_noise(clean, noisy.noise, t))
    np.testing.assert_array_equal(noisy.values[1, 0], clean[1, 0])
    np.testing.assert_allclose(noisy.noise.mean(-1), 0, atol=4 / 50_000**0.5)
    np.testing.assert_allclose(noisy.noise.std(-1), 1, rtol=0.02)
    alone = process.corrupt(clean[1:], t[1:], keys[1:])
    np.testing.assert_array_equal(alone.noise[0], noisy.noise[1])


@pytest.mark.parametrize("weighting", ["", "min_snr", "x0"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_the_target_is_0_and_so_is_that_of_what_is_given(prediction, weighting):
    process = VariancePreserving(prediction=prediction, weighting=weighting)
    clean, t = jax.random.normal(jax.random.key(0), (2, 2, 5)), jnp.array([[0.4, 0.0], [0.0, 0.8]])
    noisy = process.corrupt(clean, t, jax.random.split(jax.random.key(1), 2))
    target = process.target(clean, noisy.noise, t)
    np.testing.assert_array_equal(process.loss(target, clean, noisy, t), 0)
    loss, slope = jax.value_and_grad(lambda x: process.loss(x, clean, noisy, t).sum())(target + 0.1)
    weight = process.loss_weight(jnp.array([0.4, 0.8]))
    np.testing.assert_allclose(loss, 5 * 0.01 * weight.sum(), rtol=1e-4)
    np.testing.assert_allclose(slope[0, 0], 0.2 * weight[0], rtol=1e-4)
    np.testing.assert_array_equal(slope[0, 1], 0)


@pytest.mark.parametrize("process", [RectifiedFlow(), VP, EDM()], ids=str)
def test_a_step_is_the_posterior_of_the_estimated_data(process):
    """x_later given x_t and the data is a Gaussian whose mean and variance DDPM's equation 7 has."""
    t, later = (process.time_of(jnp.array([level])) for level in (-0.6, 0.4))
    state, output = jnp.full((1, 100_000), 0.7), jnp.full((1, 100_000), -0.3)
    keys = jax.random.split(jax.random.key(0), 1)
    drawn = of(process, "x0").step(state, output, t, later, keys)
    (alpha, sigma), (next_alpha, next_sigma) = ([float(x[0]) for x in process.scales(at)] for at in (t, later))
    growth = alpha / next_alpha
    added = sigma**2 - (growth * next_sigma) ** 2
    mean = (next_alpha * added * -0.3 + growth * next_sigma**2 * 0.7) / sigma**2
    deviation = (added * next_sigma**2 / sigma**2) ** 0.5
    np.testing.assert_allclose(drawn.mean(), mean, atol=4 * deviation / 100_000**0.5)
    np.testing.assert_allclose(drawn.std(), deviation, rtol=0.01)
    np.testing.assert_array_equal(of(process, "x0").step(state, output, t, t, keys), state)


def test_steps_recover_the_distribution_of_the_data():
    """``ancestral`` with the perfect network, as for any family."""
    data, process = Mixture((0.3, 0.7), (-1.0, 0.8), (0.2, 0.1)), VariancePreserving(zero_terminal_snr=True)
    grid = jnp.linspace(1.0, 0.0, 201)[:, None]
    start = process.corrupt(jnp.zeros((1, 12_000)), 1.0, jax.random.split(jax.random.key(0), 1)).values
    drawn = jax.jit(
        lambda: ancestral(data.denoiser(process), process, grid, start, jax.random.split(jax.random.key(1), 1))
    )()
    right = np.asarray(drawn) > -0.2
    assert abs(right.mean() - 0.7) < 0.03
    np.testing.assert_allclose(np.asarray(drawn)[right].mean(), 0.8, atol=0.02)


def test_what_is_predicted_stands_beside_the_process():
    with pytest.raises(UserError, match="process 'edm' has no setting 'prediction'"):
        build("process", {"name": "edm", "prediction": "x0"}, prediction="edm")
