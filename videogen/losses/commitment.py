"""The two halves of the vector-quantization objective (VQ-VAE; van den Oord et al., 2017).

Both are means over elements, not sums over channels, so that their weights (0.25 in VQ-VAE and MAGVIT) do not
depend on the code width. ``exists`` are the places that are no padding, ``mean`` as of a quantizer.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videogen.nn import Mean, mean_where, whole


def distance(
    latents: Float[Array, "... embed"],
    codes: Float[Array, "... embed"],
    exists: Bool[Array, "..."] | None = None,
    mean: Mean = whole,
) -> Float[Array, ""]:
    """Mean of (z - e)², with a gradient to both."""
    return mean_where(jnp.square(latents.astype(jnp.float32) - codes.astype(jnp.float32)), exists, mean)


def commitment(
    latents: Float[Array, "... embed"],
    codes: Float[Array, "... embed"],
    exists: Bool[Array, "..."] | None = None,
    mean: Mean = whole,
) -> Float[Array, ""]:
    """Pulls the latents to their codes: mean of (z - sg(e))²."""
    return distance(latents, jax.lax.stop_gradient(codes), exists, mean)


def codebook_loss(
    latents: Float[Array, "... embed"],
    codes: Float[Array, "... embed"],
    exists: Bool[Array, "..."] | None = None,
    mean: Mean = whole,
) -> Float[Array, ""]:
    """Pulls the codes to their latents: mean of (sg(z) - e)²."""
    return distance(jax.lax.stop_gradient(latents), codes, exists, mean)
