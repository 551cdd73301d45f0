"""What heads share that give the density of continuous tokens."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.heads.base import Features, FloatHead, Mask, Sums
from videogen.nn import Linear, truncated_normal
from videogen.ranges import Number

SMALLEST_VARIANCE = 1e-5
"""Variances are clamped to at least this (Divot, section 4; DiCoDe, section 4)."""

Layers = Annotated[int, Number(int, 1, 2)]
"""Linear layers of an embedding or of an output: 1, or 2 with a GELU between them."""


class DensityHead(FloatHead):
    """Base of the heads that know the log-density of a vector in closed form."""

    def log_density(
        self, features: Features, values: Float[Array, "batch *places channels"]
    ) -> Float[Array, "batch *places"]:
        """Of the vector of each place over all its channels, in nats, float32; it may be positive."""
        raise NotImplementedError

    def loss(
        self,
        features: Features,
        targets: Float[Array, "batch *places channels"],
        mask: Mask,
        key: jax.Array | None,
        *,
        train: bool = True,
        measured: Mask | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Sums]]:
        """Negative log-density in nats, counted by numbers (places × channels); it may be negative."""
        nll = -self.log_density(features, targets.astype(jnp.float32))
        return jnp.where(mask, nll, 0.0).sum(), mask.sum() * float(self.channels), {}


class Numbers(Linear):
    """From features to the parameters of a density: one linear layer, or two as wide as their output (Divot, 2.3).

    Args:
      width: of the features.
      outputs: parameters of a place.
      layers: 1 or 2.
    """

    def __init__(self, width: int, outputs: int, *, layers: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        inputs, axis = (outputs, "mlp") if layers == 2 else (width, "embed")
        super().__init__(inputs, outputs, axes=(axis, None), initializer=truncated_normal(0.02), **common)
        self.first = Linear(width, outputs, axes=("embed", "mlp"), **common) if layers == 2 else None

    def __call__(self, features: Features) -> Float[Array, "batch *places outputs"]:
        """Float32."""
        x = features if self.first is None else jax.nn.gelu(self.first(features))
        return super().__call__(x).astype(jnp.float32)
