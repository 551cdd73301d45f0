"""What repeats in time: tokens that do not change, windows that stand still, scenes (S3, G7, G10, X1)."""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.ranges import Count, Finite, OneOf, Share
from videogen.reducers.base import Reducer, Report, need, report
from videogen.reducers.selection import NONE
from videogen.reducers.tokens import TokenSet, compact, merge, ranked, unit


class DifferentialDrop(Reducer):
    """Tokens that hardly differ from the one at the same place a frame before are dropped (TimeChat-Online).

    The first frame stays whole. ``share`` drops as many of every frame; the thresholds are for evaluation, since what
    they drop differs from clip to clip.

    Args:
      budget: tokens that there is room for; where more stay, the last ones are lost, and the report says how many.
      by: ``feature``: the cosine of tokens is above ``threshold``. ``pixel``: the mean absolute difference of pixels
        in [0, 1], ``aux["difference"]`` ``[batch, tokens]``, is below it. ``share``: the ``share`` of every frame that
        is most alike by the cosine.
      threshold: see ``by``.
      share: see ``by``.
      reference: ``previous``: the frame before; ``kept``: the last token at that place that stayed, so that slow
        changes count.
    """

    laws = ("identity_at_full_budget",)
    needs_grid = True

    def __init__(
        self,
        budget: Count,
        *,
        by: Annotated[str, OneOf("feature", "pixel", "share")] = "share",
        threshold: Finite = 0.5,
        share: Share = 0.5,
        reference: Annotated[str, OneOf("previous", "kept")] = "previous",
    ):
        if reference == "kept" and by != "feature":
            raise UserError("reference=kept compares features with a threshold: set by=feature")
        self.budget, self.by, self.threshold, self.share, self.reference = budget, by, threshold, share, reference
        self.needs = ("difference",) if by == "pixel" else ()

    def kept(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> Bool[Array, "batch tokens"]:
        """Which tokens stay."""
        grid, (batch, count) = self.grid_of(tokens), tokens.shape
        each = grid[1] * grid[2]
        first = jnp.arange(count)[None] < each
        if self.by == "pixel":
            return first | ~(need(aux, "difference", self) < self.threshold)
        x = unit(tokens.x).reshape(batch, grid[0], each, -1)
        if self.reference == "kept":
            return jax.vmap(self._against_kept)(x).reshape(batch, count)
        alike = jnp.concatenate([jnp.full((batch, 1, each), -jnp.inf), (x[:, 1:] * x[:, :-1]).sum(-1)], axis=1)
        if self.by == "feature":
            return first | ~(alike.reshape(batch, count) > self.threshold)
        rank = jnp.argsort(jnp.argsort(-alike, axis=-1, stable=True), axis=-1, stable=True)
        return first | (rank >= int(self.share * each)).reshape(batch, count)

    def _against_kept(self, x: Float[Array, "time places width"]) -> Bool[Array, "time places"]:
        def step(last: Array, now: Array) -> tuple[Array, Array]:
            keep = ~((last * now).sum(-1) > self.threshold)
            return jnp.where(keep[:, None], now, last), keep

        keep = jax.lax.scan(step, x[0], x[1:])[1]
        return jnp.concatenate([jnp.ones((1, x.shape[1]), bool), keep])

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        grid, keep = self.grid_of(tokens), self.kept(tokens, aux)
        found, over = compact(tokens, keep, self.budget)
        dropped = 1.0 - keep.reshape(len(keep), grid[0], -1).mean(-1)
        return found, report(tokens, found, self.budget, over=jnp.mean(over * 1.0), dropped=dropped.mean())


def still_windows(
    alike: Float[Array, "transitions places"], threshold: float
) -> tuple[Float[Array, ""], Bool[Array, "frames"]]:
    """The cut of frames into windows with the most still places (HoliTom, section 3.2), by dynamic programming.

    A place is still in a window where its likeness is above ``threshold`` in all transitions inside; it saves the
    length of the window less 1.

    Returns:
      What the best cut saves, and which frames begin a window; of equal cuts that with the longest last windows.
    """
    still = alike > threshold
    frames = len(alike) + 1
    ends = jnp.arange(frames)

    def row(a: Array) -> Float[Array, "frames"]:
        """What a window from ``a`` saves, by its last frame."""
        inside = (jnp.arange(frames - 1) >= a)[:, None]
        run = jnp.cumprod(jnp.where(inside, still, True), axis=0)
        places = jnp.concatenate([jnp.ones((1, still.shape[1])), run]).sum(1)
        return jnp.where(ends > a, (ends - a) * places, jnp.where(ends == a, 0.0, -jnp.inf))

    gain = jax.vmap(row)(jnp.arange(frames))

    def step(best: Array, b: Array) -> tuple[Array, Array]:
        values = jnp.where(jnp.arange(frames) <= b, best[:-1] + gain[:, b], -jnp.inf)
        return best.at[b + 1].set(values.max()), jnp.argmax(values)

    best, begins = jax.lax.scan(step, jnp.zeros(frames + 1), jnp.arange(frames))

    def back(last: Array, b: Array) -> tuple[Array, Array]:
        own = last == b
        start = begins[b]
        return jnp.where(own, start - 1, last), jnp.where(own, start, frames)

    starts = jax.lax.scan(back, jnp.asarray(frames - 1), jnp.arange(frames - 1, -1, -1))[1]
    return best[frames], jnp.zeros(frames, bool).at[starts].set(True, mode="drop")


class StillMerging(Reducer):
    """Places that stand still in a window of frames become their mean there (HoliTom).

    Args:
      budget: tokens that there is room for; where more stay, the last ones are lost, and the report says how many.
      threshold: cosine above which a place stands still.
    """

    laws = ("conserved_mass", "identity_at_full_budget")
    needs_grid = True

    def __init__(self, budget: Count, *, threshold: Finite = 0.8):
        self.budget, self.threshold = budget, threshold

    def groups(self, tokens: TokenSet) -> tuple[Int[Array, "batch tokens"], Float[Array, "batch"]]:
        """The place of the token that stands for each, and how many are saved."""
        grid = self.grid_of(tokens)
        each = grid[1] * grid[2]
        x = unit(tokens.x).reshape(len(tokens.x), grid[0], each, -1)
        alike = (x[:, 1:] * x[:, :-1]).sum(-1)

        def one(alike: Array) -> tuple[Array, Array]:
            saved, begins = still_windows(alike, self.threshold)
            window = jnp.cumsum(begins) - 1
            start = jax.ops.segment_min(jnp.arange(grid[0]), window, grid[0])
            inside = window[1:] == window[:-1]
            moves = jax.ops.segment_max(
                jnp.where(inside[:, None], ~(alike > self.threshold), False).astype(jnp.int32), window[1:], grid[0]
            )
            static = (moves[window] <= 0) & (window == jnp.roll(window, 1)).at[0].set(False)[:, None]
            frame = jnp.where(static, start[window][:, None], jnp.arange(grid[0])[:, None])
            return (frame * each + jnp.arange(each)).reshape(-1), saved

        return jax.vmap(one)(alike)

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        count = tokens.shape[1]
        stands, saved = self.groups(tokens)
        group = jnp.where(tokens.filled().mask, ranked(stands, count), count)
        merged = merge(tokens, group, count)
        found, over = compact(merged, merged.mask, self.budget)
        return found, report(tokens, found, self.budget, over=jnp.mean(over * 1.0), saved=saved.mean())


def depth_scores(alike: Float[Array, "transitions"]) -> Float[Array, "transitions"]:
    """How deep each likeness lies between the peaks to its left and right: ``left + right - 2 · own`` (TextTiling).

    A peak is reached by going up without a step down.
    """

    def climb(values: Array) -> Array:
        """The peak reached from each place towards its left."""

        def step(peak: Array, pair: Array) -> tuple[Array, Array]:
            before, own = pair
            peak = jnp.where(before >= own, peak, own)
            return peak, peak

        pairs = jnp.stack([jnp.concatenate([values[:1], values[:-1]]), values], axis=1)
        return jax.lax.scan(step, values[0], pairs)[1]

    left, right = climb(alike), climb(alike[::-1])[::-1]
    return left + right - 2 * alike


def strongest_cuts(
    strength: Float[Array, "transitions"], limit: Float[Array, ""], most: int
) -> Bool[Array, "transitions"]:
    """The transitions above a limit, at most so many, the strongest first."""
    rank = jnp.argsort(jnp.argsort(-strength, stable=True), stable=True)
    return (strength > limit) & (rank < most)


def segments(cuts: Bool[Array, "transitions"]) -> Int[Array, "frames"]:
    """The number of the segment of every frame."""
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(cuts)])


def cut(alike: Float[Array, "transitions"], rule: str, most: int = 15) -> Bool[Array, "transitions"]:
    """Which transitions are cuts.

    Args:
      alike: likeness of neighbouring frames.
      rule: ``depth``: depth scores above mean + half a sample deviation (VideoLLaMB). ``lowest``: the least alike
        (TDC), none of which is as alike as any two are.
      most: at most so many.
    """
    if rule == "depth":
        scores = depth_scores(alike)
        return strongest_cuts(scores, scores.mean() + 0.5 * scores.std(ddof=1), most)
    if rule == "lowest":
        return strongest_cuts(-alike, -alike.max(), most)
    raise UserError(f"unknown rule {rule!r}; there are depth and lowest")


def jensen_shannon(a: Float[Array, "... outcomes"], b: Float[Array, "... outcomes"]) -> Float[Array, "..."]:
    """The Jensen-Shannon divergence in nats of distributions: symmetric, 0 to log 2."""
    mean = (a + b) / 2

    def kl(p: Array) -> Array:
        return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30) / jnp.maximum(mean, 1e-30)), 0.0), -1)

    return (kl(a) + kl(b)) / 2
