"""Codebook health: figures over levels, and the alarm."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.quantizers import UsageWatch, build, codebook_health, evaluated_health


def test_figures_are_means_over_levels():
    health = codebook_health(jnp.array([5.0, 5, 5, 5, 0, 7]), {"coarse": 4, "fine": 2})
    expected = {"codebook_usage": 0.75, "codebook_perplexity": 2.5, "codebook_entropy": 0.5}
    assert {name: float(value) for name, value in health.items()} == pytest.approx(expected)


def test_evaluation_adds_dead_codes_and_what_even_draws_would_use():
    health = evaluated_health(np.array([5.0, 5, 0, 10]), {"level_0": 4})
    assert health["codebook_dead"] == 1
    assert health["codebook_expected_usage"] == pytest.approx(1 - 0.75**20)


def test_one_level_that_collapsed_is_seen_beside_the_others():
    health = evaluated_health(np.array([5.0, 5, 5, 5, 20, 0, 0, 0]), {"coarse": 4, "fine": 4})
    assert health["codebook_usage_coarse"] == 1 and health["codebook_usage_fine"] == 0.25
    assert health["codebook_perplexity_coarse"] == pytest.approx(4) and health["codebook_perplexity_fine"] == 1
    assert health["codebook_expected_usage_fine"] == pytest.approx(1 - 0.75**20)
    assert not any("level" in name for name in evaluated_health(np.array([5.0, 5]), {"level_0": 2}))


def test_continuous_latents_have_no_health_and_no_alarm():
    quantizer = build({"name": "gaussian", "width": 2}, rngs=nnx.Rngs(0))
    assert codebook_health(jnp.zeros(0), {}) == {} and evaluated_health(np.zeros(0), {}) == {}
    assert UsageWatch().warning(quantizer, np.zeros(0)) is None


def test_alarm_names_the_quantizer_the_level_and_the_remedy():
    vq = {"name": "vq", "size": 256, "width": 2, "cosine": False}
    quantizer = build({"name": "residual", "base": vq, "levels": 2}, rngs=nnx.Rngs(0))
    draws = np.random.default_rng(0).integers(0, 256, 2000)
    healthy, collapsed = np.bincount(draws, minlength=256), np.bincount(draws % 3, minlength=256)
    assert UsageWatch().warning(quantizer, np.concatenate([healthy, healthy])) is None
    warning = UsageWatch().warning(quantizer, np.concatenate([healthy, collapsed]))
    for words in ("ResidualQuantizer", "level 1", "3 of 256", "restart_threshold"):
        assert words in warning
    assert "\n" not in warning


def used(codes: int, size: int = 512, draws: int = 20_000) -> np.ndarray:
    """Counts of draws that use so many codes of ``size`` evenly."""
    return np.bincount(np.arange(draws) % codes, minlength=size)


@pytest.mark.parametrize(("codes", "collapsed"), [(60, False), (40, True)])
def test_a_tenth_of_the_codes_in_use_is_a_collapse(codes, collapsed):
    quantizer = build({"name": "vq", "size": 512, "width": 2}, rngs=nnx.Rngs(0))
    warning = UsageWatch().warning(quantizer, used(codes))
    assert (warning is not None) == collapsed
    assert not collapsed or warning.startswith("codebook collapse: VectorQuantizer uses 40 of 512 codes")


def test_use_that_falls_by_half_from_its_best_is_told():
    quantizer, watch = build({"name": "vq", "size": 512, "width": 2}, rngs=nnx.Rngs(0)), UsageWatch()
    # Rising use is no news, nor is a fall by less than a half.
    assert [watch.warning(quantizer, used(codes)) for codes in (100, 400, 500, 260)] == [None] * 4
    warning = watch.warning(quantizer, used(200))
    assert warning.startswith("codebook use has fallen to 40% of its best: VectorQuantizer uses 200 of 512 codes")
    assert "restart_threshold" in warning and "\n" not in warning
    assert "collapse" in watch.warning(quantizer, used(3))
    assert watch.warning(quantizer, used(260)) is None


def test_few_draws_over_many_codes_are_no_collapse():
    quantizer = build({"name": "lfq", "bits": 18}, rngs=nnx.Rngs(0))
    counts = np.bincount(np.random.default_rng(0).integers(0, 2**18, 500), minlength=2**18)
    assert UsageWatch().warning(quantizer, counts) is None
    assert "entropy_weight" in UsageWatch().warning(quantizer, np.eye(2**18, 1)[:, 0] * 500)
