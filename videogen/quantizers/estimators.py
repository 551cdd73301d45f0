"""How a gradient passes a quantizer: estimators ``(latents, codes) -> codes`` as values.

Every estimator returns the codes to the bit, passes a gradient to the latents and none to the codes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videogen.errors import UserError, near_matches

Estimator = Callable[[Float[Array, "... code"], Float[Array, "... code"]], Float[Array, "... code"]]


def straight_through(latents: Float[Array, "..."], codes: Float[Array, "..."]) -> Float[Array, "..."]:
    """The gradient of ``latents``, unchanged (Bengio et al., 2013)."""
    # latents + sg(codes - latents) would round: a large latent leaves few digits for the code.
    return jax.lax.stop_gradient(codes) + (latents - jax.lax.stop_gradient(latents))


def rotation(latents: Float[Array, "... code"], codes: Float[Array, "... code"]) -> Float[Array, "... code"]:
    """The gradient through the rotation and rescaling that maps each latent to its code (Fifty et al., 2024).

    With u, v the directions of latent and code and w that of u + v, the map is ``|e|/|z| · (I - 2ww')(I - 2uu')``, held
    constant. Opposite directions have no w; the reflection that is left without it maps u to v = -u as well.
    """
    z, e = jax.lax.stop_gradient((latents, codes))

    def norm(x: Array) -> Array:
        return jnp.linalg.norm(x, axis=-1, keepdims=True)

    def reflect(x: Array, direction: Array) -> Array:
        return x - 2 * jnp.sum(direction * x, -1, keepdims=True) * direction

    z_norm, e_norm = (jnp.maximum(norm(x), 1e-6) for x in (z, e))
    u = z / z_norm
    both = u + e / e_norm
    w = jnp.where(norm(both) > 1e-3, both / jnp.maximum(norm(both), 1e-3), 0.0)
    return straight_through(e_norm / z_norm * reflect(reflect(latents, u), w), codes)


ESTIMATORS: dict[str, Estimator] = {"straight_through": straight_through, "rotation": rotation}


def get_estimator(name: str) -> Estimator:
    """The estimator called ``name``.

    Raises:
      UserError: there is none.
    """
    if name not in ESTIMATORS:
        raise UserError(f"unknown gradient estimator {name!r}{near_matches(name, ESTIMATORS)}")
    return ESTIMATORS[name]
