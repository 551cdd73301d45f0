"""Fixed geometry: windows, nests, pooling by a question, carriers, thumbnails and regions (P1, P2, P4, P5, P6)."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from videogen.errors import UserError
from videogen.nn.resizing import resize_area
from videogen.ranges import Count, Number, Positive
from videogen.reducers.base import Reducer, Report, need, report
from videogen.reducers.selection import NONE, evenly, frames_of
from videogen.reducers.tokens import Grid, TokenSet, merge, take, unit


def windows(grid: Grid, window: tuple[int, int, int]) -> Int[np.ndarray, "tokens"]:
    """The number of the window that each token of a grid is in, in raster order of the windows.

    Raises:
      UserError: windows do not tile the grid.
    """
    for side, length, part in zip(("time", "height", "width"), grid, window, strict=True):
        if length % part:
            raise UserError(f"windows of {part} do not tile {length} tokens along {side}")
    sides = [length // part for length, part in zip(grid, window, strict=True)]
    t, y, x = np.meshgrid(*(np.arange(n) // part for n, part in zip(grid, window, strict=True)), indexing="ij")
    return ((t * sides[1] + y) * sides[2] + x).reshape(-1)


class WindowPooling(Reducer):
    """Means of windows (Matryoshka, Slow-Fast, VideoLISA and many others).

    Args:
      window: ``(time, height, width)`` of a window; 0 is the whole side.
    """

    laws = ("fixed_budget", "conserved_mass", "identity_at_full_budget")
    needs_grid, keeps_grid = True, True

    def __init__(self, window: tuple[int, int, int] = (1, 2, 2)):
        if len(window) != 3 or min(window) < 0:
            raise UserError(f"a window has three sides of at least 1, or 0 for the whole side; got {window}")
        self.window = tuple(window)

    def sides(self, grid: Grid) -> Grid:
        """Of a window on this grid."""
        return tuple(part or length for length, part in zip(grid, self.window, strict=True))

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        grid = self.grid_of(tokens)
        window = self.sides(grid)
        group, sides = windows(grid, window), tuple(n // part for n, part in zip(grid, window, strict=True))
        found = merge(tokens, jnp.broadcast_to(jnp.asarray(group), tokens.shape), int(np.prod(sides)))
        found = TokenSet(found.x, found.mask, found.position, found.size, found.source, sides)
        return found, report(tokens, found, int(np.prod(sides)))


class GridPooling(Reducer):
    """Every frame averaged to a grid of ``side × side`` places, each the mean of all that it touches.

    Args:
      side: places on a side; at least 1.
    """

    laws = ("fixed_budget", "identity_at_full_budget")
    needs_grid, keeps_grid, framewise = True, True, True

    def __init__(self, side: Count):
        self.side = side

    @classmethod
    def budgeted(cls, section: Mapping[str, Any], budget: int, tokens: int, grid: Grid | None) -> dict[str, Any]:
        frames = grid[0] if grid else 1
        side = math.isqrt(budget // frames)
        if frames * side**2 != budget:
            near = [frames * n**2 for n in (max(side, 1), side + 1)]
            raise UserError(
                f"{frames} frames of square grids do not make up a budget of {budget}; take {near[0]} or {near[1]}"
            )
        return {**section, "side": side}

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        grid, given = self.grid_of(tokens), tokens.filled()
        sides = (grid[0], min(self.side, grid[1]), min(self.side, grid[2]))

        def resized(values: Array) -> Array:
            x = values.astype(jnp.float32).reshape(len(values), *grid, -1)
            return resize_area(x, sides).reshape(len(values), int(np.prod(sides)), -1)

        share = grid[1] * grid[2] / (sides[1] * sides[2])
        size = share * resized(given.size[..., None])[..., 0]
        mask = size > 0
        weighted = resized(given.size[..., None] * given.x.astype(jnp.float32)) * share
        x = jnp.where(mask[..., None], weighted / jnp.maximum(size, 1e-12)[..., None], 0.0).astype(given.x.dtype)
        whole = all(n % m == 0 for n, m in zip(grid, sides, strict=True))
        group = windows(grid, tuple(n // m for n, m in zip(grid, sides, strict=True))) if whole else None
        source = None if group is None else jnp.broadcast_to(jnp.asarray(group), tokens.shape)
        found = TokenSet(x, mask, resized(given.position), size, _through(given.source, source), sides)
        return found, report(tokens, found, int(np.prod(sides)))


class GridAndMean(Reducer):
    """Of every frame its mean, then a grid of ``side × side`` places (VideoLLM-online has ten tokens, with side 3).

    Sizes are shared by the mean and the grid, half each.

    Args:
      side: places on a side of the grid; at least 1.
    """

    laws = ("fixed_budget", "conserved_mass")
    needs_grid = True

    def __init__(self, side: Count):
        self.side = side

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        time, batch = self.grid_of(tokens)[0], len(tokens.x)
        mean, grid = (GridPooling(side).reduce(tokens)[0].filled() for side in (1, self.side))

        def joined(name: str) -> Array:
            both = [getattr(part, name) for part in (mean, grid)]
            parts = [values.reshape(batch, time, -1, *values.shape[2:]) for values in both]
            whole = jnp.concatenate(parts, axis=2)
            return whole.reshape(batch, -1, *whole.shape[3:])

        each = grid.shape[1] // time
        there = (grid.source >= 0) & jnp.take_along_axis(grid.mask, jnp.maximum(grid.source, 0), axis=1)
        source = jnp.where(there, grid.source // each * (each + 1) + 1 + grid.source % each, -1)
        found = TokenSet(joined("x"), joined("mask"), joined("position"), joined("size") / 2, source)
        return found, report(tokens, found, found.shape[1])


def _through(source: Int[Array, "batch originals"], step: Int[Array, "batch tokens"] | None) -> Array | None:
    """Where originals are after one more step; ``None`` where places overlap and there is no one token for each."""
    if step is None:
        return jnp.full_like(source, -1)
    return jnp.where(source >= 0, jnp.take_along_axis(step, jnp.maximum(source, 0), axis=1), -1)


class QuestionPooling(Reducer):
    """Means of windows weighted by how much each token has to do with the question (PPLLaVA, section 3.2).

    With s the softmax over all tokens of ``scale · cos(token, question)``, a window is
    ``Σ softmax(s / temperature) x`` over its tokens. ``aux["joint"]`` are the tokens in the space of
    ``aux["question"]`` ``[batch, width]``.

    Args:
      window: ``(time, height, width)``.
      scale: of the cosines; CLIP's logit scale.
      temperature: of the weights in a window.
    """

    laws = ("fixed_budget", "conserved_mass", "identity_at_full_budget")
    needs = ("joint", "question")
    needs_grid, keeps_grid = True, True

    def __init__(
        self, window: tuple[Count, Count, Count] = (2, 3, 3), *, scale: Positive = 100.0, temperature: Positive = 0.01
    ):
        self.window, self.scale, self.temperature = tuple(window), scale, temperature

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        grid, given = self.grid_of(tokens), tokens.filled()
        joint, asked = unit(need(aux, "joint", self)), unit(need(aux, "question", self))
        scores = self.scale * jnp.einsum("bnd,bd->bn", joint, asked)
        scores = jax.nn.softmax(jnp.where(given.mask, scores, -jnp.inf), axis=1)
        group = windows(grid, self.window)
        count = int(group.max()) + 1
        members = np.argsort(group, kind="stable").reshape(count, -1)
        weights = jnp.where(given.mask, scores / self.temperature, -jnp.inf)[:, members]
        weights = jnp.nan_to_num(jax.nn.softmax(weights, axis=-1))
        x = jnp.einsum("bkm,bkmd->bkd", weights, given.x[:, members].astype(jnp.float32)).astype(given.x.dtype)
        sides = tuple(n // part for n, part in zip(grid, self.window, strict=True))
        plain = merge(tokens, jnp.broadcast_to(jnp.asarray(group), tokens.shape), count)
        found = TokenSet(x, plain.mask, plain.position, plain.size, plain.source, sides)
        return found, report(tokens, found, count)


class SparseDense(Reducer):
    """Every frame as one token, then all tokens of a few frames (VideoLISA).

    Args:
      frames: how many keep all their tokens, spread evenly.
    """

    laws = ("fixed_budget",)
    needs_grid = True

    def __init__(self, frames: Count = 4):
        self.frames = frames

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        grid, batch = self.grid_of(tokens), len(tokens.x)
        sparse, _ = WindowPooling((1, 0, 0)).reduce(tokens)
        index = evenly(grid[0], min(self.frames, grid[0]))
        dense = frames_of(tokens, grid, jnp.broadcast_to(jnp.asarray(index), (batch, len(index))))
        found = _joined(sparse, dense)
        return found, report(tokens, found, grid[0] + len(index) * grid[1] * grid[2])


def _joined(a: TokenSet, b: TokenSet) -> TokenSet:
    """Both, one behind the other; an original is where ``b`` has it, else where ``a`` has."""
    a, b = a.filled(), b.filled()
    both = [
        jnp.concatenate(pair, axis=1)
        for pair in ((a.x, b.x), (a.mask, b.mask), (a.position, b.position), (a.size, b.size))
    ]
    source = jnp.where(b.source >= 0, b.source + a.x.shape[1], a.source)
    return TokenSet(*both, source)


def _at(tokens: TokenSet, index: Int[np.ndarray, "kept"]) -> TokenSet:
    """The tokens at the same places of every example."""
    places = jnp.broadcast_to(jnp.asarray(index), (len(tokens.x), len(index)))
    return take(tokens, places, jnp.ones(places.shape, bool))


class Thumbnails(Reducer):
    """Evenly spaced tokens, then a picture of some frames side by side, averaged to one frame's grid (TS-LLaVA).

    Args:
      picks: tokens that are spread over all.
      tiles: ``(rows, columns)`` of frames in the picture; they must divide the sides of the grid.
    """

    laws = ("fixed_budget",)
    needs_grid = True

    def __init__(self, picks: Count, *, tiles: tuple[Count, Count] = (2, 3)):
        self.picks, self.tiles = picks, tuple(tiles)

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        grid, batch, count = self.grid_of(tokens), len(tokens.x), tokens.shape[1]
        index = evenly(count, min(self.picks, count))
        picked = _at(tokens, index)
        rows, columns = self.tiles
        frames = evenly(grid[0], min(rows * columns, grid[0]))
        if len(frames) < rows * columns:
            raise UserError(f"a picture of {rows} × {columns} frames needs as many, and the clip has {grid[0]}")
        shown = frames_of(tokens, grid, jnp.broadcast_to(jnp.asarray(frames), (batch, len(frames))))
        small, _ = WindowPooling((1, rows, columns)).reduce(shown)
        h, w = small.grid[1:]
        order = np.arange(len(frames) * h * w).reshape(rows, columns, h, w).transpose(0, 2, 1, 3).reshape(-1)
        tiled = _at(small, order)
        found = _joined(picked, tiled)
        return found, report(tokens, found, len(index) + len(order))


class RegionCrop(Reducer):
    """The tokens in a box of every frame around what the question asks for (Free Video-LLM).

    The box has ``share`` of the area and the proportions of the frame; its middle is the mean place of as many tokens
    with the highest ``aux["score"]`` ``[batch, tokens]``, and it stays inside the frame.

    Args:
      share: of the area.
    """

    laws = ("fixed_budget", "identity_at_full_budget")
    needs = ("score",)
    needs_grid, keeps_grid = True, True

    def __init__(self, share: Annotated[float, Number(float, 0, 1, above=True)] = 0.8):
        self.share = share

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        time, height, width = self.grid_of(tokens)
        given, batch = tokens.filled(), len(tokens.x)
        h, w = (max(1, round(side * self.share**0.5)) for side in (height, width))
        scores = jnp.where(given.mask, need(aux, "score", self), -jnp.inf).reshape(batch, time, height * width)
        places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2)
        top = jax.lax.top_k(scores, max(1, round(height * width * self.share)))[1]
        middle = jnp.asarray(places)[top].mean(2)
        corner = jnp.round(middle - (jnp.array([h, w]) - 1) / 2).astype(jnp.int32)
        corner = jnp.clip(corner, 0, jnp.array([height - h, width - w]))
        inside = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
        at = corner[:, :, None] + inside
        index = jnp.arange(time)[None, :, None] * height * width + at[..., 0] * width + at[..., 1]
        index = index.reshape(batch, -1)
        found = take(tokens, index, jnp.ones(index.shape, bool))
        found = TokenSet(found.x, found.mask, found.position, found.size, found.source, (time, h, w))
        return found, report(tokens, found, time * h * w)


class Carriers(WindowPooling):
    """One token for each frame, its mean (VideoScan)."""

    def __init__(self):
        super().__init__((1, 0, 0))
