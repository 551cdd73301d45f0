"""Grids at other sizes by fixed weights of their own: means of areas, and the cubic kernel of PyTorch.

``jax.image.resize`` has neither: its cubic kernel has a = -0.5 and leaves out what lies beyond the edges, also where a
grid is enlarged.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videogen.nn.linear import FULL

Grid = Float[Array, "batch *sides channel"]


def cubic_weights(inputs: int, outputs: int, a: float = -0.75) -> Float[np.ndarray, "outputs inputs"]:
    """Weights of a cubic interpolation along one axis, half-pixel centres, edges repeated, no antialiasing.

    This is PyTorch's ``bicubic`` (a = -0.75). ``jax.image.resize`` and Pillow have a = -0.5, and leave out what lies
    beyond the edges.
    """
    places = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    weights = np.zeros((outputs, inputs))
    for tap in range(-1, 3):
        index = np.floor(places).astype(int) + tap
        distance = np.abs(places - index)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        np.add.at(weights, (np.arange(outputs), np.clip(index, 0, inputs - 1)), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)


def area_weights(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """Weights of means along one axis: output i is the mean of all inputs that its share of the axis touches.

    This is PyTorch's ``area``: of 16 inputs, 6 outputs are the means of 0–2, 2–5, 5–7, 8–10, 10–13 and 13–15.
    """
    weights = np.zeros((outputs, inputs), np.float32)
    for i in range(outputs):
        start, stop = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


def resize_area(grid: Grid, sides: Sequence[int]) -> Grid:
    """A grid with these sides, each place the mean of what it covers; a side that stays is left as it is."""
    return _resize(grid, sides, area_weights)


def resize_cubic(grid: Grid, sides: Sequence[int]) -> Grid:
    """A grid with these sides by cubic interpolation; a side that stays is left as it is."""
    return _resize(grid, sides, cubic_weights)


def _resize(grid: Grid, sides: Sequence[int], weights: Callable[[int, int], np.ndarray]) -> Grid:
    for axis, side in enumerate(sides, start=1):
        if grid.shape[axis] != side:
            along = jnp.tensordot(weights(grid.shape[axis], side), grid, axes=(1, axis), precision=FULL)
            grid = jnp.moveaxis(along, 0, axis)
    return grid
