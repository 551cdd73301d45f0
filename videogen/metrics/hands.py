"""Hands in videos: their likeness inside the boxes of their points, and how far they are from where they should be."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from videogen.metrics.fidelity import SSIM_WINDOW, ssim_map
from videogen.metrics.gestures import glove_cover
from videogen.metrics.points import point_distance

Pixels = UInt8[np.ndarray, "clips time height width 3"]

MARGIN = 0.02
"""By how much a box is larger than its points on each side, in units of the frame's sides."""

SEEN = 1.0
"""Pixels of a glove from which on its middle is known."""


def hand_boxes(
    hands: Float[np.ndarray, "... 2 points 3"], known: Bool[np.ndarray, "... 2"], height: int, width: int
) -> Bool[np.ndarray, "... height width"]:
    """The pixels inside the box of a known hand.

    Args:
      hands: (y, x, z) of the points, y and x in units of the frame's sides.
      known: which hands are.
      height: rows of a frame.
      width: columns.
    """
    inside = np.zeros((*known.shape[:-1], height, width), bool)
    rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    low, high = hands[..., :2].min(-2) - MARGIN, hands[..., :2].max(-2) + MARGIN
    for hand in range(2):
        a, b = low[..., hand, :], high[..., hand, :]
        y = (rows >= a[..., :1]) & (rows <= b[..., :1])
        x = (columns >= a[..., 1:]) & (columns <= b[..., 1:])
        inside |= y[..., :, None] & x[..., None, :] & known[..., hand, None, None]
    return inside


def hand_ssim(
    videos: Pixels,
    originals: Pixels,
    hands: Float[np.ndarray, "clips time 2 points 3"],
    known: Bool[np.ndarray, "clips time 2"],
) -> float | None:
    """SSIM of the windows whose middle is inside the box of a hand that is known in the originals: mean over all.

    ``None`` where there is no such window.
    """
    half = SSIM_WINDOW // 2
    if min(videos.shape[2:4]) < SSIM_WINDOW:
        return None
    inside = hand_boxes(hands, known, *videos.shape[2:4])[..., half:-half, half:-half]
    if not inside.any():
        return None
    total = 0.0
    for video, original, where in zip(videos, originals, inside, strict=True):
        pair = (jnp.asarray(clip[None], jnp.float32) / 255 for clip in (video, original))
        total += float(np.asarray(ssim_map(*pair))[0].mean(-1)[where].sum())
    return total / int(inside.sum())


def glove_distance(videos: Pixels, originals: Pixels) -> dict[str, Any]:
    """How far the middles of both gloves of signers are from those of the originals, in units of the frame's sides
    (``hand_distance``), and the share of hands that are seen on both sides (``hands_seen``)."""
    (places, known), (wanted, there) = (_middles(clips) for clips in (videos, originals))
    distance, share = point_distance(places, known, wanted, there)
    return {"hand_distance": distance, "hands_seen": share}


def _middles(videos: Pixels) -> tuple[Float[np.ndarray, "clips hands time 2"], Bool[np.ndarray, "clips hands time"]]:
    """(y, x) of the middle of each glove, and whether there is one."""
    cover = np.stack([glove_cover(video) for video in videos])
    mass = cover.sum((-2, -1))
    y, x = ((np.arange(n) + 0.5) / n for n in cover.shape[-2:])
    middle = np.stack([(cover.sum(-1) * y).sum(-1), (cover.sum(-2) * x).sum(-1)], axis=-1)
    return middle / np.maximum(mass, 1e-6)[..., None], mass >= SEEN
