"""Frames larger than memory: overlapping tiles are encoded or decoded one at a time, and blended at their seams.

Tiles cut height and width only; for time there are ``encode_chunk`` and ``decode_chunk``. A tile is computed as if it
were the whole frame, so that a tokenizer can work on frames larger than those it was trained on, at the tile's size.
What a network sees from further away than a quarter of the overlap (by attention over the frame, by norms over the
frame) is lost, and tiles then differ from the whole frame; blending hides the seams, not the difference.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from videogen.errors import UserError
from videogen.parallel import on_host
from videogen.shapes import Latents, Tiles, Video, VideoShape


def encode_tiled(model: nnx.Module, video: Video, tile: tuple[int, int], overlap: int) -> Latents:
    """``model.encode`` of frames of any size.

    Args:
      model: a tokenizer whose latents lie on the grid of the frame.
      video: clips, which may lie in host memory; only tiles of them go to the device.
      tile: height and width of a tile in pixels, multiples of the tokenizer's patch.
      overlap: pixels that neighbouring tiles share at least, a multiple of the patch.

    Returns:
      Latents before quantisation, float32 in host memory.

    Raises:
      UserError: frames, tiles or an overlap that do not fit the tokenizer.
    """
    shape = VideoShape(*video.shape[1:4])
    rows, columns = _tiles(model, shape, tile, overlap)
    pixels = rows.scaled(model.compression.height), columns.scaled(model.compression.width)
    return _blended(_on_device(model, lambda model, part: model.encode(part).values), video, pixels, (rows, columns))


def decode_tiled(model: nnx.Module, latents: Latents, tile: tuple[int, int], overlap: int) -> Video:
    """``model.decode`` of frames of any size.

    Args:
      model: a tokenizer whose latents lie on the grid of the frame.
      latents: quantised latents, which may lie in host memory.
      tile: as for ``encode_tiled``, in pixels.
      overlap: as for ``encode_tiled``, in pixels.

    Returns:
      Video, float32 in host memory.

    Raises:
      UserError: tiles or an overlap that do not fit the tokenizer.
    """
    unit = model.compression
    time, height, width = latents.shape[1:4]
    shape = VideoShape(unit.frames(time), height * unit.height, width * unit.width)
    rows, columns = _tiles(model, shape, tile, overlap)
    pixels = rows.scaled(unit.height), columns.scaled(unit.width)
    return _blended(_on_device(model, lambda model, part: model.decode(part)), latents, (rows, columns), pixels)


def _tiles(model: nnx.Module, shape: VideoShape, tile: tuple[int, int], overlap: int) -> tuple[Tiles, Tiles]:
    """The tiles of the rows and of the columns of latents."""
    unit, whole = model.compression, shape.grid(model.compression)
    for patch in (unit.height, unit.width):
        if overlap % patch:
            raise UserError(f"the overlap of tiles must be a multiple of the patch {patch}, got {overlap}")
    part = model.grid(VideoShape(shape.frames, *tile))
    if not model.on_grid:
        raise UserError(f"{type(model).__name__} has no latents for each place of the frame, hence no tiles")
    rows = Tiles(whole.height, part.height, overlap // unit.height)
    return rows, Tiles(whole.width, part.width, overlap // unit.width)


def _on_device(model: nnx.Module, call: Callable[[nnx.Module, Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, part: call(nnx.merge(graph, state), part))
    return lambda part: on_host(run(state, jnp.asarray(part)))


def _blended(
    run: Callable[[np.ndarray], np.ndarray],
    array: Any,
    inputs: tuple[Tiles, Tiles],
    outputs: tuple[Tiles, Tiles],
) -> Float[np.ndarray, "batch time height width channel"]:
    """The weighted mean of what ``run`` makes of every tile; tiles of its arguments and of its results."""
    rows, columns = outputs
    total, weight = 0.0, np.zeros((rows.size, columns.size, 1), np.float32)
    sources, targets = (itertools.product(*(side.starts for side in sides)) for sides in (inputs, outputs))
    for (row, column), (top, left) in zip(sources, targets, strict=True):
        part = run(array[:, :, row : row + inputs[0].tile, column : column + inputs[1].tile])
        if not weight.any():
            total = np.zeros((*part.shape[:2], rows.size, columns.size, part.shape[-1]), np.float32)
        share = np.outer(rows.weights(top), columns.weights(left)).astype(np.float32)[..., None]
        where = np.s_[..., top : top + part.shape[2], left : left + part.shape[3], :]
        total[where] += part * share
        weight[where] += share
    return total / weight
