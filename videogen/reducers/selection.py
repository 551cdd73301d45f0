"""Frames and tokens that stay as they are; the others are dropped (S1 of the survey of reducers, and baselines)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.ranges import Count, OneOf, Share
from videogen.reducers.base import Reducer, Report, need, report
from videogen.reducers.scorers import SCORERS
from videogen.reducers.tokens import Grid, TokenSet, best, take, unit

NONE: Mapping[str, Any] = MappingProxyType({})


def evenly(length: int, count: int) -> Int[np.ndarray, "count"]:
    """``count`` of ``length`` places with both ends, ``round(i (length - 1) / (count - 1))``; of one the middle."""
    if count >= length:
        return np.arange(length)
    if count == 1:
        return np.array([(length - 1) // 2])
    return np.array([int(np.floor(i * (length - 1) / (count - 1) + 0.5)) for i in range(count)])


def frames_of(tokens: TokenSet, grid: Grid, index: Int[Array, "batch kept"]) -> TokenSet:
    """All tokens of these frames, in the order of ``index``, on a grid of their own."""
    each = grid[1] * grid[2]
    places = (index[:, :, None] * each + jnp.arange(each)).reshape(len(index), -1)
    found = take(tokens, places, jnp.ones(places.shape, bool))
    return TokenSet(found.x, found.mask, found.position, found.size, found.source, (index.shape[1], *grid[1:]))


def smoothed(scores: Float[Array, "batch frames"], window: int) -> Float[Array, "batch frames"]:
    """The largest of each score and the ``window - 1`` before it, so that neighbours share a peak."""
    shifted = [jnp.pad(scores, ((0, 0), (i, 0)), constant_values=-jnp.inf)[:, : scores.shape[1]] for i in range(window)]
    return jnp.max(jnp.stack(shifted), axis=0)


def diverse(
    features: Float[Array, "frames width"], first: Int[np.ndarray, "spread"], count: int, there: Bool[Array, "frames"]
) -> Int[Array, "count"]:
    """``first``, then one frame after another that is least like those chosen, by the mean cosine; in order of time."""
    alike = unit(features) @ unit(features).T
    chosen = jnp.zeros(len(features), bool).at[first].set(True)

    def add(_: int, chosen: Array) -> Array:
        mean = (alike * chosen).sum(1) / jnp.maximum(chosen.sum(), 1)
        return chosen.at[jnp.argmin(jnp.where(chosen | ~there, jnp.inf, mean))].set(True)

    chosen = jax.lax.fori_loop(0, count - len(first), add, chosen)
    return jnp.sort(jnp.argsort(~chosen, stable=True)[:count])


def noise(key: Array, batch: int, count: int) -> Float[Array, "batch count"]:
    """Numbers in [0, 1) by a key of each example; one key stands for all, folded with their numbers."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch)) if key.ndim == 0 else key
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


def gumbel(key: Array, batch: int, count: int) -> Float[Array, "batch count"]:
    """Gumbel draws by a key of each example: the largest sums with log-weights are draws without replacement."""
    return -jnp.log(-jnp.log(jnp.clip(noise(key, batch, count), 1e-6, 1 - 1e-6)))


def logistic(key: Array, batch: int, count: int) -> Float[Array, "batch count"]:
    """Differences of two Gumbel draws, by a key of each example."""
    u = jnp.clip(noise(key, batch, count), 1e-6, 1 - 1e-6)
    return jnp.log(u) - jnp.log1p(-u)


