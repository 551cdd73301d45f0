"""Tokens of moving things and not of places (TrajViT; Zheng et al., 2025): label maps, links in time, means of regions
(G9)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videogen.ranges import Count
from videogen.reducers.base import Reducer, Report, need, report
from videogen.reducers.selection import NONE
from videogen.reducers.tokens import TokenSet, merge


class Trajectories(Reducer):
    """A token for every thing: the mean of the tokens that it covers in all frames.

    ``aux["labels"]`` ``[batch, tokens]`` are the labels of the tokens from a map on their grid, ``aux["links"]``
    ``[batch, things, time]`` the label of every thing in every frame, 0 where it is not there
    (``data.segments.linked``). What no thing covers is dropped.

    Args:
      budget: things.
    """

    laws = ("fixed_budget",)
    needs = ("labels", "links")
    needs_grid = True

    def __init__(self, budget: Count = 32):
        self.budget = budget

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        grid = self.grid_of(tokens)
        labels, links = jnp.asarray(need(aux, "labels", self)), jnp.asarray(need(aux, "links", self))[:, : self.budget]
        frame = jnp.arange(tokens.shape[1]) // (grid[1] * grid[2])

        def one(labels: Int[Array, "tokens"], links: Int[Array, "things time"]) -> Int[Array, "tokens"]:
            mine = (links[:, frame] == labels[None]) & (labels[None] > 0)
            return jnp.where(mine.any(0), jnp.argmax(mine, axis=0), self.budget)

        found = merge(tokens, jax.vmap(one)(labels, links), self.budget)
        return found, report(tokens, found, self.budget)


def labels_on_grid(
    labels: Int[np.ndarray, "time height width"], grid: tuple[int, int, int]
) -> Int[np.ndarray, "tokens"]:
    """The most frequent label below every token of a grid with as many frames, of equal ones the smallest."""
    time, height, width = grid
    y, x = labels.shape[1] // height, labels.shape[2] // width
    parts = labels[:, : y * height, : x * width].reshape(time, height, y, width, x).transpose(0, 1, 3, 2, 4)
    flat = parts.reshape(time * height * width, -1)
    return np.array([np.bincount(row).argmax() for row in flat], np.int32)


def shares_of_things(
    labels: Int[Array, "time height width"], links: Int[Array, "things time"], grid: tuple[int, int]
) -> Float[Array, "things time rows columns"]:
    """How much of every place of a grid of rows and columns is of each thing, in every frame: shares of its pixels.

    Where label maps leave nothing out and links have all of their labels, the shares of a place sum to 1.
    """
    mine = (links[:, :, None, None] == labels[None]) & (links > 0)[:, :, None, None]
    rows, columns = grid
    y, x = labels.shape[1] // rows, labels.shape[2] // columns
    return mine.reshape(*links.shape, rows, y, columns, x).mean((3, 5))


def mean_of_things(
    x: Float[Array, "time height width channels"],
    labels: Int[Array, "time height width"],
    links: Int[Array, "things time"],
) -> tuple[Float[Array, "things time channels"], Bool[Array, "things time"]]:
    """The mean of the features of every thing in every frame, and where it is there."""
    count = x.shape[1] * x.shape[2] + 1

    def frame(x: Array, labels: Array, own: Array) -> tuple[Array, Array]:
        flat, label = x.reshape(-1, x.shape[-1]), labels.reshape(-1)
        sums, sizes = (jax.ops.segment_sum(v, label, count) for v in (flat, jnp.ones(len(label))))
        means = sums / jnp.maximum(sizes, 1.0)[:, None]
        return jnp.where((own > 0)[:, None], means[own], 0.0), (own > 0) & (sizes[own] > 0)

    means, there = jax.vmap(frame)(x, labels, links.T)
    return means.swapaxes(0, 1), there.swapaxes(0, 1)
