"""The algebra of alpha and sigma: the sheet's schedules, exact conversions, frames at their own times."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.diffusion import EDM, PREDICTIONS, PROCESSES, RectifiedFlow, VariancePreserving, loss_weight, spread
from videogen.errors import UserError

VP = VariancePreserving()
ALL = [RectifiedFlow(), VP, VariancePreserving("scaled_linear", zero_terminal_snr=True), EDM()]


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
    value, expected = (process.target(name, clean, noise, t) for name in (source, target))
    converted = process.convert(value, noisy, t, source, target)
    np.testing.assert_allclose(converted, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(process.convert(converted, noisy, t, target, source), value, atol=3e-6)


@pytest.mark.parametrize("prediction", ["x0", "v", "velocity", "edm"])
def test_data_follow_at_both_ends_of_time(prediction):
    clean, noise = jax.random.normal(jax.random.key(0), (2, 2, 5))
    t = jnp.array([0.0, 1.0])
    for process in (RectifiedFlow(), VariancePreserving("linear", zero_terminal_snr=True)):
        value = process.target(prediction, clean, noise, t)
        noisy = process.add_noise(clean, noise, t)
        np.testing.assert_allclose(process.convert(value, noisy, t, prediction, "x0"), clean, atol=1e-6)


def test_edm_preconditioning_is_the_papers():
    process, t = EDM(), jnp.array([0.1, 0.4, 0.9])
    noisy, network = jax.random.normal(jax.random.key(0), (2, 3, 4))
    sigma = np.asarray(process.scales(t)[1])[:, None]
    total = np.sqrt(sigma**2 + 0.25)
    expected = 0.25 / total**2 * noisy + 0.5 * sigma / total * network
    np.testing.assert_allclose(process.convert(network, noisy, t, "edm", "x0"), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(process.network_input(noisy, t, "edm"), noisy / total, rtol=1e-6)
    np.testing.assert_array_equal(process.network_input(noisy, t, "v"), noisy)
    data, noise = (
        0.5 * jax.random.normal(jax.random.key(1), (3, 50000)),
        jax.random.normal(jax.random.key(2), (3, 50000)),
    )
    scaled = process.network_input(process.add_noise(data, noise, t), t, "edm")
    np.testing.assert_allclose(scaled.std(1), 1, atol=0.01)
    np.testing.assert_allclose(process.target("edm", data, noise, t).std(1), 1, atol=0.01)


@pytest.mark.parametrize("deviation", [0.5, 1.0, 3.0])
def test_edm_is_of_unit_scale_for_data_of_any_deviation(deviation):
    process, t = EDM(data_deviation=deviation), jnp.array([0.1, 0.4, 0.9])
    data, noise = jax.random.normal(jax.random.key(1), (2, 3, 50000)) * jnp.array([deviation, 1.0])[:, None, None]
    noisy = process.add_noise(data, noise, t)
    np.testing.assert_allclose(process.network_input(noisy, t, "edm").std(1), 1, atol=0.01)
    value = process.target("edm", data, noise, t)
    np.testing.assert_allclose(value.std(1), 1, atol=0.01)
    np.testing.assert_allclose(process.convert(value, noisy, t, "edm", "x0"), data, atol=1e-4 * deviation)
    weight = loss_weight("x0", "edm", process, t)
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
    assert spread(t, clean).shape == (2, 3, 1, 1)


def test_mistakes_teach():
    with pytest.raises(UserError, match="did you mean 'scaled_linear'"):
        PROCESSES["variance_preserving"]("scaled_liner")
    with pytest.raises(UserError, match="snr_shift of VariancePreserving must be a number above 0"):
        VariancePreserving(snr_shift=0.0)
    with pytest.raises(UserError, match="did you mean 'velocity'"):
        VP.target("velocty", jnp.zeros(1), jnp.zeros(1), jnp.zeros(1))
