"""Post-training quantization: the values of the paper's sheet on N(0, 1), and a trained tokenizer's latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.quantizers.training import train
from videogen import tokenizers
from videogen.errors import UserError
from videogen.quantizers import PerDimensionQuantizer
from videogen.quantizers.per_dimension import gaussian_values


def make(bins: int, reach: float, **settings) -> PerDimensionQuantizer:
    return PerDimensionQuantizer(1, bins=bins, reach=reach, posterior=False, **settings)


def normal() -> tuple[np.ndarray, np.ndarray]:
    """Places and their probabilities."""
    z = np.linspace(-8, 8, 40_001, dtype=np.float32)[:, None]
    p = np.exp(-0.5 * z[:, 0].astype(np.float64) ** 2)
    return z, p / p.sum()


@pytest.mark.parametrize(
    ("reach", "expected"), [(3.0, (0.051, 0.021, 0.0087, 0.0038)), (5.0, (0.040, 0.010, 0.0026, 0.00065))]
)
def test_squared_errors_of_normal_latents(reach, expected):
    """The sheet's figures are from samples, so their last digit is not sure."""
    z, p = normal()
    errors = [p @ np.square(np.asarray(make(bins, reach)(z).latents) - z)[:, 0] for bins in (8, 16, 32, 64)]
    np.testing.assert_allclose(errors, expected, rtol=0.04)


@pytest.mark.parametrize(("reach", "bits"), [(3.0, 6.0), (5.0, 5.72)])
def test_entropy_of_the_ids_of_normal_latents(reach, bits):
    """Within three deviations the bins are about equally likely; wider, the tails have bins of their own."""
    z, p = normal()
    likely = np.bincount(np.asarray(make(64, reach)(z).indices)[:, 0], weights=p, minlength=64)
    assert -np.sum(likely * np.log2(likely)) == pytest.approx(bits, abs=0.01)
    if reach == 3.0:
        assert likely.min() * 64 > 0.8 and likely.max() * 64 < 1.2


@pytest.mark.parametrize("bins", [2, 7, 64])
@pytest.mark.parametrize("spacing", ["gaussian", "uniform"])
def test_values_are_antisymmetric_increasing_and_map_to_themselves(bins, spacing):
    quantizer = make(bins, 5.0, spacing=spacing)
    ids = jnp.arange(bins)[:, None]
    values = quantizer.lookup(ids)
    np.testing.assert_array_equal(values, -values[::-1])
    assert (jnp.diff(values[:, 0]) > 0).all()
    np.testing.assert_array_equal(quantizer(values).indices, ids)
    np.testing.assert_array_equal(quantizer(values).latents, values)


def test_outermost_value_and_shrinkage():
    assert gaussian_values(64)[-1] == pytest.approx(2.437, abs=1e-3)
    assert np.mean(gaussian_values(64) ** 2) < 1
    assert np.isfinite(gaussian_values(740)).all()
    with pytest.raises(UserError, match="take at most 740"):
        gaussian_values(741)


def test_uniform_bins_are_even():
    quantizer = make(5, 2.0, spacing="uniform")
    np.testing.assert_allclose(quantizer.lookup(jnp.arange(5)[:, None])[:, 0], [-1.6, -0.8, 0, 0.8, 1.6], atol=1e-6)
    z = jnp.array([[-9.0], [-1.21], [-1.19], [0.39], [9.0]])
    np.testing.assert_array_equal(quantizer(z).indices[:, 0], [0, 0, 1, 2, 4])


def test_fit_normalises_every_dimension():
    z = jax.random.normal(jax.random.key(0), (500, 2)) * jnp.array([0.01, 40.0]) + jnp.array([5.0, -3.0])
    quantizer = PerDimensionQuantizer(2, posterior=False)
    quantizer.fit(z)
    relative = jnp.mean((quantizer(z).latents - z) ** 2, 0) / jnp.var(z, 0)
    np.testing.assert_allclose(relative, 0.00065, rtol=0.3)


