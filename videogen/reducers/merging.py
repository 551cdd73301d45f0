"""Alike tokens become one: bipartite matching and greedy groups (G1, G8)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.ranges import Count, Finite, Natural
from videogen.reducers.base import Reducer, Report, report
from videogen.reducers.selection import NONE
from videogen.reducers.tokens import TokenSet, best, compact, merge, ranked, take, unit


def matched(
    metric: Float[Array, "tokens width"],
    exists: Bool[Array, "tokens"],
    protected: int,
    removed: int,
) -> Int[Array, "tokens"]:
    """The token that stands for each: itself, or for ``removed`` tokens at even places the likest one at an odd place.

    Args:
      metric: what tokens are compared by, with the cosine.
      exists: which there are; others are never matched.
      protected: the first tokens that stay as they are.
      removed: how many, at most ``(tokens - protected) // 2``.
    """
    count = len(metric)
    even, odd = jnp.arange(protected, count, 2), jnp.arange(protected + 1, count, 2)
    alike = unit(metric[even]) @ unit(metric[odd]).T
    alike = jnp.where(exists[even][:, None] & exists[odd][None], alike, -jnp.inf)
    value, partner = alike.max(1), alike.argmax(1)
    rank = jnp.argsort(jnp.argsort(-value, stable=True), stable=True)
    gone = (rank < removed) & jnp.isfinite(value)
    return jnp.arange(count).at[even].set(jnp.where(gone, odd[partner], even))


class BipartiteMerging(Reducer):
    """Tokens at even places join the likest ones at odd places, the likest pairs first (ToMe; Bolya et al., 2023).

    Tokens are compared by ``aux["metric"]`` ``[batch, tokens, width]`` where it is given (the mean over heads of an
    attention's keys), else by their vectors. In one round at most half of the tokens can go; ``removed`` above that
    takes further rounds where ``rounds`` allows them.

    Args:
      removed: tokens that go.
      protected: the first tokens of each example, which stay as they are ([CLS]).
      rounds: at most so many.
    """

    laws = ("fixed_budget", "conserved_mass", "identity_at_full_budget")

    def __init__(self, removed: Natural, *, protected: Natural = 0, rounds: Count = 1):
        self.removed, self.protected, self.rounds = removed, protected, rounds

    @classmethod
    def budgeted(cls, section: Mapping[str, Any], budget: int, tokens: int, grid: Any) -> dict[str, Any]:
        # Every round halves what can go.
        return {**section, "removed": max(tokens - budget, 0), "rounds": max(tokens // max(budget, 1), 1).bit_length()}

    def steps(self, tokens: int) -> list[int]:
        """How many go in each round.

        Raises:
          UserError: so many cannot go in these rounds.
        """
        left, steps = self.removed, []
        while left:
            step = min(left, (tokens - sum(steps) - self.protected) // 2)
            if len(steps) == self.rounds or step <= 0:
                most = sum(steps)
                raise UserError(
                    f"of {tokens} tokens, {self.protected} of them protected, at most {most} can be merged away in "
                    f"{self.rounds} round(s), not {self.removed}; lower removed or raise rounds"
                )
            steps.append(step)
            left -= step
        return steps

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        found = tokens.filled()
        found = dataclasses.replace(found, x=jnp.where(found.mask[..., None], found.x, 0))
        metric = aux.get("metric")
        for step in self.steps(tokens.shape[1]):
            compared = found.x if metric is None else metric
            count = found.x.shape[1]
            stands = jax.vmap(lambda m, e, step=step: matched(m, e, self.protected, step))(compared, found.mask)
            group = jnp.where(found.mask, stands, count)
            slots = ranked(group, count)
            merged = merge(found, slots, count - step)
            if metric is not None:
                weights = TokenSet(metric, found.mask, found.position, found.size)
                metric = merge(weights, slots, count - step).x
            found = merged
        return found, report(tokens, found, tokens.shape[1] - self.removed)


def schedule(kind: str, removed: int, layers: int, tokens: int, protected: int = 0) -> list[int]:
    """Tokens that go in each layer: ``constant`` or ``decreasing`` (linearly from 2 · ``removed`` to 0), which sum to
    ``removed · layers`` exactly.

    Raises:
      UserError: a layer cannot lose so many: at most ``(tokens there - protected) // 2``.
    """
    if kind == "constant" or layers == 1:
        steps = [removed] * layers
    elif kind == "decreasing":
        wanted = [2 * removed * (layers - 1 - i) / (layers - 1) for i in range(layers)]
        ends = [round(sum(wanted[: i + 1])) for i in range(layers)]
        steps = [b - a for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    else:
        raise UserError(f"unknown schedule {kind!r}; there are constant and decreasing")
    left = tokens
    for layer, step in enumerate(steps):
        left = _less(left, step, protected, f"layer {layer}")
    return steps


def _less(tokens: int, removed: int, protected: int, where: str) -> int:
    """So many tokens less; raises ``UserError`` where one round of merging cannot remove them."""
    most = (tokens - protected) // 2
    if removed > most:
        raise UserError(
            f"{where} has {tokens} tokens, {protected} of them protected: at most {most} can be merged away there, "
            f"not {removed}; lower removed"
        )
    return tokens - removed


def merged_counts(
    tokens: int,
    frames: int,
    *,
    removed: int,
    layers: int,
    joins: Sequence[int],
    across: float = 0.3,
    inside: float = 0.1,
    rest: int = 0,
) -> list[int]:
    """Tokens of a unit as they merge within frames, then across joined units and within these (TempMe; Shen et al.,
    2024). The [CLS] token of every frame is protected.

    Args:
      tokens: of a frame, its [CLS] among them.
      frames: units at the start.
      removed: tokens that go in each of the layers of frames.
      layers: of frames.
      joins: units that become one, of every layer behind these.
      across: share of the joined tokens that goes before the attention.
      inside: share that goes behind the attention, also in the layers behind.
      rest: layers behind the last join.

    Returns:
      The number behind every layer of frames; of every joining layer the joined number, that before and that behind
      the attention; that behind every layer of the rest.

    Raises:
      UserError: units do not join, or a layer cannot lose so many.
    """
    found, protected = [], 1
    for layer in range(layers):
        tokens = _less(tokens, removed, protected, f"layer {layer}")
        found.append(tokens)
    if frames % math.prod(joins):
        raise UserError(f"{frames} frames do not join by {' · '.join(map(str, joins))}; change joins")
    for layer, join in enumerate([*joins, *[1] * rest], layers):
        tokens, protected = tokens * join, protected * join
        found += [tokens] * (join > 1)
        shares = [across] * (join > 1) + [inside]
        for share in shares:
            tokens = _less(tokens, int(share * tokens), protected, f"layer {layer}")
            found.append(tokens)
    return found


class GreedyMerging(Reducer):
    """The longest vectors, of which those that are alike become their mean (D-CoDe).

    In raster order the first token that has no group yet opens one, and all later ones without a group join whose
    cosine with it is at least ``threshold``.

    Args:
      budget: tokens that are looked at, and at most kept.
      threshold: from this cosine on; above 1 nothing is merged.
    """

    laws = ("fixed_budget", "identity_at_full_budget")

    def __init__(self, budget: Count = 288, *, threshold: Finite = 0.8):
        self.budget, self.threshold = budget, threshold

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        given = tokens.filled()
        longest = take(tokens, *best(jnp.linalg.norm(given.x.astype(jnp.float32), axis=-1), given.mask, self.budget))
        group = jax.vmap(lambda x, mask: greedy_groups(x, mask, self.threshold))(longest.x, longest.mask)
        merged = merge(longest, group, self.budget)
        found, _ = compact(merged, merged.mask, self.budget)
        return found, report(tokens, found, self.budget)


def greedy_groups(
    x: Float[Array, "tokens width"], mask: Bool[Array, "tokens"], threshold: float
) -> Int[Array, "tokens"]:
    """The place of the token that opened each one's group; the number of tokens for those that do not exist."""
    count, vectors = len(x), unit(x)

    def step(i: Array, group: Array) -> Array:
        alike = (vectors @ vectors[i] >= threshold) & (jnp.arange(count) > i)
        opens = group[i] == count
        joins = opens & (group == count) & (alike | (jnp.arange(count) == i)) & mask & mask[i]
        return jnp.where(joins, i, group)

    return jax.lax.fori_loop(0, count, step, jnp.full(count, count))
