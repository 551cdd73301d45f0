"""Guidances: what each leaves unchanged, and what it must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.oracles import Mixture
from videogen.diffusion import (
    AdaptiveProjected,
    ClassifierFree,
    DPMSolver2M,
    Guided,
    Interval,
    RectifiedFlow,
    Rescale,
    RisingClassifierFree,
    UniformGrid,
    build,
    sample,
)
from videogen.errors import UserError

GIVEN, NULL = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
T = jnp.array([0.2, 0.5, 0.9])
PLAIN = dict(eta=1.0, momentum=0.0, norm_threshold=float("inf"))


def apply(guidance, t=T):
    return guidance(GIVEN, NULL, t, guidance.initialize(GIVEN))[0]


def test_scales_0_and_1():
    np.testing.assert_allclose(apply(ClassifierFree(0.0)), NULL, atol=1e-6)
    np.testing.assert_array_equal(apply(ClassifierFree(1.0)), GIVEN)
    np.testing.assert_allclose(apply(ClassifierFree(3.0)), NULL + 3 * (GIVEN - NULL), atol=1e-5)


def test_outside_its_interval_guidance_is_off():
    guided = apply(Interval(ClassifierFree(4.0), low=0.3, high=0.8))
    np.testing.assert_array_equal(guided[jnp.array([0, 2])], GIVEN[jnp.array([0, 2])])
    np.testing.assert_array_equal(guided[1], apply(ClassifierFree(4.0))[1])
    frames = jnp.array([[0.1, 0.5, 0.5, 0.9]] * 3)
    guided = apply(Interval(ClassifierFree(4.0), 0.3, 0.8), frames)
    np.testing.assert_array_equal(guided[:, [0, 3]], GIVEN[:, [0, 3]])
    np.testing.assert_array_equal(guided[:, 1:3], apply(ClassifierFree(4.0))[:, 1:3])


def test_rescaling_keeps_the_deviation():
    guided, full = apply(ClassifierFree(6.0)), apply(Rescale(ClassifierFree(6.0), 1.0))
    np.testing.assert_allclose(full.std((1, 2)), GIVEN.std((1, 2)), rtol=1e-5)
    ratio = GIVEN.std((1, 2), keepdims=True) / guided.std((1, 2), keepdims=True)
    np.testing.assert_allclose(full, guided * ratio, atol=1e-5)
    np.testing.assert_array_equal(apply(Rescale(ClassifierFree(6.0), 0.0)), guided)
    np.testing.assert_allclose(apply(Rescale(ClassifierFree(6.0), 0.3)), 0.7 * guided + 0.3 * full, atol=1e-5)


def test_projected_guidance():
    np.testing.assert_allclose(apply(AdaptiveProjected(4.0, **PLAIN)), apply(ClassifierFree(4.0)), atol=1e-5)
    change = apply(AdaptiveProjected(4.0)) - GIVEN
    np.testing.assert_allclose((change * GIVEN).sum((1, 2)), 0, atol=1e-4)
    assert float(jnp.sqrt((change**2).sum((1, 2))).max()) <= 3 * 2.5 + 1e-4
    # The running difference: two calls with the same difference d leave d + m·d.
    guidance = AdaptiveProjected(2.0, **PLAIN | dict(momentum=-0.5))
    memory = guidance.initialize(GIVEN)
    for share in (1.0, 0.5, 0.75):
        guided, memory = guidance(GIVEN, NULL, T, memory)
        np.testing.assert_allclose(guided - GIVEN, share * (GIVEN - NULL), atol=1e-5)
    assert bool(jnp.isfinite(AdaptiveProjected(2.0)(0 * GIVEN, 0 * GIVEN, T, 0 * GIVEN)[0]).all())


def test_the_rising_scale_of_cogvideox():
    steps = np.array([0, 25, 40, 45, 49, 50])
    scales = RisingClassifierFree(7.0).scale_at(1 - steps / 50)
    np.testing.assert_allclose(scales, [1, 1.0144, 2.4541, 4.8414, 6.8644, 7], atol=1e-4)


@pytest.mark.parametrize(
    ("guidance", "same_as"),
    [(ClassifierFree(1.0), 0.5), (ClassifierFree(0.0), -0.5), (Interval(AdaptiveProjected(5.0), 2.0, 3.0), 0.5)],
    ids=["scale_1", "scale_0", "interval_off"],
)
def test_guided_sampling_falls_back_to_a_plain_denoiser(guidance, same_as):
    flow = RectifiedFlow()
    given, null = (Mixture(means=(mean,)).denoiser(flow) for mean in (0.5, -0.5))
    plain = Mixture(means=(same_as,)).denoiser(flow)
    guided = Guided(lambda x, t: (given(x, t), null(x, t)), guidance)
    keys, times = jax.random.split(jax.random.key(0), 2), UniformGrid()(8, flow)
    ends = [sample(d, flow, DPMSolver2M(), times, keys, (6,)) for d in (guided, plain)]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-5)


def test_guidance_moves_the_mean_as_the_closed_form_says():
    """Gaussians of equal deviation: guided by s, the flow is that of the mean null + s·(given - null)."""
    flow = RectifiedFlow()
    given, null, moved = (Mixture(means=(mean,)).denoiser(flow) for mean in (0.5, 0.1, 1.3))
    guided = Guided(lambda x, t: (given(x, t), null(x, t)), ClassifierFree(3.0))
    keys, times = jax.random.split(jax.random.key(0), 2), UniformGrid()(8, flow)
    ends = [sample(d, flow, DPMSolver2M(), times, keys, (6,)) for d in (guided, moved)]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-5)


def test_built_from_a_config():
    config = {
        "name": "rescale",
        "share": 0.5,
        "inner": {"name": "interval", "high": 0.9, "inner": {"name": "classifier_free", "scale": 4.0}},
    }
    assert build("guidance", config) == Rescale(Interval(ClassifierFree(4.0), high=0.9), 0.5)
    assert build("solver", {"name": "dpm_2m", "stochastic": True}) == DPMSolver2M(stochastic=True)
    with pytest.raises(UserError, match="did you mean 'unipc'"):
        build("solver", {"name": "unpc"})


@pytest.mark.parametrize("guidance", [AdaptiveProjected(4.0), Rescale(ClassifierFree(4.0), 0.7)], ids=str)
def test_given_frames_do_not_change_how_the_others_are_guided(guidance):
    """Of frames at time 0 nothing was ever predicted in training: what the network says there is of no consequence."""
    t = jnp.array([[0.0, 0.5, 0.5, 0.9]] * 3)
    wild = jnp.zeros_like(GIVEN).at[:, 0].set(100.0)
    guided, other = (guidance(GIVEN + w, NULL - w, t, guidance.initialize(GIVEN))[0][:, 1:] for w in (0 * wild, wild))
    np.testing.assert_array_equal(guided, other)
    alone = guidance(GIVEN[:, 1:], NULL[:, 1:], t[:, 1:], guidance.initialize(GIVEN[:, 1:]))[0]
    np.testing.assert_allclose(guided, alone, atol=1e-5)
    assert np.isfinite(guidance(GIVEN, NULL, 0 * t, guidance.initialize(GIVEN))[0]).all()


def test_an_interval_holds_its_ends_and_by_default_all_times():
    ends = apply(Interval(ClassifierFree(4.0), low=0.2, high=0.9))
    np.testing.assert_array_equal(ends, apply(ClassifierFree(4.0)))
    everywhere = Interval(ClassifierFree(4.0))
    assert (everywhere.low, everywhere.high) == (0, 1)
    outside = everywhere(GIVEN, NULL, jnp.array([0.0, 1.0, 1.01]), ())[0]
    np.testing.assert_array_equal(outside[2], GIVEN[2])
    np.testing.assert_array_equal(outside[:2], apply(ClassifierFree(4.0))[:2])


@pytest.mark.parametrize(
    ("guidance", "settings"),
    [
        (ClassifierFree, {"scale": float("nan")}),
        (RisingClassifierFree, {"scale": 2.0, "power": 0.0}),
        (AdaptiveProjected, {"scale": 2.0, "norm_threshold": 0.0}),
        (Rescale, {"inner": ClassifierFree(2.0), "share": 1.5}),
        (Interval, {"inner": ClassifierFree(2.0), "low": float("nan")}),
    ],
)
def test_guidances_that_cannot_guide_are_refused(guidance, settings):
    with pytest.raises(UserError, match=[*settings][-1]):
        guidance(**settings)
