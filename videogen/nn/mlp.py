"""The layers of a block that see one token at a time."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError, near_matches
from videogen.nn.linear import Linear, truncated_normal
from videogen.nn.micro_batches import draw, example_keys
from videogen.ranges import Count

_exact_gelu = functools.partial(jax.nn.gelu, approximate=False)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x · sigmoid(1.702 x)``, the activation of CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


MLPS = {
    "gelu": (_exact_gelu, False),
    "gelu_tanh": (jax.nn.gelu, False),
    "quick_gelu": (quick_gelu, False),
    "relu": (jax.nn.relu, False),
    "silu": (jax.nn.silu, False),
    "geglu": (_exact_gelu, True),
    "geglu_tanh": (jax.nn.gelu, True),
    "swiglu": (jax.nn.silu, True),
}
"""Kind of an MLP -> its activation, and whether a second linear layer is multiplied with what is activated."""


class MLP(nnx.Module):
    """Two linear layers around an activation, or three where it is a gate: ``down(activation(gate(x)) * up(x))``.

    Args:
      width: of the tokens.
      hidden: width in between.
      kind: a name in ``MLPS``.
      bias: all linear layers have one.
      lora: ``{rank, alpha}`` of a low-rank update of all linear layers.
      out_scale: scales the initial output projection (depth-aware initialisation).
    """

    def __init__(
        self,
        width: int,
        hidden: Count,
        *,
        kind: str = "gelu_tanh",
        bias: bool = False,
        lora: Mapping[str, Any] | None = None,
        out_scale: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if kind not in MLPS:
            raise UserError(f"unknown MLP {kind!r}{near_matches(kind, MLPS)}")
        self.activation, gated = MLPS[kind]
        common = dict(bias=bias, lora=lora, dtype=dtype, rngs=rngs)
        self.up = Linear(width, hidden, axes=("embed", "mlp"), **common)
        initializer = truncated_normal(out_scale / hidden**0.5)
        self.down = Linear(hidden, width, axes=("mlp", "embed"), initializer=initializer, **common)
        self.gate = Linear(width, hidden, axes=("embed", "mlp"), **common) if gated else None

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Zeroes a share ``rate`` of the entries and rescales the rest; the identity without a key.

    Args:
      x: what is thinned out.
      rate: the share.
      key: one, or one of each example of the leading axis.
    """
    if key is None or rate == 0:
        return x
    keep = draw(lambda key, shape: jax.random.bernoulli(key, 1 - rate, shape), example_keys(key, len(x)), x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
