"""The two halves of the vector-quantization objective (VQ-VAE; van den Oord et al., 2017).

Both are means over elements, not sums over channels, so that their weights (0.25 in VQ-VAE and MAGVIT) do not
depend on the code width.
"""

import jax
from jaxtyping import Array, Float

from videogen.losses.pixel import l2


def commitment(latents: Float[Array, "... embed"], codes: Float[Array, "... embed"]) -> Float[Array, ""]:
    """Pulls the latents to their codes: mean of (z - sg(e))²."""
    return l2(latents, jax.lax.stop_gradient(codes))


def codebook_loss(latents: Float[Array, "... embed"], codes: Float[Array, "... embed"]) -> Float[Array, ""]:
    """Pulls the codes to their latents: mean of (sg(z) - e)²."""
    return l2(jax.lax.stop_gradient(latents), codes)
