"""Pictures of points: skeletons of bodies, and hands in three dimensions. A point that is not known draws nothing."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from videogen.data.signer import BONES, HAND_BONES

Mask = Bool[np.ndarray, "frames ..."]
Map = UInt8[np.ndarray, "frames height width 3"]

BONE_RADIUS = 0.018
"""Half the width of a drawn bone of a body, in units of the shorter side; those of hands are two thirds of it."""

NEAREST, FARTHEST = 255.0, 60.0
"""The shades of the nearest and of the farthest depth of a hand."""

DEPTHS = 0.12
"""Depths of hands are drawn from -DEPTHS to DEPTHS, in units of the frame's sides."""


def capsule(
    a: Float[np.ndarray, "frames 2"], b: Float[np.ndarray, "frames 2"], radius: float, height: int, width: int
) -> Float[np.ndarray, "frames height width"]:
    """Coverage in [0, 1] of every pixel by a line with round ends, anti-aliased over one pixel.

    Args:
      a: (y, x) of one end, in units of the sides.
      b: the other end, which may be the same point.
      radius: half its width, in units of the shorter side.
      height: rows in pixels.
      width: columns in pixels.
    """
    size = np.array([height, width], np.float32)
    a, b = np.asarray(a, np.float32) * size, np.asarray(b, np.float32) * size
    y = (np.arange(height, dtype=np.float32) + 0.5)[None, :, None] - a[:, 0, None, None]
    x = (np.arange(width, dtype=np.float32) + 0.5)[None, None, :] - a[:, 1, None, None]
    line = (b - a)[:, :, None, None]
    along = (y * line[:, 0] + x * line[:, 1]) / np.maximum((line**2).sum(1), 1e-8)
    along = np.clip(along, 0.0, 1.0)
    distance = np.hypot(y - along * line[:, 0], x - along * line[:, 1])
    return np.clip(radius * min(height, width) + 0.5 - distance, 0.0, 1.0)


def hue(share: float) -> Float[np.ndarray, "3"]:
    """A full colour on the circle of hues, by its place in [0, 1)."""
    return 255.0 * np.clip(np.abs((share * 6.0 + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0, 0.0, 1.0)


def pose_map(
    points: Float[np.ndarray, "frames joints 2"],
    mask: Mask,
    height: int,
    width: int,
    bones: Sequence[tuple[int, int]] = BONES,
) -> Map:
    """The bones between known points on black, each in a colour of its own."""
    drawn = np.zeros((len(points), height, width, 3), np.float32)
    for number, (i, j) in enumerate(bones):
        seen = mask[:, i] & mask[:, j]
        if not seen.any():
            continue
        ends = np.where(seen[:, None], points[:, i], 0.0), np.where(seen[:, None], points[:, j], 0.0)
        cover = capsule(*ends, BONE_RADIUS, height, width) * seen[:, None, None]
        drawn += cover[..., None] * (hue(number / len(bones)).astype(np.float32) - drawn)
    return (drawn + 0.5).astype(np.uint8)


def hands_map(hands: Float[np.ndarray, "frames 2 points 3"], mask: Mask, height: int, width: int) -> Map:
    """Both hands on black: nearer bones cover farther ones and are lighter; the left hand is red, the right one green.

    All points of a hand are known, or none.
    """
    frames = len(hands)
    drawn = np.zeros((frames, height, width, 3), np.float32)
    nearest = np.full((frames, height, width), np.inf, np.float32)
    for hand in range(2):
        seen = mask[:, hand]
        if not seen.any():
            continue
        points = np.where(seen[:, None, None], hands[:, hand], 0.0)
        for i, j in HAND_BONES:
            cover = capsule(points[:, i, :2], points[:, j, :2], BONE_RADIUS / 1.5, height, width)
            cover = cover * seen[:, None, None]
            depth = points[:, [i, j], 2].mean(1)
            share = np.clip((depth + DEPTHS) / (2 * DEPTHS), 0.0, 1.0)
            colour = np.zeros((frames, 3), np.float32)
            colour[:, hand] = NEAREST + share * (FARTHEST - NEAREST)
            colour[:, 2] = 0.3 * colour[:, hand]
            front = (depth[:, None, None] < nearest) & (cover > 0)
            drawn = np.where(front[..., None], drawn + cover[..., None] * (colour[:, None, None] - drawn), drawn)
            nearest = np.where(front & (cover > 0.5), depth[:, None, None], nearest)
    return (drawn + 0.5).astype(np.uint8)
