"""Laws of training times, their shift, and the weights of the losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.diffusion import (
    EDM,
    PREDICTIONS,
    WEIGHTS,
    LogitNormal,
    LogNormalSigma,
    Mode,
    Noisy,
    RectifiedFlow,
    Uniform,
    VariancePreserving,
    draw_times,
    shift_by_exponent,
    shift_by_frames,
    shift_time,
)
from videogen.errors import UserError

FLOW, KEY = RectifiedFlow(), jax.random.key(0)


def test_logit_normal_quantiles_and_its_two_names():
    t = draw_times(LogitNormal(0.5, 0.7), FLOW, KEY, (20000,))
    logit = jnp.log(t / (1 - t))
    np.testing.assert_allclose([logit.mean(), logit.std()], [0.5, 0.7], atol=0.02)
    np.testing.assert_allclose(draw_times(LogNormalSigma(0.5, 0.7), FLOW, KEY, (20000,)), t, atol=1e-5)


def test_edm_draws_a_log_normal_sigma():
    t = draw_times(LogNormalSigma(), EDM(), KEY, (20000,))
    log_sigma = jnp.log(EDM().scales(t)[1])
    np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=0.03)


def test_mode_law():
    uniform = jnp.linspace(0, 1, 101)
    t = Mode(1.29)(uniform, FLOW)
    assert (jnp.diff(t) < 0).all() and t[0] == 1 and abs(t[-1]) < 1e-6 and abs(t[50] - 0.5) < 1e-6
    middle = ((t > 0.4) & (t < 0.6)).mean()
    assert middle > ((t < 0.1) | (t > 0.9)).mean() + 0.1
    np.testing.assert_allclose(Mode(0.0)(uniform, FLOW), 1 - uniform, atol=1e-6)
    with pytest.raises(UserError, match="scale of the mode"):
        Mode(3.0)


def test_stratified_draws_cover_all_strata_and_stay_fair():
    t = draw_times(Uniform(), FLOW, KEY, (32, 3), stratified=True)
    assert t.shape == (32, 3)
    for frame in range(3):
        np.testing.assert_array_equal(np.sort(np.asarray(t[:, frame] * 32).astype(int)), np.arange(32))
    draw = jax.vmap(lambda key: draw_times(Uniform(), FLOW, key, (4, 2), stratified=True)[0])
    many = draw(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.02)
    assert abs(np.corrcoef(many.T)[0, 1]) < 0.05
    # Nor do two frames lie equally far apart in all examples of one batch.
    apart = np.asarray((t[:, 0] - t[:, 1]) % 1)
    assert np.unique(np.round(apart * 32)).size > 10
    frames = np.asarray(draw_times(Uniform(), FLOW, KEY, (512, 3), stratified=True))
    assert np.abs(np.corrcoef(frames.T) - np.eye(3)).max() < 0.15


def test_times_stay_inside_where_the_laws_are_finite(monkeypatch):
    """Draws of exactly 0 and 1, which a generator of float32 numbers gives, have no infinite quantile."""
    for edge in (0.0, 1.0):
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(), edge=edge, **_: jnp.full(shape, edge))
        for times in (LogitNormal(), LogNormalSigma()):
            t = draw_times(times, EDM(), KEY, (4,))
            assert np.isfinite(t).all() and ((t >= 0) & (t <= 1)).all() and np.isfinite(times(t, EDM())).all()
            np.testing.assert_allclose(draw_times(times, FLOW, KEY, (4,)), times(jnp.full(4, abs(edge - 1e-6)), FLOW))


def test_shift_composes_and_fixes_the_ends():
    t = jnp.linspace(0, 1, 50)
    np.testing.assert_allclose(shift_time(shift_time(t, 2.0), 3.0), shift_time(t, 6.0), atol=1e-6)
    np.testing.assert_array_equal(shift_time(t, 1.0), t)
    assert shift_time(t, 5.0)[0] == 0 and shift_time(t, 5.0)[-1] == 1
    np.testing.assert_allclose(shift_time(jnp.array([0.28, 0.12]), 8.0), [0.757, 0.522], atol=1e-3)
    np.testing.assert_allclose(shift_time(np.array([1, 0.75, 0.5, 0.25]), 5), [1, 0.9375, 0.83333, 0.625], atol=1e-5)
    drawn = draw_times(Uniform(), FLOW, KEY, (100,), shift=3.0)
    np.testing.assert_allclose(drawn, shift_time(draw_times(Uniform(), FLOW, KEY, (100,)), 3.0), rtol=1e-6)


def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square():
    t = jnp.linspace(0.05, 0.95, 20)
    np.testing.assert_allclose(FLOW.half_log_snr(shift_time(t, 4.0)), FLOW.half_log_snr(t) - np.log(4), atol=1e-5)
    plain, shifted = VariancePreserving("linear"), VariancePreserving("linear", snr_shift=16.0)
    at = (jnp.arange(50, 1000, 100) + 1) / 1000
    np.testing.assert_allclose(shifted.half_log_snr(at), plain.half_log_snr(at) - np.log(4), atol=1e-4)


def test_shifts_of_the_public_systems():
    np.testing.assert_allclose([shift_by_exponent(1024), shift_by_exponent(4096)], [2.58571, 7.76790], atol=1e-5)
    ours = [shift_by_frames(*size) for size in [(256, 1), (4096, 1), (256, 33), (2304, 33)]]
    np.testing.assert_allclose(ours, [1, 3, 5.74456, 11.8721], atol=1e-4)


@pytest.mark.parametrize("process", [FLOW, VariancePreserving()], ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_weighted_error_is_the_same_whatever_is_predicted(process, prediction):
    clean, noise, error = jax.random.normal(KEY, (3, 16, 4))
    t = jnp.linspace(0.1, 0.9, 16)
    noisy = process.add_noise(clean, noise, t)
    guess = process.convert(clean + 0.1 * error, noisy, t, "x0", prediction)
    for weighting, weight in WEIGHTS.items():
        weighted = dataclasses.replace(process, prediction=prediction, weighting=weighting)
        loss = weighted.loss(guess, clean, Noisy(noisy, noise), t).sum(-1)
        expected = weight(*process.scales(t)) * (0.01 * error**2).sum(-1)
        np.testing.assert_allclose(loss, expected, rtol=5e-3)


def test_weights_are_the_sheets():
    t = jnp.linspace(0.02, 0.98, 25)
    alpha, sigma = VariancePreserving().scales(t)
    np.testing.assert_allclose(WEIGHTS["v"](alpha, sigma), 1 / sigma**2, rtol=1e-5)
    np.testing.assert_allclose(WEIGHTS["epsilon"](alpha, sigma), alpha**2 / sigma**2, rtol=1e-5)
    np.testing.assert_allclose(WEIGHTS["velocity"](1 - t, t), 1 / t**2, rtol=1e-5)
    np.testing.assert_allclose(WEIGHTS["cosmap"](1 - t, t), 2 / (np.pi * (1 - 2 * t + 2 * t**2)), rtol=1e-5)
    ones = jnp.ones_like(t)
    np.testing.assert_allclose(WEIGHTS["edm"](ones, t), (t**2 + 0.25) / (0.5 * t) ** 2, rtol=1e-5)
    assert float(WEIGHTS["min_snr"](alpha, sigma).max()) == 5
    even = (jnp.arange(1000) + 0.5) / 1000
    bell = RectifiedFlow(weighting="bell").loss_weight(even)
    assert bell[500] > bell[250] > bell[1] >= 0 and abs(float(bell.mean()) - 1) < 1e-4
    with pytest.raises(UserError, match="did you mean 'min_snr'"):
        RectifiedFlow(weighting="minsnr")
