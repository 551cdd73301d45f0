"""One posterior for two uses: the paths, their shares, and codes that begin as rounded latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import MicroBatch
from videogen.quantizers import build
from videogen.quantizers.gaussian import GaussianQuantizer

FSQ = {"name": "fsq", "levels": (8, 8, 8, 5, 5, 5)}
GROUPS = {"name": "product", "groups": 2, "base": FSQ}


def made(**settings):
    return build({"name": "two_paths", "width": 12, "codes": GROUPS, **settings}, rngs=nnx.Rngs(0))


def latents(batch: int = 6) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (batch, 3, 2, 2, 24))


def test_a_place_has_one_id_for_each_group():
    """OneVAE, checkable 4: the split is a bijection of two ids in [0, 64000)."""
    quantizer = made()
    assert quantizer.vocabulary == (64_000, 64_000) and (quantizer.input_width, quantizer.width) == (24, 12)
    ids = jax.random.randint(jax.random.key(1), (500, 2), 0, 64_000)
    codes = quantizer.codes.lookup(ids)
    first, second = (quantizer.codes.quantizers[i].lookup(ids[:, i : i + 1]) for i in range(2))
    np.testing.assert_array_equal(codes, np.concatenate([first, second], axis=-1))
    assert len(np.unique(codes, axis=0)) == len(np.unique(ids, axis=0))
    np.testing.assert_array_equal(quantizer.lookup(ids), quantizer.from_code(codes))
    found = quantizer(100 * latents())
    assert int(found.indices.min()) >= 0 and int(found.indices.max()) < 64_000


def test_mode_decides_outside_training():
    """6: the continuous path is the mean itself, without ids."""
    discrete, continuous = made(), made(mode="continuous")
    z = latents()
    mean = z[..., :12]
    found = continuous(z)
    np.testing.assert_array_equal(found.latents, mean)
    assert (
        continuous.vocabulary == () and found.indices.shape == (6, 3, 2, 2, 0) and not found.statistics["counts"].size
    )
    coded = discrete(z)
    np.testing.assert_array_equal(coded.latents, discrete.lookup(coded.indices))
    assert float(jnp.abs(coded.latents - mean).max()) > 0.1
    with pytest.raises(UserError, match="no ids"):
        continuous.lookup(coded.indices)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(discrete), nnx.state(continuous))


def test_an_example_takes_one_path_in_training():
    """The other examples of the batch, and how it is split, change nothing."""
    quantizer, z, key = made(discrete_share=0.3), latents(400), jax.random.key(2)
    train = jax.jit(lambda z, keys: quantizer(z, key=keys, train=True))
    found = train(z, key)
    coded = jnp.abs(found.latents - quantizer(z).latents).reshape(400, -1).max(-1) < 1e-6
    drawn = (found.latents - z[..., :12]) / jnp.exp(0.5 * z[..., 12:])
    assert float(coded.mean()) == pytest.approx(0.3, abs=0.06)
    # What is not coded is a draw of the posterior.
    noise = np.asarray(drawn)[~np.asarray(coded)]
    assert noise.mean() == pytest.approx(0, abs=0.03) and noise.std() == pytest.approx(1, abs=0.03)
    assert float(found.losses["kl"]) == pytest.approx(float(GaussianQuantizer(12)(z).losses["kl"]))
    part = train(z[1::4], MicroBatch(1, 4).keys(key, 100))
    np.testing.assert_allclose(part.latents, found.latents[1::4], atol=1e-6)
    np.testing.assert_allclose(made(discrete_share=1.0)(z[:4], key=key, train=True).latents, quantizer(z[:4]).latents)


def test_the_gradient_goes_through_the_codes():
    """5: straight through the rounding, and to both linear maps."""
    quantizer, z = made(), latents()
    graph, params, rest = nnx.split(quantizer, nnx.Param, ...)

    def loss(z, params):
        return jnp.sum(jnp.sin(nnx.merge(graph, params, rest)(z).latents))

    of_latents, of_params = jax.grad(loss, argnums=(0, 1))(z, params)
    assert float(jnp.abs(of_latents[..., :12]).min(axis=(0, 1, 2, 3)).max()) > 0
    # The log variance is no part of this path.
    assert not of_latents[..., 12:].any()
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(of_params))


def test_codes_begin_as_rounded_latents():
    """7: with as many dimensions as channels the error is half a step, and goes to nothing with the levels."""
    z = jnp.clip(latents(), -2.9, 2.9)
    for levels in (5, 65, 1025):
        codes = {"name": "product", "groups": 6, "base": {"name": "fsq", "levels": (levels,) * 2, "bound": "clamp"}}
        error = jnp.abs(made(codes=codes)(z).latents - z[..., :12])
        assert float(error.max()) == pytest.approx(3.0 / (levels - 1), rel=0.05)
    # Fewer dimensions than channels: the first channels are rounded, the others are zero.
    fewer = made(codes=FSQ | {"bound": "clamp"})(z).latents
    assert not fewer[..., 6:].any() and float(jnp.abs(fewer[..., :6] - z[..., :6]).max()) < 3.1 / 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "discreet"}, "did you mean 'discrete'"),
        ({"codes": {"name": "gaussian", "width": 2}}, "needs codes with ids"),
        ({"discrete_share": 1.2}, "at most 1"),
        ({"reach": 0}, "above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        made(**settings)


def test_without_codes_it_is_the_posterior():
    quantizer, z, key = made(codes=None), latents(), jax.random.key(3)
    assert quantizer.vocabulary == () and not jax.tree.leaves(nnx.state(quantizer, nnx.Param))
    np.testing.assert_array_equal(quantizer(z).latents, z[..., :12])
    keys = MicroBatch().keys(key, 6)
    expected = GaussianQuantizer(12)(z, key=keys, train=True)
    np.testing.assert_array_equal(quantizer(z, key=key, train=True).latents, expected.latents)
