"""The continuous member: mean, sample, KL divergence, and no ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.quantizers import GaussianQuantizer


def posterior(count: int = 30) -> tuple[jax.Array, jax.Array]:
    return tuple(0.5 * jax.random.normal(jax.random.key(0), (2, count, 3)))


def test_mean_in_evaluation_sample_in_training():
    mean, log_variance = posterior()
    quantizer, z = GaussianQuantizer(3), jnp.concatenate([mean, log_variance], -1)
    assert quantizer.width == 3 and quantizer.input_width == 6 and quantizer.vocabulary == ()
    np.testing.assert_array_equal(quantizer(z, key=jax.random.key(0)).latents, mean)
    draws = jax.vmap(lambda key: quantizer(z, key=key, train=True).latents)(jax.random.split(jax.random.key(1), 4000))
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.12)
    np.testing.assert_allclose(draws.std(0), jnp.exp(0.5 * log_variance), rtol=0.08)
    with pytest.raises(UserError, match="random key"):
        quantizer(z, train=True)


def test_kl_equals_torch():
    torch = pytest.importorskip("torch")
    mean, log_variance = (np.array(x) for x in posterior())
    distributions = torch.distributions
    ours = GaussianQuantizer(3, kl_weight=0.5)(jnp.concatenate([mean, log_variance], -1)).losses["kl"]
    theirs = distributions.kl_divergence(
        distributions.Normal(torch.tensor(mean), torch.tensor(np.exp(0.5 * log_variance))),
        distributions.Normal(0.0, 1.0),
    )
    np.testing.assert_allclose(ours, 0.5 * float(theirs.mean()), rtol=1e-5)
    assert float(GaussianQuantizer(3)(jnp.zeros((1, 6))).losses["kl"]) == 0


def test_sample_passes_its_gradient_to_mean_and_variance():
    quantizer, z = GaussianQuantizer(1), jnp.array([[0.3, 0.8]])
    sample = quantizer(z, key=jax.random.key(0), train=True).latents
    gradient = jax.grad(lambda z: quantizer(z, key=jax.random.key(0), train=True).latents.sum())(z)
    np.testing.assert_allclose(gradient, [[1.0, 0.5 * float(sample[0, 0] - 0.3)]], rtol=1e-5)


def test_there_are_no_ids_to_look_up():
    quantized = GaussianQuantizer(3)(jnp.zeros((2, 5, 6)))
    assert quantized.indices.shape == (2, 5, 0) and quantized.statistics["counts"].shape == (0,)
    with pytest.raises(UserError, match="per_dimension"):
        GaussianQuantizer(3).lookup(quantized.indices)
    with pytest.raises(UserError, match="width 6"):
        GaussianQuantizer(3)(jnp.zeros((2, 5, 3)))


def test_extreme_log_variances_stay_finite():
    z = jnp.array([[0.0, 1e4], [0.0, -1e4]])
    gradient = jax.grad(lambda z: GaussianQuantizer(1)(z).losses["kl"])(z)
    assert jnp.isfinite(gradient).all() and jnp.isfinite(GaussianQuantizer(1)(z).losses["kl"])
