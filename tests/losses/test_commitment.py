"""Where the gradients of the two halves of the VQ objective go."""

import jax
import numpy as np

from videogen.losses import codebook_loss, commitment


def pair() -> tuple[jax.Array, jax.Array]:
    return tuple(jax.random.normal(jax.random.key(0), (2, 4, 5, 6)))


def test_commitment_moves_only_the_latents():
    latents, codes = pair()
    to_latents, to_codes = jax.grad(commitment, argnums=(0, 1))(latents, codes)
    np.testing.assert_allclose(to_latents, 2 * (latents - codes) / latents.size, rtol=1e-5)
    np.testing.assert_array_equal(to_codes, 0)


def test_codebook_loss_moves_only_the_codes():
    latents, codes = pair()
    to_latents, to_codes = jax.grad(codebook_loss, argnums=(0, 1))(latents, codes)
    np.testing.assert_array_equal(to_latents, 0)
    np.testing.assert_allclose(to_codes, 2 * (codes - latents) / codes.size, rtol=1e-5)
