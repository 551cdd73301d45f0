"""Places and pixels of the scenes of ``question_scenes``: any frames of a video, without the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from videogen.data.shapes_source import COLOURS, DIRECTIONS, RADII, TRAVEL, background, form_mask

SCALES = {1: 1.0, 2: 0.75, 3: 0.6}
"""Number of shapes that share the frame and its room -> scale of their radii."""
SYMBOL, JUMPER, DOT = 0.36, 0.13, 0.32
"""Radius of a symbol and of a shape that jumps, in units of the shorter side; of a dot, in radii of its shape."""

_MARGIN, _GAP = 0.02, 0.04
_CANDIDATES = 64


def radius(shape: Mapping[str, Any], count: int) -> float:
    """Half side of the box that a shape fits, in a scene of ``count`` shapes."""
    return JUMPER if "cells" in shape else RADII[shape["size"]] * SCALES[count]


def track(shape: Mapping[str, Any], progress: Float[np.ndarray, "time"]) -> Float[np.ndarray, "time 2"]:
    """Displacement (y, x) from the start at each progress in [0, 1]: even motion that turns at ``turn``."""
    ways = np.array([DIRECTIONS[way] for way in shape["directions"]], np.float32)
    turn = shape["turn"] if len(ways) > 1 else 1.0
    legs = np.stack([np.minimum(progress, turn), np.maximum(progress - turn, 0)], axis=1)[:, : len(ways)]
    return legs @ ways * TRAVEL[shape["speed"]]


def place(shapes: Sequence[dict[str, Any]], height: int, width: int, rng: np.random.Generator) -> bool:
    """Gives every shape a ``start`` that keeps it in the frame and off the others; False where none is found."""
    unit = min(height, width)
    frame, tracks = np.array([height, width]) / unit, []
    for shape in shapes:
        if "cells" in shape:
            continue
        offsets = track(shape, np.linspace(0, 1, 17))
        edge = radius(shape, len(shapes)) + _MARGIN
        low, high = edge - offsets.min(0), frame - edge - offsets.max(0)
        candidates = rng.uniform(low, high, (_CANDIDATES, 2))[:, None] + offsets
        clear = np.ones(_CANDIDATES, bool)
        for other, there in zip(shapes, tracks, strict=False):
            apart = np.abs(candidates - there).max(-1).min(-1)
            clear &= apart > radius(shape, len(shapes)) + radius(other, len(shapes)) + _GAP
        if not clear.any():
            return False
        tracks.append(candidates[clear.argmax()])
        shape["start"] = tuple(float(v) for v in tracks[-1][0])
    return True


def render(
    scene: Mapping[str, Any], numbers: Int[np.ndarray, "time"], height: int, width: int
) -> UInt8[np.ndarray, "time height width 3"]:
    """Draws frames of a scene.

    Args:
      scene: of ``question_scenes``.
      numbers: of the frames, from 0 to ``scene["frames"]`` - 1.
      height, width: in pixels.
    """
    numbers = np.asarray(numbers)
    ground = background(scene, height, width)[None, :, :, None]
    video = np.broadcast_to(ground, (len(numbers), height, width, 3)).astype(np.float32)
    if "symbols" in scene:
        for i, number in enumerate(numbers):
            video[i] = _symbol(scene["symbols"][number], video[i])
        return (video + 0.5).astype(np.uint8)
    progress = (numbers / max(scene["frames"] - 1, 1)).astype(np.float32)
    for shape in scene["shapes"]:
        size = radius(shape, len(scene["shapes"]))
        centres = _centres(shape, numbers, progress, np.array([height, width]) / min(height, width))
        seen = (progress >= shape.get("enters", 0.0))[:, None, None]
        for form, reach, colour in (
            (shape["form"], size, shape["colour"]),
            *([("circle", DOT * size, shape["dot"])] if "dot" in shape else []),
        ):
            mask = (seen * form_mask(form, centres, reach, height, width))[..., None]
            video = video + mask * (np.array(COLOURS[colour], np.float32) - video)
    if flash := scene.get("flash"):
        for i in np.flatnonzero((numbers >= flash["first"]) & (numbers < flash["first"] + flash["count"])):
            video[i] = _symbol(flash, ground[0])
    return (video + 0.5).astype(np.uint8)


def _centres(
    shape: Mapping[str, Any], numbers: Int[np.ndarray, "time"], progress: Float[np.ndarray, "time"], frame: np.ndarray
) -> Float[np.ndarray, "time 2"]:
    """Where a shape is, (y, x) in units of the shorter side."""
    if "cells" not in shape:
        return np.asarray(shape["start"], np.float32) + track(shape, progress)
    cells = np.asarray(shape["cells"])[numbers]
    return (np.stack([cells // 3, cells % 3], axis=1) + 0.5) / 3 * frame


def _symbol(symbol: Mapping[str, str], ground: Float[np.ndarray, "height width _"]) -> np.ndarray:
    """A large form in the middle of a background, alone."""
    height, width = ground.shape[:2]
    middle = np.array([[height, width]]) / 2 / min(height, width)
    mask = form_mask(symbol["form"], middle, SYMBOL, height, width)[0, ..., None]
    return ground + mask * (np.array(COLOURS[symbol["colour"]], np.float32) - ground)
