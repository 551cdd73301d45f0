"""What every quantizer returns, and what all of them share."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """The result of a quantizer.

    Attributes:
      latents: quantised latents with a straight-through gradient to the input; same shape as the input.
      indices: one id per level.
      losses: weighted auxiliary losses by name, scalars.
      statistics: ``counts`` (how often each code was used in the batch, over the whole mesh).
    """

    latents: Float[Array, "... code"]
    indices: Int[Array, "... levels"]
    losses: dict[str, Float[Array, ""]]
    statistics: dict[str, Array]


class QuantizerState(nnx.Variable):
    """State of a quantizer that is not trained by gradients (moving averages)."""


def straight_through(latents: Float[Array, "..."], codes: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value of ``codes``, to the bit, with the gradient of ``latents`` (Bengio et al., 2013)."""
    # latents + sg(codes - latents) would round: a large latent leaves few digits for the code.
    return jax.lax.stop_gradient(codes) + (latents - jax.lax.stop_gradient(latents))


def count_codes(indices: Int[Array, "..."], size: int) -> Float[Array, "size"]:
    """Occurrences of every id, float32. Counts are sums over the global batch, so they span the mesh."""
    return jnp.zeros(size, jnp.float32).at[indices.reshape(-1)].add(1.0)
