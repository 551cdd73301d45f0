"""LARP's judge of clips (Wang et al., ICLR 2025): a vision transformer with a class token."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.nn import NORMS, Linear, block_stack, parameter, patchify, sincos_positions, truncated_normal
from videogen.ranges import Count, Natural
from videogen.shapes import Compression, Video, VideoShape

NORM = "layer"


class TransformerDiscriminator(nnx.Module):
    """All patches of a clip and a class token see each other; the class token says how real the clip is.

    Positions are fixed sines and cosines, so that clips of several lengths and sizes are judged by the same weights.

    Args:
      patch: ``(time, height, width)`` of a patch, a divisor of the clip.
      width: token width.
      layers: number of layers.
      heads: attention heads; MLPs are four times as wide as tokens.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
      dtype: of the computation; parameters and logits are float32.
    """

    def __init__(
        self,
        patch: Sequence[int],
        width: Count,
        layers: Natural,
        heads: Count,
        *,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch, self.dtype = tuple(patch), dtype
        sections = dict(attention={"heads": heads}, mlp={"hidden": 4 * width}, norm=NORM)
        self.patches = Linear(3 * math.prod(patch), width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.token = parameter(rngs, (width,), (None,), truncated_normal(0.02))
        self.stack = block_stack(width, layers, **sections, remat=remat, dtype=dtype, rngs=rngs)
        self.norm = NORMS[NORM](width, rngs=rngs)
        self.logit = Linear(width, 1, axes=("embed", None), rngs=rngs)

    def __call__(self, video: Video) -> Float[Array, "batch"]:
        """One logit of each clip in [-1, 1]; high means real.

        Raises:
          UserError: the patch does not divide the clip.
        """
        grid = VideoShape(*video.shape[1:4]).grid(Compression(*self.patch, first_alone=False))
        x = self.patches(patchify(video.astype(self.dtype), self.patch))
        batch, width = len(x), x.shape[-1]
        x = x.reshape(batch, -1, width) + jnp.asarray(sincos_positions(grid.shape, width), self.dtype)
        token = jnp.broadcast_to(self.token.get_value().astype(self.dtype), (batch, 1, width))
        x = self.stack(jnp.concatenate([token, x], axis=1))[:, 0]
        return self.logit(self.norm(x).astype(jnp.float32))[:, 0]
