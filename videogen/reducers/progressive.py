"""Frames that say what the frames before them have not said: progressive compression, of pictures too (PVC; Yang et
al., 2024; R5)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError
from videogen.nn import Attention, Causal, Hook, LayerNorm, Linear, TimeEmbedding, mean_where, modulate
from videogen.nn.modulation import ZeroModulation
from videogen.nn.tower import NOTES
from videogen.ranges import Count, Natural
from videogen.reducers.base import Reducer, Report, report
from videogen.reducers.pooling import windows
from videogen.reducers.selection import NONE
from videogen.reducers.tokens import TokenSet, merge, unit


def as_still(
    pictures: Float[Array, "batch height width channel"], frames: int = 4
) -> Float[Array, "batch frames height width channel"]:
    """Pictures as clips in which nothing moves: the way in which they are encoded as videos are."""
    return jnp.repeat(pictures[:, None], frames, axis=1)


class SamePlaceAttention(nnx.Module):
    """Causal attention over time at the same place, behind a norm that the relative time shifts and scales, and with a
    gate that it sets; at first the gate is 0, so that frames are what they are as pictures.

    Args:
      width: channels.
      heads: of the attention.
      features: cosines and sines of the relative time.
    """

    def __init__(self, width: int, heads: int, *, features: int = 256, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.time = TimeEmbedding(width, features=features, rngs=rngs)
        self.modulation = ZeroModulation(width, 3, rngs=rngs)
        self.norm = LayerNorm(width, affine=False, rngs=rngs)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time places width"],
        times: Float[Array, "batch time"],
        exists: Bool[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time places width"]:
        """The tokens with what their places knew before.

        Args:
          x: tokens of frames in order.
          times: of the frames, in [0, 1]: 0 of the first, 1 of the last.
          exists: which frames there are.
        """
        batch, time, places, width = x.shape
        parts = self.modulation(self.time(times))[:, :, :, None].astype(x.dtype)
        y = modulate(self.norm(x), parts[:, :, 0], parts[:, :, 1])
        y = y.swapaxes(1, 2).reshape(batch * places, time, width)
        seen = None
        if exists is not None:
            # A query of a clip without frames must see something.
            seen = jnp.repeat(exists.at[:, 0].set(True), places, axis=0)
        y = self.attention(y, mask=Causal(), key_mask=seen)
        return x + parts[:, :, 2] * y.reshape(batch, places, time, width).swapaxes(1, 2)


class ProgressiveHook(Hook):
    """``SamePlaceAttention`` before a layer of a vision transformer that takes the frames of a batch one by one.

    ``notes`` of the call hold ``frames``, of each clip, and may hold ``exists`` ``[batch, frames]``.
    """

    place = "before"

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.attention = SamePlaceAttention(width, heads, dtype=dtype, rngs=rngs)

    def __call__(self, x, call, aux):
        frames = call[NOTES]["frames"]
        grid = x.reshape(-1, frames, *x.shape[1:])
        times = jnp.broadcast_to(relative(jnp.arange(frames * 1.0)[None]), grid.shape[:2])
        return self.attention(grid, times, call[NOTES].get("exists")).reshape(x.shape), call


def relative(
    times: Float[Array, "batch time"], exists: Bool[Array, "batch time"] | None = None
) -> Float[Array, "batch time"]:
    """Times from 0 at the first frame that exists to 1 at the last; 0 where there is one."""
    there = jnp.ones(times.shape, bool) if exists is None else exists
    first = jnp.where(there, times, jnp.inf).min(1, keepdims=True)
    last = jnp.where(there, times, -jnp.inf).max(1, keepdims=True)
    return jnp.where(there, (times - first) / jnp.maximum(last - first, 1e-6), 0.0)


class Progressive(Reducer):
    """Layers of attention over time at the same place, then every window of a frame as one token (256 to 64).

    A picture is a clip in which nothing moves (``as_still``). Frames do not depend on later ones but for their number.

    Args:
      inputs: channels of the tokens.
      side: a window is ``side × side`` tokens of a frame.
      layers: of attention; in the paper they stand in the last layers of the encoder (``ProgressiveHook``).
      heads: of the attention.
      outputs: channels of the result; ``None``: ``inputs``.
    """

    laws = ("fixed_budget", "conserved_mass")
    needs_grid, keeps_grid = True, True

    def __init__(
        self,
        inputs: Count,
        *,
        side: Count = 2,
        layers: Natural = 1,
        heads: Count = 8,
        outputs: Count | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.side, self.outputs = side, outputs or inputs
        self.layers = nnx.List([SamePlaceAttention(inputs, heads, **common) for _ in range(layers)])
        self.time = TimeEmbedding(inputs, rngs=rngs)
        self.modulation = ZeroModulation(inputs, 2, rngs=rngs)
        self.norm = LayerNorm(inputs, affine=False, rngs=rngs)
        self.compress = Linear(side * side * inputs, self.outputs, axes=("embed", None), **common)

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        (time, height, width), batch = self.grid_of(tokens), len(tokens.x)
        if height % self.side or width % self.side:
            raise UserError(f"windows of {self.side} do not tile frames of {height}×{width} tokens; change side")
        given = tokens.filled()
        exists = given.mask.reshape(batch, time, -1).any(-1)
        times = relative(given.position.reshape(batch, time, -1, 3)[:, :, 0, 0], exists)
        x = jnp.where(given.mask[..., None], given.x, 0).reshape(batch, time, height * width, -1)
        for layer in self.layers:
            x = layer(x, times, exists)
        shift, scale = jnp.moveaxis(self.modulation(self.time(times)), 2, 0)[:, :, :, None].astype(x.dtype)
        x = modulate(self.norm(x), shift, scale)
        sides = (time, height // self.side, width // self.side)
        x = x.reshape(batch, *sides[:2], self.side, sides[2], self.side, -1).swapaxes(3, 4)
        codes = self.compress(x.reshape(batch, time, sides[1] * sides[2], -1))
        group = jnp.broadcast_to(windows((time, height, width), (1, self.side, self.side)), tokens.shape)
        merged = merge(tokens, group, time * sides[1] * sides[2])
        flat = jnp.where(merged.mask[..., None], codes.reshape(batch, -1, self.outputs), 0).astype(tokens.x.dtype)
        found = TokenSet(flat, merged.mask, merged.position, merged.size, merged.source, sides)
        likeness = jnp.sum(unit(codes[:, 1:]) * unit(codes[:, :1]), axis=-1)
        alike = mean_where(likeness, exists[:, 1:]) if time > 1 else jnp.zeros(())
        return found, report(tokens, found, time * sides[1] * sides[2], alike=alike)
