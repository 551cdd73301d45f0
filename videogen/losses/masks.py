"""Losses of masks: cross-entropy of pixels, and soft Dice (VideoLISA; Bai et al., 2024)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SMOOTH = 1.0
"""What is added to both sides of the quotient of Dice, in pixels: an empty mask that is predicted empty costs 0."""


def pixel_cross_entropy(
    logits: Float[Array, "*masks height width"], wanted: Bool[Array, "*masks height width"]
) -> Float[Array, "*masks"]:
    """Binary cross-entropy of every mask in nats, the mean over its pixels; logits of 0 cost ln 2."""
    logits = logits.astype(jnp.float32)
    return jnp.mean(jax.nn.softplus(jnp.where(wanted, -logits, logits)), axis=(-2, -1))


def soft_dice(
    logits: Float[Array, "*masks height width"], wanted: Bool[Array, "*masks height width"]
) -> Float[Array, "*masks"]:
    """``1 - (2 Σ p q + s) / (Σ p + Σ q + s)`` of every mask, with p the probabilities, q the mask and s ``SMOOTH``.

    A perfect mask costs 0, and so does an empty one that is predicted empty.
    """
    p, q = jax.nn.sigmoid(logits.astype(jnp.float32)), wanted.astype(jnp.float32)
    both, each = jnp.sum(p * q, axis=(-2, -1)), jnp.sum(p + q, axis=(-2, -1))
    return 1 - (2 * both + SMOOTH) / (each + SMOOTH)
