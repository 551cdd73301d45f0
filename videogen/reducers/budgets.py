"""Who gets how many tokens: shares of a budget, and grids of every frame by them (X2, P3, S1 of KFFocus, S2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn.resizing import area_weights
from videogen.ranges import Count, Finite, Weight
from videogen.reducers.base import Reducer, Report, need, report
from videogen.reducers.selection import NONE
from videogen.reducers.tokens import TokenSet, unit


def shares(
    weights: Float[Array, "frames"], budget: int, cap: int | None = None, exact: bool = False
) -> Int[Array, "frames"]:
    """Tokens of each frame in proportion to its weight, rounded down.

    Args:
      weights: at least 0, not all 0.
      budget: to be shared out.
      cap: no frame gets more; what that frees is shared out once more in the same way.
      exact: what rounding leaves goes to the largest remainders, of equal ones to the first, so that the sum is exact.
    """
    weights = weights.astype(jnp.float32)
    wanted = budget * weights / jnp.maximum(weights.sum(), 1e-12)
    if cap is not None:
        over = jnp.maximum(wanted - cap, 0.0).sum()
        room = jnp.where(wanted < cap, weights, 0.0)
        wanted = jnp.minimum(wanted, cap) + over * room / jnp.maximum(room.sum(), 1e-12)
        wanted = jnp.minimum(wanted, cap)
    # A share that is whole but for rounding counts as whole.
    floor = jnp.floor(wanted + 1e-4)
    if not exact:
        return floor.astype(jnp.int32)
    left = jnp.round(wanted.sum()).astype(jnp.int32) - floor.sum().astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(-(wanted - floor), stable=True), stable=True)
    return (floor + (rank < left)).astype(jnp.int32)


def after_merging(share: float, total: int, saved: Float[Array, "..."]) -> Float[Array, "..."]:
    """The share of what is left that makes ``share`` of all, at most 1 (HoliTom's ratio correction)."""
    return jnp.minimum(share * total / jnp.maximum(total - saved, 1), 1.0)


def of_each_frame(frames: int, total: int = 576) -> int:
    """Tokens of each of so many frames that share a total, at least 1 (B-VLLM: as many as 18 frames of 32 tokens)."""
    return max(1, total // frames)


def ladder_place(tokens: Int[Array, "frames"], ladder: tuple[int, ...]) -> Int[Array, "frames"]:
    """The number of the largest side of the ladder whose square fits; the ladder rises from 0."""
    squares = jnp.asarray([side * side for side in ladder])
    return jnp.sum(tokens[:, None] >= squares[None], axis=1) - 1


class BudgetedGrids(Reducer):
    """Every frame averaged to a grid that is as large as its weight allows (QuoTA, section 3.3).

    Weights are ``aux["weights"]`` ``[batch, frames]``, probabilities that a frame helps; squared as published. A frame
    without room vanishes.

    Args:
      budget: of all frames.
      ladder: sides of the grids there are, rising from 0.
      power: of the weights.
    """

    laws = ()
    needs = ("weights",)
    needs_grid = True

    def __init__(self, budget: Count, *, ladder: tuple[int, ...] = (0, 2, 4, 7, 10, 14), power: Finite = 2.0):
        if not ladder or ladder[0] != 0 or list(ladder) != sorted(set(ladder)):
            raise UserError(f"a ladder of grids rises from 0, got {ladder}")
        self.budget, self.ladder, self.power = budget, tuple(ladder), power

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        weights = jnp.asarray(need(aux, "weights", self)).astype(jnp.float32) ** self.power
        given = jax.vmap(lambda w: shares(w, self.budget))(weights)
        places = jax.vmap(lambda n: ladder_place(n, self.ladder))(given)
        _, height, width = self.grid_of(tokens)
        sides = [(min(side, height), min(side, width)) for side in self.ladder]
        found = on_ladder(self, tokens, places, sides, self.budget)
        return found, report(tokens, found, self.budget)


def on_ladder(
    reducer: Reducer,
    tokens: TokenSet,
    places: Int[Array, "batch frames"],
    sides: Sequence[tuple[int, int]],
    budget: int,
) -> TokenSet:
    """Frames averaged to grids of some sizes, one behind the other, as far as there is room.

    Args:
      reducer: whose tokens they are.
      tokens: on their grid.
      places: which of the sizes each frame has.
      sides: ``(height, width)`` of every size; (0, 0) leaves the frame out.
      budget: room for tokens.
    """
    grid, given = reducer.grid_of(tokens), tokens.filled()
    time, height, width = grid
    most = max(h * w for h, w in sides)
    # [sizes, places, tokens of a frame]: the weights of the mean at every place, zero behind the last.
    table = np.zeros((len(sides), most, height * width), np.float32)
    for i, (h, w) in enumerate(sides):
        if h * w:
            table[i, : h * w] = np.kron(area_weights(height, h), area_weights(width, w))
    counts = jnp.asarray([h * w for h, w in sides])

    def one(x: Array, mask: Array, position: Array, size: Array, places: Array) -> TokenSet:
        weights = jnp.asarray(table)[places]
        there = mask.reshape(time, -1).any(1)
        count = jnp.where(there, counts[places], 0)

        def averaged(values: Array) -> Array:
            return jnp.einsum("tkn,tnd->tkd", weights, values.astype(jnp.float32).reshape(time, height * width, -1))

        area = (height * width) / jnp.maximum(counts[places], 1)
        grown = averaged(size[:, None]) * area[:, None, None]
        start = jnp.cumsum(count) - count
        slot = start[:, None] + jnp.arange(most)
        slot = jnp.where(jnp.arange(most) < count[:, None], slot, budget).reshape(-1)

        def laid(values: Array) -> Array:
            return jnp.zeros((budget, values.shape[-1])).at[slot].set(values.reshape(len(slot), -1), mode="drop")

        size_out = laid(grown)[:, 0]
        kept = jnp.zeros(budget, bool).at[slot].set(True, mode="drop") & (size_out > 0)
        source = jnp.full(x.shape[0], -1)
        return TokenSet(laid(averaged(x)).astype(x.dtype), kept, laid(averaged(position)), size_out, source)

    return jax.vmap(one)(given.x, given.mask, given.position, given.size, places)


class KeyFrames(Reducer):
    """Frames that change much get finer grids than the others (KFFocus; its numbers were not found, these are ours).

    A frame opens a group where its change from the frame before, ``aux["change"]`` ``[batch, frames]``, is a local
    maximum above mean + one standard deviation, or where the group is ``longest`` frames long; it is a key frame. Of
    more than there is room for the strongest changes count.

    Args:
      budget: tokens of all frames.
      key: side of the grid of a key frame.
      other: side of the grid of every other frame.
      longest: frames of a group.
    """

    laws = ()
    needs = ("change",)
    needs_grid = True

    def __init__(self, budget: Count, *, key: Count = 4, other: Count = 2, longest: Count = 16):
        if key < other:
            raise UserError(f"grids of key frames must not be coarser than the others, got key={key} other={other}")
        self.budget, self.key, self.other, self.longest = budget, key, other, longest

    def opened(self, change: Float[Array, "frames"]) -> Bool[Array, "frames"]:
        """Which frames open a group."""
        change = change.astype(jnp.float32).at[0].set(0.0)
        limit = change[1:].mean() + change[1:].std()
        after = jnp.append(change[1:], -jnp.inf)
        peak = (change > limit) & (change >= jnp.roll(change, 1)) & (change > after)

        def step(since: Array, peak: Array) -> tuple[Array, Array]:
            opens = peak | (since >= self.longest)
            return jnp.where(opens, 1, since + 1), opens

        return jax.lax.scan(step, jnp.asarray(self.longest), peak)[1]

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        frames, height, width = self.grid_of(tokens)
        change = jnp.asarray(need(aux, "change", self))
        opens = jax.vmap(self.opened)(change)
        if frames * self.other**2 > self.budget:
            raise UserError(
                f"{frames} frames of {self.other}×{self.other} tokens do not fit a budget of {self.budget}; raise the "
                "budget or lower other"
            )
        room = (self.budget - frames * self.other**2) // max(self.key**2 - self.other**2, 1)
        strength = jnp.where(opens, change, -jnp.inf).at[:, 0].set(jnp.inf)
        rank = jnp.argsort(jnp.argsort(-strength, axis=1, stable=True), axis=1, stable=True)
        keys = opens & (rank < room)
        sides = [(min(side, height), min(side, width)) for side in (self.other, self.key)]
        found = on_ladder(self, tokens, keys.astype(jnp.int32), sides, self.budget)
        return found, report(tokens, found, self.budget, key_frames=jnp.mean(keys.sum(1) * 1.0))


class ClipSelection(Reducer):
    """Frames that the question asks for, each grown to a clip that costs as much as one frame (F2C; choices ours).

    Anchors are the frames whose relevance, the cosine of ``aux["frames"]`` and ``aux["question"]`` averaged over three
    frames, is highest among those that are local maxima, then among all. An anchor becomes ``length`` frames around it,
    their grids averaged by ``stride`` on a side, ``length = stride²``: the pair with the largest mean relevance
    - ``likeness`` · mean cosine of neighbours + ``growth`` · log length, of equal ones the shorter. No frame is in two
    clips: the less relevant of two clips that overlap is cut to its anchor, or dropped where that is in the other.

    Args:
      anchors: how many.
      pairs: ``((length, stride), …)`` to choose from, (1, 1) first.
      likeness: weight of the likeness of neighbours.
      growth: weight of the length.
    """

    laws = ()
    needs = ("frames", "question")
    needs_grid = True

    def __init__(
        self,
        anchors: Count,
        *,
        pairs: tuple[tuple[int, int], ...] = ((1, 1), (4, 2), (16, 4)),
        likeness: Weight = 0.5,
        growth: Weight = 0.1,
    ):
        self.pairs = tuple((int(length), int(stride)) for length, stride in pairs)
        if self.pairs[0] != (1, 1) or any(length != stride**2 for length, stride in self.pairs):
            raise UserError(f"pairs of length and stride begin with (1, 1) and have length = stride²; got {pairs}")
        self.anchors, self.likeness, self.growth = anchors, likeness, growth

    def chosen(
        self, features: Float[Array, "frames width"], question: Float[Array, "width"]
    ) -> tuple[Int[Array, "anchors"], Int[Array, "anchors"]]:
        """The first frame of every clip and the number of its pair, -1 for none; by falling relevance."""
        frames = len(features)
        vectors = unit(features)
        relevance = vectors @ unit(question)
        near = jnp.stack([jnp.roll(relevance, 1).at[0].set(relevance[0]), relevance])
        near = jnp.concatenate([near, jnp.roll(relevance, -1).at[-1].set(relevance[-1])[None]])
        smooth = near.mean(0)
        peak = (smooth >= jnp.roll(smooth, 1).at[0].set(-jnp.inf)) & (smooth > jnp.append(smooth[1:], -jnp.inf))
        order = jnp.argsort(-(smooth + 10.0 * peak), stable=True)[: self.anchors]
        alike = jnp.append((vectors[1:] * vectors[:-1]).sum(-1), 0.0)
        values, starts = [], []
        for length, _ in self.pairs:
            start = jnp.clip(order - (length - 1) // 2, 0, max(frames - length, 0))
            at = start[:, None] + jnp.arange(length)
            inner = alike[jnp.minimum(at, frames - 1)][:, : length - 1].sum(1) / max(length - 1, 1)
            value = relevance[jnp.minimum(at, frames - 1)].mean(1) - self.likeness * inner
            value = value + self.growth * np.log(length)
            values.append(jnp.where(length <= frames, value, -jnp.inf))
            starts.append(start)
        pair = jnp.argmax(jnp.stack(values), axis=0)
        start = jnp.take_along_axis(jnp.stack(starts), pair[None], axis=0)[0]
        lengths = jnp.asarray([length for length, _ in self.pairs])

        def place(taken: Array, one: tuple) -> tuple[Array, tuple]:
            anchor, start, pair = one
            inside = (jnp.arange(frames) >= start) & (jnp.arange(frames) < start + lengths[pair])
            free = ~(taken & inside).any()
            pair = jnp.where(free, pair, jnp.where(taken[anchor], -1, 0))
            start = jnp.where(free, start, anchor)
            taken = taken | jnp.where(free, inside, (jnp.arange(frames) == anchor) & (pair >= 0))
            return taken, (start, pair)

        return jax.lax.scan(place, jnp.zeros(frames, bool), (order, start, pair))[1]

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        time, height, width = self.grid_of(tokens)
        for length, stride in self.pairs:
            if height % stride or width % stride:
                raise UserError(f"grids of {height}×{width} do not divide by the stride {stride} of clips of {length}")
        budget = min(self.anchors, time) * height * width
        starts, pairs = jax.vmap(self.chosen)(need(aux, "frames", self), need(aux, "question", self))
        # The number of the pair of every frame and 1, 0 where it is in no clip.
        lengths = jnp.asarray([0, *(length for length, _ in self.pairs)])[pairs + 1]
        frame = jnp.arange(time)[None, :, None]
        inside = (frame >= starts[:, None]) & (frame < (starts + lengths)[:, None])
        place = jnp.max(jnp.where(inside, pairs[:, None] + 1, 0), axis=-1)
        sides = [(0, 0), *((height // stride, width // stride) for _, stride in self.pairs)]
        found = on_ladder(self, tokens, place, sides, budget)
        return found, report(tokens, found, budget, clips=jnp.mean((pairs >= 0).sum(1) * 1.0))
