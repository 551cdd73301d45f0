"""Solvers against data whose probability flow and distribution are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.oracles import Mixture
from videogen.diffusion import (
    DDIM,
    EDM,
    DPMSolver2M,
    Euler,
    Heun,
    KarrasGrid,
    RectifiedFlow,
    Step,
    UniformGrid,
    UniPC,
    VariancePreserving,
    sample,
    stagger,
)
from videogen.errors import UserError

FLOW, VP = RectifiedFlow(), VariancePreserving(zero_terminal_snr=True)
GAUSSIAN = Mixture()
TWO = Mixture((0.3, 0.7), (-1.0, 0.8), (0.2, 0.1))
DETERMINISTIC = [Euler(), Heun(), DDIM(), DPMSolver2M(), UniPC()]
STOCHASTIC = [DDIM(eta=1.0), DDIM(eta=0.5), DPMSolver2M(stochastic=True)]
KEYS = jax.random.split(jax.random.key(0), 2)


def draw(data, process, solver, times, *, keys=KEYS, shape=(3,), prediction="v", start=None):
    """``sample`` with the perfect denoiser."""
    process = dataclasses.replace(process, prediction=prediction)
    denoiser = data.denoiser(process)
    return jax.jit(lambda keys, start: sample(denoiser, process, solver, times, keys, shape, start=start))(keys, start)


@pytest.mark.parametrize(
    ("solver", "low", "high"),
    [(Euler(), 0.9, 1.1), (DDIM(), 0.9, 1.1), (Heun(), 1.8, 2.3), (DPMSolver2M(), 1.8, 2.3), (UniPC(), 1.9, 3.2)],
    ids=str,
)
def test_order_of_convergence(solver, low, high):
    start, errors = jnp.array([[-1.0, 0.3, 2.0]]), []
    for steps in (20, 60):
        times = np.linspace(0.98, 0.05, steps + 1)
        end = draw(GAUSSIAN, FLOW, solver, times, keys=KEYS[:1], prediction="velocity", start=start)
        errors.append(float(jnp.abs(end - GAUSSIAN.flow(FLOW, start, 0.98, 0.05)).max()))
    assert low < np.log(errors[0] / errors[1]) / np.log(3) < high


def test_error_of_the_sheet():
    """Euler and DDIM, q = .3 around 0, t from .98 to .05 in 20 steps: 2.11e-2 for both."""
    data, times = Mixture(means=(0.0,)), np.linspace(0.98, 0.05, 21)
    start = jnp.full((1, 3), data.deviation(FLOW, 0.98))
    exact = data.flow(FLOW, start, 0.98, 0.05)
    ends = [draw(data, FLOW, solver, times, keys=KEYS[:1], start=start) for solver in (Euler(), DDIM(), DPMSolver2M())]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)
    np.testing.assert_allclose([float(abs(end - exact)[0, 0]) for end in ends[:2]], 2.11e-2, rtol=0.01)
    assert float(abs(ends[2] - exact)[0, 0]) < 0.7e-2


@pytest.mark.parametrize(
    ("process", "solver"),
    [(FLOW, solver) for solver in DETERMINISTIC + STOCHASTIC]
    + [(process, solver) for process in (VP, EDM()) for solver in (Heun(), UniPC(), *STOCHASTIC[::2])],
    ids=str,
)
def test_distribution_is_recovered(process, solver):
    grid = KarrasGrid() if isinstance(process, EDM) else UniformGrid()
    # The ancestral sampler is of order 1 and narrows what it draws by as much.
    times = grid(240 if isinstance(solver, DDIM) else 60, process)
    drawn = np.asarray(draw(TWO, process, solver, times, keys=KEYS[:1], shape=(12000,)))
    assert drawn.dtype == np.float32
    right = drawn > -0.2
    assert abs(right.mean() - 0.7) < 0.03
    parts = [drawn[~right], drawn[right]]
    np.testing.assert_allclose([p.mean() for p in parts], TWO.means, atol=0.03)
    np.testing.assert_allclose([p.std() for p in parts], TWO.deviations, rtol=0.15)


@pytest.mark.parametrize("solver", STOCHASTIC, ids=str)
def test_stochastic_solvers_keep_the_marginal_on_the_way(solver):
    for last in (0.7, 0.3):
        drawn = draw(GAUSSIAN, FLOW, solver, np.linspace(1.0, last, 61), keys=KEYS[:1], shape=(20000,))
        np.testing.assert_allclose(drawn.std(), GAUSSIAN.deviation(FLOW, last), rtol=0.03)
        np.testing.assert_allclose(drawn.mean(), 0.5 * (1 - last), atol=0.02)


@pytest.mark.parametrize("solver", DETERMINISTIC + STOCHASTIC, ids=str)
@pytest.mark.parametrize(("process", "steps"), [(FLOW, 1), (EDM(), 4)], ids=str)
def test_a_denoiser_that_knows_the_data_gives_them(solver, process, steps):
    clean = jnp.array([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]])
    process = dataclasses.replace(process, prediction="x0")
    drawn = sample(lambda x, t: clean, process, solver, UniformGrid()(steps, process), KEYS, (3,))
    np.testing.assert_allclose(drawn, clean, atol=1e-5)


@pytest.mark.parametrize("solver", [UniPC(), Heun()], ids=str)
def test_the_result_is_the_same_whatever_is_predicted(solver):
    times = np.linspace(0.95, 0.0, 9)
    drawn = [draw(TWO, VP, solver, times, prediction=name) for name in ("x0", "epsilon", "velocity", "edm")]
    for other in drawn[1:]:
        np.testing.assert_allclose(other, drawn[0], atol=2e-4)


@pytest.mark.parametrize("solver", [DDIM(), DPMSolver2M(), UniPC(), Heun()], ids=str)
def test_a_rectified_flow_and_a_variance_preserving_process_are_one(solver):
    half_log_snr = np.linspace(-3, 3, 12)
    ends = []
    for process in (FLOW, VariancePreserving()):
        times = np.asarray(process.time_of(half_log_snr))
        alpha, sigma = (float(scale) for scale in process.scales(jnp.float32(times[0])))
        # The same point, in each process's own scale.
        start = jnp.array([[0.3, -0.8, 1.1]]) * alpha
        end = draw(TWO, process, solver, times, keys=KEYS[:1], start=start)
        ends.append(end / float(process.scales(jnp.float32(times[-1]))[0]))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-3)


def test_one_step_of_the_corrector_is_the_sheets():
    """Two UniPC steps by hand; the second starts from the corrected first."""
    times, start = np.array([0.9, 0.6, 0.4], np.float32), jnp.array([[1.2]])
    clean = lambda x, t: GAUSSIAN.clean(FLOW, x, jnp.float32([t]))  # noqa: E731
    half_log_snr = np.log((1 - times) / times)
    h = np.diff(half_log_snr)
    first = clean(start, 0.9)
    guess = 0.6 / 0.9 * start - 0.4 * np.expm1(-h[0]) * first
    second = clean(guess, 0.6)
    corrected = guess - 0.4 * np.expm1(-h[0]) * 0.5 * (second - first)
    estimate = second + (second - first) * h[1] / (2 * h[0])
    expected = 0.4 / 0.6 * corrected - 0.6 * np.expm1(-h[1]) * estimate
    np.testing.assert_allclose(draw(GAUSSIAN, FLOW, UniPC(), times, keys=KEYS[:1], start=start), expected, rtol=1e-5)


@pytest.mark.parametrize("solver", [DDIM(eta=1.0), DPMSolver2M(), UniPC()], ids=str)
def test_examples_depend_on_their_key_alone(solver):
    keys, times = jax.random.split(jax.random.key(3), 4), UniformGrid()(6, FLOW)
    together = draw(TWO, FLOW, solver, times, keys=keys)
    np.testing.assert_array_equal(together, draw(TWO, FLOW, solver, times, keys=keys))
    swapped = draw(TWO, FLOW, solver, times, keys=keys[jnp.array([2, 0])])
    np.testing.assert_allclose(swapped, together[jnp.array([2, 0])], atol=1e-6)
    assert float(jnp.abs(together[0] - together[1]).max()) > 1e-3


@pytest.mark.parametrize("solver", DETERMINISTIC + STOCHASTIC[:1] + STOCHASTIC[2:], ids=str)
def test_frames_at_their_own_times(solver):
    times, keys = UniformGrid()(8, FLOW), KEYS[:1]
    start = jax.random.normal(jax.random.key(5), (1, 3, 4))
    run = lambda grid: draw(TWO, FLOW, solver, grid, keys=keys, shape=(3, 4), start=start)  # noqa: E731
    together = run(times)
    np.testing.assert_allclose(run(stagger(times, 3, 0)), together, atol=1e-6)
    if not (getattr(solver, "eta", 0) or getattr(solver, "stochastic", False)):
        # The oracle looks at every frame alone, so the order of the frames cannot matter.
        for lag in (2, 8):
            np.testing.assert_allclose(run(stagger(times, 3, lag)), together, atol=2e-6)
    given = stagger(times, 3, 2)
    given[:, 0] = 0
    continued = run(given)
    np.testing.assert_array_equal(continued[:, 0], start[:, 0])
    assert bool(jnp.isfinite(continued).all()) and float(jnp.abs(continued[:, 1:] - start[:, 1:]).max()) > 0.1


def test_a_network_in_bfloat16_keeps_the_state_in_float32():
    times, exact = UniformGrid()(20, FLOW), TWO.denoiser(FLOW)
    rough = lambda x, t: exact(x, t).astype(jnp.bfloat16)  # noqa: E731
    drawn = [sample(d, FLOW, UniPC(), times, KEYS, (200,)) for d in (exact, rough)]
    assert drawn[1].dtype == jnp.float32
    assert float(jnp.abs(drawn[0] - drawn[1]).mean()) < 5e-3


def test_mistakes_teach():
    zero, flow = lambda x, t: 0 * x, RectifiedFlow(prediction="epsilon")
    with pytest.raises(UserError, match="predict v, x0 or velocity"):
        sample(zero, flow, DDIM(), UniformGrid()(4, FLOW), KEYS, (3,))
    assert sample(zero, flow, DDIM(), UniformGrid(0.999)(4, FLOW), KEYS, (3,)).shape == (2, 3)
    with pytest.raises(UserError, match="never rises"):
        sample(zero, FLOW, DDIM(), np.array([0.1, 0.9]), KEYS, (3,))
    with pytest.raises(UserError, match="eta"):
        DDIM(eta=2.0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("process", [FLOW, VP], ids=str)
def test_a_step_of_ddim_is_that_of_the_paper(process, eta):
    """Song et al. (2021), equation 12, in their variables a = alpha² and x / alpha' for processes of another scale."""
    time, later = jnp.array([0.7, 0.6]), jnp.array([0.5, 0.3])
    sample, clean, fresh = jax.random.normal(jax.random.key(0), (3, 2, 4))
    step = Step.of(process, time, later, sample)
    moved = DDIM(eta).update(sample, lambda x, t: clean, step, fresh)
    alpha, sigma, next_alpha, next_sigma = (
        np.asarray(x, np.float64)[:, None] for t in (time, later) for x in process.scales(t)
    )
    # The noise that is new: their sigma, of variance-preserving scales.
    decay = alpha * next_sigma / (sigma * next_alpha)
    new = eta * next_sigma * np.sqrt(1 - decay**2)
    noise = (np.asarray(sample) - alpha * clean) / sigma
    expected = next_alpha * clean + np.sqrt(next_sigma**2 - new**2) * noise + new * np.asarray(fresh)
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5)
    assert eta == 0 or np.abs(new).min() > 0.05
