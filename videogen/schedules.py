"""Scalar schedules, in one place: mask ratios in decoding, learning-rate shapes and loss weights in training."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videogen.errors import UserError, near_matches

DECAYS: dict[str, Callable[[Float[Array, ""]], Float[Array, ""]]] = {
    "cosine": lambda t: jnp.cos(0.5 * jnp.pi * t),
    "half_cosine": lambda t: 0.5 * (1 + jnp.cos(jnp.pi * t)),
    "linear": lambda t: 1 - t,
    "square": lambda t: 1 - t**2,
    "constant": lambda t: jnp.ones_like(t),
}
"""Name -> f with f(0) = 1, non-increasing on [0, 1]; all but ``constant`` end at f(1) = 0.

``cosine`` is MaskGIT's mask schedule; ``half_cosine`` is the usual learning-rate decay.
"""


def ramp(start: float, final: float, steps: int, step: Int[Array, ""]) -> Float[Array, ""]:
    """From ``start`` at step 0 in a straight line to ``final`` at ``steps`` and after; at once where ``steps`` is 0."""
    if steps == 0:
        return jnp.full((), float(final))
    return start + (final - start) * jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)


def decay(name: str, progress: Float[Array, ""]) -> Float[Array, ""]:
    """The schedule ``name`` at ``progress`` in [0, 1]."""
    if name not in DECAYS:
        raise UserError(f"unknown schedule {name!r}{near_matches(name, DECAYS)}")
    return DECAYS[name](jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0))