def test_steps_of_training_add_up_to_one_measurement():
    z = jax.random.normal(jax.random.key(0), (600, 2)) * jnp.array([0.1, 3.0]) + jnp.linspace(0, 50, 600)[:, None]
    quantizer, whole, before = (PerDimensionQuantizer(2, posterior=False) for _ in range(3))
    whole.fit(z)
    for parts in ((z[:7],), (z[7:300], z[300:400]), (z[400:],)):
        ids = train(quantizer, *parts).indices
    np.testing.assert_allclose(quantizer.mean.get_value(), z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(quantizer.deviation.get_value(), z.std(0), rtol=1e-4)
    assert quantizer.measured.get_value() == whole.measured.get_value() == 600
    # A step is rounded by what was measured before it.
    before.fit(z[:400])
    assert float(jnp.mean(ids == before(z[400:]).indices)) > 0.99
    assert float(jnp.mean(ids == quantizer(z[400:]).indices)) < 0.9
    quantizer.fit(z[:50])
    np.testing.assert_allclose(quantizer.mean.get_value(), z[:50].mean(0), rtol=1e-5)


def test_a_narrow_dimension_far_from_zero_keeps_its_deviation():
    z = 1000.0 + jax.random.normal(jax.random.key(0), (4000, 1))
    quantizer = PerDimensionQuantizer(1, posterior=False)
    quantizer.fit(z)
    np.testing.assert_allclose(quantizer.deviation.get_value(), np.std(np.asarray(z, np.float64)), rtol=1e-4)


@pytest.mark.slow
def test_a_tokenizer_with_continuous_latents_gets_ids_after_training():
    config = {"name": "cvivit", "patch": (2, 4, 4), "width": 16, "heads": 2, "mlp_width": 16}
    config |= {"encoder_layers": (1, 1), "decoder_layers": (1, 1), "quantizer": {"name": "gaussian", "width": 4}}
    model = tokenizers.build(config, dtype=jnp.float32, remat="none", rngs=nnx.Rngs(0))
    video = jax.random.uniform(jax.random.key(0), (2, 3, 8, 8, 3), minval=-1)
    latents = model.encode(video)
    continuous, codes, _, _ = model.bottleneck(latents)
    assert codes.only.values.shape == continuous.shape
    model.quantizer = PerDimensionQuantizer(4)
    model.quantizer.fit(latents.values)
    codes = model.tokenize(video)
    assert model.vocabulary == (64,) * 4 and codes.only.values.shape == (2, 2, 2, 2, 4)
    exact = jnp.clip(model.decode(continuous), -1, 1)
    assert jnp.abs(model.detokenize(codes) - exact).mean() < 0.1 * jnp.abs(exact).mean()


def test_posteriors_come_in_twice_as_wide_and_an_unknown_spacing_is_named():
    assert PerDimensionQuantizer(3).input_width == 6
    assert PerDimensionQuantizer(3, posterior=False).input_width == 3
    with pytest.raises(UserError, match="unknown spacing 'gausian'; did you mean 'gaussian'"):
        PerDimensionQuantizer(3, spacing="gausian")


def test_a_draw_of_the_posterior_is_rounded_where_there_is_a_key():
    quantizer = PerDimensionQuantizer(1, drawn=True)
    # Mean 1 and deviation 0.5.
    latents = jnp.broadcast_to(jnp.array([1.0, 2 * np.log(0.5)]), (2, 20_000, 2))
    plain = PerDimensionQuantizer(1)
    np.testing.assert_array_equal(quantizer(latents).indices, plain(latents).indices)
    drawn = quantizer(latents, key=jax.random.split(jax.random.key(0), 2))
    values = quantizer.lookup(drawn.indices)
    np.testing.assert_allclose([values.mean(), values.std()], [1.0, 0.5], atol=0.02)
    assert (drawn.indices[0] != drawn.indices[1]).any()
    with pytest.raises(UserError, match="drawn is for latents with a posterior"):
        PerDimensionQuantizer(1, posterior=False, drawn=True)
