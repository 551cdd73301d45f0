"""Attention over time at every place, before a block of an image network (VidLA; Rizve et al., 2024)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.nn.attention import PROJECTIONS, Attention
from videogen.nn.norms import LayerNorm
from videogen.nn.positions import rotary_angles


class Divided(nnx.Module):
    """A block over all tokens of a clip, and before it attention of every patch to the patches of its place.

    The output projection of the attention is 0 at first, so that the layer begins as the block. The time of a patch is
    known by rotary positions, which have no parameters.

    Args:
      block: the block.
      width: of the tokens.
      heads: of the attention over time.
      first: how many tokens stand before the patches; they take no part in it.
      epsilon: of the norm before it.
    """

    def __init__(
        self,
        block: nnx.Module,
        width: int,
        heads: int,
        first: int,
        *,
        epsilon: float = 1e-5,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.block, self.first = block, first
        self.time_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.time = Attention(width, heads, qk_norm=None, bias=PROJECTIONS, out_scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"], *, frames: int, **call: Any
    ) -> Float[Array, "batch tokens width"]:
        """The block behind the attention over time; ``frames`` are those of a clip, whose patches stand frame by
        frame behind the ``first`` tokens."""
        patches = x[:, self.first :]
        places = patches.reshape(len(x), frames, -1, x.shape[-1]).swapaxes(1, 2)
        rows = places.reshape(-1, frames, x.shape[-1])
        angles = rotary_angles((frames,), self.time.head_width)
        found = self.time(self.time_norm(rows), rotary=jnp.asarray(angles))
        found = found.reshape(places.shape).swapaxes(1, 2).reshape(patches.shape)
        x = jnp.concatenate([x[:, : self.first], patches + found], axis=1)
        return self.block(x, **call)
