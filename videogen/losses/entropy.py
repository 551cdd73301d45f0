"""Entropy of categorical distributions."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def entropy(probabilities: Float[Array, "... categories"]) -> Float[Array, "..."]:
    """Shannon entropy in nats over the last axis, float32.

    0·log 0 counts as 0, with a finite gradient: a sharp softmax underflows to exact zeros.
    """
    p = probabilities.astype(jnp.float32)
    return -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(jnp.float32).tiny)), axis=-1)
