"""Mixture of depths: a router lets a share of the tokens of every frame through a layer (Raposo et al., 2024;
VideoLLM-MoD, Wu et al., 2024)."""

import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.nn.linear import FULL, Linear
from videogen.ranges import Count, OneOf, Share

WEIGHTS = ("output", "branch")
"""What the router's weight multiplies: the token behind the layer, or only what the layer adds to it."""


class DepthRouter(nnx.Module):
    """Scores tokens; the best of each frame go through a layer, the others pass unchanged.

    Args:
      width: channels.
      share: of the tokens of a frame that go through, rounded up.
      each: tokens of a frame.
      weight: one of ``WEIGHTS``; the papers' texts do not say which, the released code has ``output``.
    """

    def __init__(
        self,
        width: Count,
        share: Share,
        each: Count,
        *,
        weight: Annotated[str, OneOf(*WEIGHTS)] = "output",
        rngs: nnx.Rngs,
    ):
        self.share, self.each, self.weight = share, each, weight
        self.score = Linear(width, 1, axes=("embed", None), precision=FULL, rngs=rngs)

    def count(self, each: int) -> int:
        """How many of so many tokens of a frame go through."""
        return math.ceil(self.share * each)

    def chosen(
        self, x: Float[Array, "batch frames each width"], mask: Bool[Array, "batch frames each"] | None = None
    ) -> tuple[Int[Array, "batch frames count"], Float[Array, "batch frames count"]]:
        """The places of the best tokens of every frame in their order, and their weights in [0, 1].

        Frames come whole, so a choice within one tells nothing of the future.
        """
        weights = jax.nn.sigmoid(self.score(x)[..., 0].astype(jnp.float32))
        ranked = weights if mask is None else jnp.where(mask, weights, -1.0)
        index = jnp.sort(jax.lax.top_k(ranked, self.count(x.shape[2]))[1], axis=-1)
        return index, jnp.take_along_axis(weights, index, axis=-1)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        layer: Callable[[Float[Array, "batch some width"], Int[Array, "batch some"]], Float[Array, "batch some width"]],
        frames: int,
        mask: Bool[Array, "batch tokens"] | None = None,
        each: int | None = None,
    ) -> Float[Array, "batch tokens width"]:
        """The tokens behind the layer.

        Args:
          x: the tokens of ``frames`` whole frames, then others that all go through (text).
          layer: ``(tokens, their places) -> tokens``, residual included; it is called once with those that go through.
          frames: how many.
          mask: which tokens exist; those that do not are let through last.
          each: tokens of a frame, where they are others than the router was built for.
        """
        batch, _, width = x.shape
        each = self.each if each is None else each
        seen = frames * each
        if self.count(each) == 0:
            chosen = jnp.broadcast_to(jnp.arange(seen, x.shape[1]), (batch, x.shape[1] - seen))
            weights = jnp.ones((batch, 0))
        else:
            grid = None if mask is None else mask[:, :seen].reshape(batch, frames, each)
            index, weights = self.chosen(x[:, :seen].reshape(batch, frames, each, width), grid)
            index = (index + each * jnp.arange(frames)[None, :, None]).reshape(batch, -1)
            others = jnp.broadcast_to(jnp.arange(seen, x.shape[1]), (batch, x.shape[1] - seen))
            chosen, weights = jnp.concatenate([index, others], axis=1), weights.reshape(batch, -1)
        if chosen.shape[1] == 0:
            return x
        taken = jnp.take_along_axis(x, chosen[..., None], axis=1)
        made = layer(taken, chosen)
        scale = jnp.concatenate([weights, jnp.ones((batch, chosen.shape[1] - weights.shape[1]))], axis=1)
        scale = scale[..., None].astype(made.dtype)
        made = scale * made if self.weight == "output" else taken + scale * (made - taken)
        return jax.vmap(lambda x, at, y: x.at[at].set(y.astype(x.dtype)))(x, chosen, made)
