"""Adaptive layer norm: a condition, made of the noise level and a label, sets shift, scale and gate of every branch.

A condition has one row per group of tokens, ``[batch, groups, width]``: one for all, one per frame, or one for each
kind of token.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.nn.linear import Linear, normal, parameter, zeros
from videogen.ranges import Count

TIME_SCALE = 1000.0
"""Times in [0, 1] are embedded as the indices of a discrete process of so many steps."""


class TimeEmbedding(nnx.Module):
    """Cosines and sines of a time and two linear layers, all in float32 (Peebles and Xie, 2023).

    Args:
      width: of the embedding.
      features: cosines and sines together; wavelengths from 2π to 2π·10⁴.
    """

    def __init__(self, width: int, *, features: int = 256, rngs: nnx.Rngs):
        self.features = features
        self.inner = Linear(features, width, axes=(None, "embed"), rngs=rngs)
        self.outer = Linear(width, width, axes=("embed", None), rngs=rngs)

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times width"]:
        """``t`` in [0, 1]."""
        half = self.features // 2
        frequency = 10_000.0 ** (-np.arange(half, dtype=np.float32) / half)
        angles = TIME_SCALE * t.astype(jnp.float32)[..., None] * frequency
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return self.outer(jax.nn.silu(self.inner(waves)))


class ZeroModulation(nnx.Module):
    """adaLN-zero (Peebles and Xie, 2023): an own linear layer, at first zero, so that gated branches add nothing.

    Args:
      width: of the condition and of the tokens.
      parts: vectors to make.
      kinds: kinds of tokens with vectors of their own. With more than one the condition has one row, and the result
        has a row for each kind, which ``group_of`` lays out on the tokens.
    """

    def __init__(self, width: int, parts: int, *, kinds: Count = 1, rngs: nnx.Rngs):
        self.parts, self.width = parts, width
        self.linear = Linear(width, kinds * parts * width, axes=("embed", None), initializer=zeros, rngs=rngs)

    def __call__(self, condition: Float[Array, "batch groups width"]) -> Float[Array, "batch rows parts width"]:
        return self.linear(jax.nn.silu(condition)).reshape(*condition.shape[:-2], -1, self.parts, self.width)


class SingleModulation(nnx.Module):
    """adaLN-single (Chen et al., 2023): vectors that the whole network shares, plus an own table of offsets.

    Args:
      width: of the tokens.
      parts: vectors to make.
    """

    def __init__(self, width: int, parts: int, *, rngs: nnx.Rngs):
        self.table = parameter(rngs, (parts, width), (None, "embed"), normal(width**-0.5))

    def __call__(
        self, shared: Float[Array, "batch groups one_or_parts width"]
    ) -> Float[Array, "batch groups parts width"]:
        return shared + self.table.get_value()


MODULATIONS = {"zero": ZeroModulation, "single": SingleModulation}
"""What makes the vectors of a block: of the condition, or of what the network made of it for all blocks."""


def lay_out(
    parts: Float[Array, "batch groups parts width"],
    x: Float[Array, "batch *grid width"],
    group_of: Int[np.ndarray, "tokens"] | None = None,
) -> tuple[Float[Array, "..."], ...]:
    """The parts, each in the dtype of ``x`` and ready to broadcast with it.

    Args:
      parts: one row for each group: one in all, or as many as the first axis of the grid is long.
      x: tokens.
      group_of: of a sequence, which row holds for each token.
    """
    if group_of is not None:
        parts = parts[:, group_of]
    rows = parts.shape[:2] + (1,) * (x.ndim - 3)
    return tuple(parts[:, :, i].reshape(*rows, -1).astype(x.dtype) for i in range(parts.shape[2]))


def modulate(x: Float[Array, "batch *grid width"], shift: Array, scale: Array) -> Float[Array, "batch *grid width"]:
    """``x·(1 + scale) + shift``."""
    return x * (1 + scale) + shift
