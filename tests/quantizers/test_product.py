"""Product quantization: groups of channels on their own."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.quantizers.training import train
from videogen.quantizers import build

FSQ = {"name": "fsq", "levels": [5, 4, 3]}
VQ = {"name": "vq", "size": 8, "width": 4, "cosine": False, "restart_threshold": 0.1}


def latents() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, 20, 6))


def test_groups_are_quantised_on_their_own():
    product, alone = (
        build({"name": "product", "base": FSQ, "groups": 2}, rngs=nnx.Rngs(0)),
        build(FSQ, rngs=nnx.Rngs(0)),
    )
    quantized = product(latents())
    assert product.width == 6 and product.vocabulary == (60, 60)
    for group, channels in enumerate((slice(0, 3), slice(3, 6))):
        expected = alone(latents()[..., channels])
        np.testing.assert_array_equal(quantized.latents[..., channels], expected.latents)
        np.testing.assert_array_equal(quantized.indices[..., group], expected.indices[..., 0])


def test_one_group_is_its_base_in_training_too():
    z, key = latents()[..., :4], jax.random.key(0)
    product, alone = (build(config, rngs=nnx.Rngs(0)) for config in ({"name": "product", "base": VQ, "groups": 1}, VQ))
    for _ in range(2):
        ours, expected = train(product, z, key=key), train(alone, z, key=key)
        np.testing.assert_array_equal(ours.latents, expected.latents)
        jax.tree.map(np.testing.assert_array_equal, ours.losses, expected.losses)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(product)["quantizers"][0], nnx.state(alone))


def test_losses_are_means_over_groups():
    product = build({"name": "product", "base": VQ | {"width": 3}, "groups": 2}, rngs=nnx.Rngs(0))
    quantized = product(latents())
    expected = 0.25 * jnp.mean((latents() - quantized.latents) ** 2)
    np.testing.assert_allclose(quantized.losses["commitment"], expected, rtol=1e-5)


def test_groups_start_from_codebooks_of_their_own():
    product = build({"name": "product", "base": VQ | {"width": 3}, "groups": 2}, rngs=nnx.Rngs(0))
    first, second = (q.codebook.get_value() for q in product.quantizers)
    assert jnp.abs(first - second).max() > 0.1
