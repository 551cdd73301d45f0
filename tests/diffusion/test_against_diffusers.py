"""Our solvers against the public schedulers, step for step with the same denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.oracles import Mixture
from videogen.diffusion import DDIM, DPMSolver2M, Euler, RectifiedFlow, UniPC, VariancePreserving, sample

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

DATA = Mixture((0.4, 0.6), (-0.8, 0.7), (0.3, 0.2))
KEYS = jax.random.split(jax.random.key(7), 3)
STEPS, SHAPE = 12, (5,)


def noise(stream: int) -> np.ndarray:
    """The noise that ``sample`` draws: 0 for the start, then one per step."""
    return np.stack([np.asarray(jax.random.normal(jax.random.fold_in(key, stream), SHAPE)) for key in KEYS])


def theirs(scheduler, process, times, *, draws: bool = False, **settings) -> np.ndarray:
    denoiser = jax.jit(DATA.denoiser(process))
    noisy = torch.tensor(noise(0)) * float(process.scales(jnp.float32(times[0]))[1])
    for index, timestep in enumerate(scheduler.timesteps):
        output = denoiser(jnp.asarray(noisy.numpy()), jnp.full(len(KEYS), times[index]))
        fresh = {"variance_noise": torch.tensor(noise(index + 1))} if draws else {}
        output = torch.tensor(np.asarray(output))
        noisy = scheduler.step(output, timestep, noisy, **settings, **fresh).prev_sample
    return noisy.numpy()


def ours(solver, process, times) -> np.ndarray:
    denoiser = DATA.denoiser(process)
    return np.asarray(sample(denoiser, process, solver, times, KEYS, SHAPE))


@pytest.mark.parametrize(
    ("solver", "name", "settings", "draws"),
    [
        (Euler(), "FlowMatchEulerDiscreteScheduler", dict(shift=3.0), False),
        (
            DPMSolver2M(),
            "DPMSolverMultistepScheduler",
            dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0),
            False,
        ),
        (
            DPMSolver2M(stochastic=True),
            "DPMSolverMultistepScheduler",
            dict(
                use_flow_sigmas=True,
                prediction_type="flow_prediction",
                flow_shift=5.0,
                algorithm_type="sde-dpmsolver++",
            ),
            True,
        ),
        (
            UniPC(),
            "UniPCMultistepScheduler",
            dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
            False,
        ),
    ],
    ids=["euler", "dpm_2m", "dpm_2m_stochastic", "unipc"],
)
def test_flow_schedulers(solver, name, settings, draws):
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(STEPS)
    times, flow = scheduler.sigmas.numpy(), RectifiedFlow()
    assert times.shape == (STEPS + 1,) and times[-1] == 0
    expected = theirs(scheduler, flow, times, draws=draws)
    np.testing.assert_allclose(ours(solver, flow, times), expected, atol=1e-4)


# From no signal at all with eta = 1 the scheduler takes the root of 1 - variance, which is 0 but for rounding: on some
# processors it is negative, and its samples are NaN.
@pytest.mark.parametrize(("eta", "zero"), [(0.0, False), (1.0, False), (0.0, True), (0.9, True)])
def test_ddim(eta, zero):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=zero,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(10)
    process = VariancePreserving("scaled_linear", zero_terminal_snr=zero, prediction="v")
    times = np.linspace(1, 0, 11)
    expected = theirs(scheduler, process, times, draws=eta > 0, eta=eta)
    np.testing.assert_allclose(ours(DDIM(eta), process, times), expected, atol=1e-4)
