"""Adversarial objectives over discriminator logits, and the gradient penalty that steadies them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videogen.errors import UserError, near_matches

Logits = Float[Array, "..."]
Scalar = Float[Array, ""]


def hinge_discriminator(real_logits: Logits, fake_logits: Logits) -> Scalar:
    """mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)) (Lim and Ye, 2017); VQGAN takes half of it."""
    real, fake = real_logits.astype(jnp.float32), fake_logits.astype(jnp.float32)
    return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def hinge_generator(fake_logits: Logits) -> Scalar:
    """-mean D(fake)."""
    return -jnp.mean(fake_logits.astype(jnp.float32))


def nonsaturating_discriminator(real_logits: Logits, fake_logits: Logits) -> Scalar:
    """mean -log sigmoid(D(real)) + mean -log(1 - sigmoid(D(fake))) (Goodfellow et al., 2014)."""
    real, fake = real_logits.astype(jnp.float32), fake_logits.astype(jnp.float32)
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def nonsaturating_generator(fake_logits: Logits) -> Scalar:
    """mean -log sigmoid(D(fake))."""
    return jnp.mean(jax.nn.softplus(-fake_logits.astype(jnp.float32)))


def r1_penalty(
    apply: Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]], real: Float[Array, "batch ..."]
) -> Scalar:
    """Squared norm of the discriminator's gradient at real examples (Mescheder et al., 2018), mean over them.

    Args:
      apply: the discriminator; each example's logits may depend on that example only.
      real: real examples.

    Returns:
      The mean over examples; the caller multiplies by gamma/2.
    """
    gradient = jax.grad(lambda x: jnp.sum(apply(x).astype(jnp.float32)))(real.astype(jnp.float32))
    return jnp.sum(jnp.square(gradient)) / real.shape[0]


class AdversarialLoss(NamedTuple):
    """The two sides of one objective.

    Attributes:
      discriminator: ``(real_logits, fake_logits) -> scalar``.
      generator: ``(fake_logits) -> scalar``.
    """

    discriminator: Callable[[Logits, Logits], Scalar]
    generator: Callable[[Logits], Scalar]


ADVERSARIAL = {
    "hinge": AdversarialLoss(hinge_discriminator, hinge_generator),
    "nonsaturating": AdversarialLoss(nonsaturating_discriminator, nonsaturating_generator),
}


def adversarial_loss(name: str) -> AdversarialLoss:
    """The objective called ``name``.

    Raises:
      UserError: it is not in ``ADVERSARIAL``.
    """
    if name not in ADVERSARIAL:
        raise UserError(f"unknown adversarial loss {name!r}{near_matches(name, ADVERSARIAL)}")
    return ADVERSARIAL[name]
