"""Frames too large for memory: overlapping tiles are encoded or decoded one after another, and blended at their seams.

Tiles cut height and width only; for time there are ``encode_chunk`` and ``decode_chunk``. A tile is computed as if it
were the whole frame, so that a tokenizer can work on frames larger than those it was trained on, at the tile's size.
What a network sees from further away than a quarter of the overlap (by attention over the frame, by norms over the
frame) is lost, and tiles then differ from the whole frame; blending hides the seams, not the difference.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.shapes import Latents, Tiles, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.wrapped import Wrapped
from videogen.tokens import Layout

OVERLAP = 4
"""Without another wish neighbouring tiles share a fourth of a tile."""

Sides = tuple[Tiles, Tiles]
"""Tiles of the rows and of the columns of a frame."""


def read_tile(text: str, flag: str = "tile") -> tuple[int, int]:
    """``64x96`` -> 64 rows and 96 columns of pixels.

    Raises:
      UserError: another text.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise UserError(f"--{flag}={text} must be HEIGHTxWIDTH in pixels, e.g. --{flag}=64x96")
    height, width = map(int, text.split("x"))
    return height, width


class Tiled(Wrapped):
    """A tokenizer that codes one tile of the frames after another, in the memory of a tile.

    Args:
      tokenizer: a tokenizer whose latents lie on the grid of the frame; it stays as it is.
      tile: height and width of a tile in pixels, multiples of the tokenizer's patch.
      overlap: pixels that neighbouring tiles share at least, a multiple of the patch; ``None`` means a fourth of a
        tile. The last two tiles of a side share more where the tiles do not come out even.

    Raises:
      UserError: the tokenizer has no tiles, or the overlap does not fit its patch.
    """

    def __init__(self, tokenizer: Tokenizer, tile: tuple[int, int], overlap: int | None = None):
        if not tokenizer.on_grid:
            raise UserError(f"{type(tokenizer).__name__} has no latents for each place of the frame, hence no tiles")
        self.tokenizer, self.tile, self.overlap = tokenizer, tuple(tile), overlap
        for patch in (self.compression.height, self.compression.width):
            if (overlap or 0) % patch:
                raise UserError(f"the overlap of tiles must be a multiple of the patch {patch}, got {overlap}")

    def layout(self, shape: VideoShape) -> Layout:
        # That of frames larger than a tile, which the tokenizer itself may refuse.
        return Tokenizer.layout(self, shape)

    def encode(self, video: Video, request: Any = None) -> Encoded:
        latents, pixels = self._tiles(VideoShape(*video.shape[1:4]))
        call = _without_cache(lambda part: self.tokenizer.encode(part, request).values)
        return Encoded(_blended(call, video, pixels, latents)[1])

    def decode(self, latents: Latents, **settings: Any) -> Video:
        call = _without_cache(lambda part: self.tokenizer.decode(part, **settings))
        return _blended(call, latents, *self._tiles(self._pixels(latents)))[1]

    def encode_chunk(self, cache: Any, chunk: Video) -> tuple[Any, Encoded]:
        first = self.compression.chunk(VideoShape(*chunk.shape[1:4]), first=cache is None)
        latents, pixels = self._tiles(first)

        def call(cache: Any, part: Video) -> tuple[Any, Latents]:
            cache, encoded = self.tokenizer.encode_chunk(cache, part)
            return cache, encoded.values

        cache, values = _blended(call, chunk, pixels, latents, cache)
        return cache, Encoded(values)

    def decode_chunk(self, cache: Any, latents: Latents) -> tuple[Any, Video]:
        return _blended(self.tokenizer.decode_chunk, latents, *self._tiles(self._pixels(latents)), cache)

    def _pixels(self, latents: Latents) -> VideoShape:
        """The shape of a clip of such latents."""
        time, height, width = latents.shape[1:4]
        unit = self.compression
        return VideoShape(unit.frames(time), height * unit.height, width * unit.width)

    def _tiles(self, shape: VideoShape) -> tuple[Sides, Sides]:
        """The tiles of latents and those of pixels."""
        unit, whole = self.compression, shape.grid(self.compression)
        part = self.tokenizer.grid(VideoShape(shape.frames, *map(min, self.tile, (shape.height, shape.width))))
        sides = []
        for size, tile, patch in ((whole.height, part.height, unit.height), (whole.width, part.width, unit.width)):
            sides.append(Tiles(size, tile, tile // OVERLAP if self.overlap is None else self.overlap // patch))
        rows, columns = sides
        return (rows, columns), (rows.scaled(unit.height), columns.scaled(unit.width))


def _without_cache(call: Callable[[Array], Array]) -> Callable[[None, Array], tuple[None, Array]]:
    return lambda cache, part: (None, call(part))


def _blended(
    call: Callable[[Any, Array], tuple[Any, Array]], array: Array, inputs: Sides, outputs: Sides, caches: Any = None
) -> tuple[Any, Float[Array, "batch time height width channel"]]:
    """The weighted mean of what ``call`` makes of every tile.

    Args:
      call: ``(cache, part) -> (cache, result)``.
      array: what is cut into tiles, ``[batch, time, height, width, channel]``.
      inputs: its tiles.
      outputs: the tiles of the results.
      caches: of all tiles, which are their last axis: windows of time are cut from the axes before it. ``None``: none.

    Returns:
      The new caches, and the mean, float32.
    """
    sources, targets = (np.array(list(itertools.product(*(side.starts for side in s)))) for s in (inputs, outputs))
    shares = _shares(outputs, targets)
    tile = tuple(min(side.tile, side.size) for side in inputs)
    caches = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), caches)

    def part_at(place: Array) -> Array:
        size = (*array.shape[:2], *tile, array.shape[-1])
        return jax.lax.dynamic_slice(array, (0, 0, *place, 0), size)

    def add(total: Array, item: tuple) -> tuple[Array, Any]:
        source, target, share, cache = item
        cache, made = call(cache, part_at(source))
        before = jax.lax.dynamic_slice(total, (0, 0, *target, 0), made.shape)
        return jax.lax.dynamic_update_slice(total, before + made * share, (0, 0, *target, 0)), cache

    array = jnp.asarray(array)
    first = jax.tree.map(lambda x: x[0], caches)
    made = jax.eval_shape(lambda: call(first, part_at(sources[0]))[1])
    total = jnp.zeros((*made.shape[:2], *(side.size for side in outputs), made.shape[-1]), jnp.float32)
    total, caches = jax.lax.scan(add, total, (sources, targets, shares, caches))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), caches), total


def _shares(sides: Sides, places: np.ndarray) -> Float[np.ndarray, "tiles height width 1"]:
    """How much every tile counts at each of its places; those of all tiles add up to 1."""
    rows, columns = sides
    weights = [np.outer(rows.weights(top), columns.weights(left)) for top, left in places]
    whole = np.zeros((rows.size, columns.size))
    where = [
        np.s_[top : top + w.shape[0], left : left + w.shape[1]] for (top, left), w in zip(places, weights, strict=True)
    ]
    for place, weight in zip(where, weights, strict=True):
        whole[place] += weight
    shares = [weight / whole[place] for place, weight in zip(where, weights, strict=True)]
    return np.stack(shares).astype(np.float32)[..., None]
