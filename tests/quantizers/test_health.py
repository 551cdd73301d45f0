"""Codebook health: figures over levels, and the alarm."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.quantizers import build, codebook_health, collapse_warning, evaluated_health


def test_figures_are_means_over_levels():
    health = codebook_health(jnp.array([5.0, 5, 5, 5, 0, 7]), (4, 2))
    expected = {"codebook_usage": 0.75, "codebook_perplexity": 2.5, "codebook_entropy": 0.5}
    assert {name: float(value) for name, value in health.items()} == pytest.approx(expected)


def test_evaluation_adds_dead_codes_and_what_even_draws_would_use():
    health = evaluated_health(np.array([5.0, 5, 0, 10]), (4,))
    assert health["codebook_dead"] == 1
    assert health["codebook_expected_usage"] == pytest.approx(1 - 0.75**20)


def test_continuous_latents_have_no_health_and_no_alarm():
    quantizer = build({"name": "gaussian", "width": 2}, rngs=nnx.Rngs(0))
    assert codebook_health(jnp.zeros(0), ()) == {} and evaluated_health(np.zeros(0), ()) == {}
    assert collapse_warning(quantizer, np.zeros(0)) is None


def test_alarm_names_the_quantizer_the_level_and_the_remedy():
    vq = {"name": "vq", "size": 256, "width": 2, "cosine": False}
    quantizer = build({"name": "residual", "base": vq, "levels": 2}, rngs=nnx.Rngs(0))
    draws = np.random.default_rng(0).integers(0, 256, 2000)
    healthy, collapsed = np.bincount(draws, minlength=256), np.bincount(draws % 3, minlength=256)
    assert collapse_warning(quantizer, np.concatenate([healthy, healthy])) is None
    warning = collapse_warning(quantizer, np.concatenate([healthy, collapsed]))
    for words in ("ResidualQuantizer", "level 1", "3 of 256", "restart_threshold"):
        assert words in warning
    assert "\n" not in warning


def test_few_draws_over_many_codes_are_no_collapse():
    quantizer = build({"name": "lfq", "bits": 18}, rngs=nnx.Rngs(0))
    counts = np.bincount(np.random.default_rng(0).integers(0, 2**18, 500), minlength=2**18)
    assert collapse_warning(quantizer, counts) is None
    assert "entropy_weight" in collapse_warning(quantizer, np.eye(2**18, 1)[:, 0] * 500)
