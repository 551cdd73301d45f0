"""Preference optimisation: the better of two answers becomes likelier than a frozen model finds it (DPO; Rafailov et
al., 2023; PPLLaVA; Liu et al., 2024)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Summed = Float[Array, "batch"]
"""Log-probabilities of answers in nats, summed over their tokens (``sequences.log_probability``)."""


def preference_margin(chosen: Summed, rejected: Summed, chosen_before: Summed, rejected_before: Summed) -> Summed:
    """``(log p(y+) - log p0(y+)) - (log p(y-) - log p0(y-))``; no gradient leads to p0."""
    before = jax.lax.stop_gradient(chosen_before) - jax.lax.stop_gradient(rejected_before)
    return chosen.astype(jnp.float32) - rejected.astype(jnp.float32) - before.astype(jnp.float32)


def preference_loss(margin: Summed, beta: float = 0.1) -> Summed:
    """``-log sigmoid(beta · margin)`` of every pair: log 2 where both models agree."""
    return jax.nn.softplus(-beta * margin)
