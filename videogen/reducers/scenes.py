"""Frames that are distributed alike are one scene, whose later frames keep what is new (GRT, stage 2; G10)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from videogen.ranges import Count, Share, Weight
from videogen.reducers.base import Reducer, Report, report
from videogen.reducers.selection import NONE
from videogen.reducers.time import jensen_shannon, segments
from videogen.reducers.tokens import TokenSet, compact, unit


class SceneDrop(Reducer):
    """Of every frame of a scene but its first, the tokens that are least like those of the frame before stay.

    A frame's distribution is the softmax of the mean of its tokens; neighbours whose Jensen-Shannon divergence is below
    ``threshold`` are of one scene. A frame keeps ``share`` of its tokens, at least ``floor``.

    Args:
      budget: tokens that there is room for; where more stay, the last ones are lost, and the report says how many.
      threshold: of the divergence, in nats.
      share: of the tokens of a frame.
      floor: least number of tokens of a frame.
    """

    laws = ("identity_at_full_budget",)
    needs_grid = True

    def __init__(self, budget: Count, *, threshold: Weight = 0.4, share: Share = 0.5, floor: Count = 16):
        self.budget, self.threshold, self.share, self.floor = budget, threshold, share, floor

    def scenes(self, tokens: TokenSet) -> Int[Array, "batch frames"]:
        """The number of the scene of every frame."""
        grid = self.grid_of(tokens)
        means = tokens.x.astype(jnp.float32).reshape(len(tokens.x), grid[0], grid[1] * grid[2], -1).mean(2)
        outcomes = jax.nn.softmax(means, axis=-1)
        return jax.vmap(segments)(jensen_shannon(outcomes[:, 1:], outcomes[:, :-1]) >= self.threshold)

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        grid, batch = self.grid_of(tokens), len(tokens.x)
        each = grid[1] * grid[2]
        scene = self.scenes(tokens)
        x = unit(tokens.x).reshape(batch, grid[0], each, -1)
        alike = jnp.concatenate([jnp.full((batch, 1, each), -1.0), (x[:, 1:] * x[:, :-1]).sum(-1)], axis=1)
        kept = min(each, max(self.floor, int(self.share * each)))
        rank = jnp.argsort(jnp.argsort(alike, axis=-1, stable=True), axis=-1, stable=True)
        first = jnp.concatenate([jnp.ones((batch, 1), bool), scene[:, 1:] != scene[:, :-1]], axis=1)
        keep = first[..., None] | (rank < kept)
        found, over = compact(tokens, keep.reshape(batch, -1), self.budget)
        return found, report(tokens, found, self.budget, over=jnp.mean(over * 1.0), scenes=jnp.mean(scene[:, -1] + 1.0))
