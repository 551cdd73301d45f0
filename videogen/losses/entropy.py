"""Entropy of categorical distributions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videogen.nn import Mean, mean_where, whole


def entropy(probabilities: Float[Array, "... categories"]) -> Float[Array, "..."]:
    """Shannon entropy in nats over the last axis, float32.

    0·log 0 counts as 0, with a finite gradient: a sharp softmax underflows to exact zeros.
    """
    p = probabilities.astype(jnp.float32)
    return -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(jnp.float32).tiny)), axis=-1)


def normalised(probabilities: Float[Array, "categories"]) -> Float[Array, "categories"]:
    """Divides by the sum: of a mean over places that counts padding as 0 the mean over those that exist."""
    return probabilities / jnp.maximum(probabilities.sum(), 1e-12)


def entropy_penalty(
    logits: Float[Array, "samples categories"],
    diversity: float = 1.0,
    mean: Mean = whole,
    exists: Bool[Array, "..."] | None = None,
) -> Float[Array, ""]:
    """``E[H(p)] - diversity · H(E[p])`` of softmax distributions: low for confident samples that use all categories.

    Between -diversity·log K (confident and even) and log K; 0 when all samples are sure of one category, and, at
    diversity 1, when every sample is undecided. ``mean`` takes means over these samples to means over the whole batch;
    ``exists`` are the samples that are no padding, in any shape of their order.
    """
    exists = None if exists is None else exists.reshape(-1)
    p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    sample = mean_where(entropy(p), exists, mean)
    if exists is None:
        return sample - diversity * entropy(mean(jnp.mean(p, axis=0)))
    return sample - diversity * entropy(normalised(mean(jnp.mean(jnp.where(exists[:, None], p, 0.0), axis=0))))