class FrameSelection(Reducer):
    """A number of whole frames.

    Args:
      frames: how many stay.
      rule: ``uniform``: spread over the clip with both ends, of one the middle. ``query``: most like the question, by
        the cosine of ``aux["frames"]`` ``[batch, frames, width]`` and ``aux["question"]`` ``[batch, width]`` (Free
        Video-LLM). ``diverse``: a share spread evenly, then those least like the chosen ones (D-CoDe). ``random``: by
        ``aux["key"]``, a baseline.
      window: of ``query``: the score of a frame is the largest of so many.
      share: of ``diverse``: the share of the frames that is spread evenly.
    """

    laws = ("fixed_budget", "identity_at_full_budget")
    needs_grid, keeps_grid = True, True

    def __init__(
        self,
        frames: Count,
        *,
        rule: Annotated[str, OneOf("uniform", "query", "diverse", "random")] = "uniform",
        window: Count = 1,
        share: Share = 0.85,
    ):
        self.frames, self.rule, self.window, self.share = frames, rule, window, share
        self.needs = {"query": ("frames", "question"), "diverse": ("frames",), "random": ("key",)}.get(rule, ())

    @classmethod
    def budgeted(cls, section: Mapping[str, Any], budget: int, tokens: int, grid: Grid | None) -> dict[str, Any]:
        each = grid[1] * grid[2] if grid else 1
        if budget % each:
            raise UserError(f"whole frames of {each} tokens do not make up a budget of {budget}; take a multiple")
        return {**section, "frames": budget // each}

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        grid = self.grid_of(tokens)
        batch, count = len(tokens.x), min(self.frames, grid[0])
        there = tokens.filled().mask.reshape(batch, grid[0], -1).any(-1)
        if self.rule == "uniform" or count == grid[0]:
            index = jnp.broadcast_to(jnp.asarray(evenly(grid[0], count)), (batch, count))
        elif self.rule == "random":
            index = best(noise(need(aux, "key", self), batch, grid[0]), there, count)[0]
        elif self.rule == "query":
            scores = (unit(need(aux, "frames", self)) * unit(need(aux, "question", self))[:, None]).sum(-1)
            index = best(smoothed(scores, self.window), there, count)[0]
        else:
            first = evenly(grid[0], max(1, round(self.share * count)))
            index = jax.vmap(lambda f, t: diverse(f, first, count, t))(need(aux, "frames", self), there)
        found = frames_of(tokens, grid, index)
        return found, report(tokens, found, self.frames * grid[1] * grid[2])


class TokenSelection(Reducer):
    """A number of tokens, in raster order.

    Args:
      budget: how many stay.
      rule: ``uniform``: evenly spaced with both ends (TS-LLaVA), and ``random``, by ``aux["key"]``, are baselines; else
        a name in ``scorers.SCORERS``, such as ``norm``: the longest vectors (D-CoDe), or ``score``: the highest
        ``aux["score"]`` ``[batch, tokens]``.
    """

    laws = ("fixed_budget", "identity_at_full_budget")

    def __init__(self, budget: Count, *, rule: Annotated[str, OneOf("uniform", "random", *SCORERS)] = "uniform"):
        self.budget, self.rule = budget, rule
        self.needs = ("key",) if rule == "random" else SCORERS[rule].needs if rule in SCORERS else ()
        self.needs_grid = rule in SCORERS and SCORERS[rule].grid

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        given, (batch, count) = tokens.filled(), tokens.shape
        if self.rule == "uniform":
            # Of the tokens that exist, which need not be the first ones.
            order, found = jnp.argsort(~given.mask, axis=1, stable=True), given.mask.sum(1)
            index = jnp.take_along_axis(order, jnp.clip(_spread(found, self.budget), 0, count - 1), axis=1)
            there = jnp.arange(self.budget)[None] < found[:, None]
        else:
            for name in self.needs:
                need(aux, name, self)
            random = self.rule == "random"
            scores = noise(aux["key"], batch, count) if random else SCORERS[self.rule].score(tokens, aux)
            index, there = best(scores, given.mask, self.budget)
        found = take(tokens, index, there)
        return found, report(tokens, found, self.budget)


def _spread(found: Int[Array, "batch"], budget: int) -> Int[Array, "batch budget"]:
    """``evenly`` of a number of places that differs by example; the first ones where there are no more than that."""
    i = jnp.arange(budget)[None]
    # In whole numbers: a rounded product of floats is not the same on every processor.
    steps = max(budget - 1, 1)
    spread = (2 * i * (found[:, None] - 1) + steps) // (2 * steps) if budget > 1 else (found[:, None] - 1) // 2
    return jnp.where(found[:, None] <= budget, i, spread)
