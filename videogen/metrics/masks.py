"""How well masks of a video agree: J, F and their mean (DAVIS; Perazzi et al., CVPR 2016)."""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

TOLERANCE = 0.008
"""How far a boundary may be off, as a share of the frame's diagonal, rounded up to whole pixels."""


def region_similarity(
    found: Bool[np.ndarray, "*masks height width"], wanted: Bool[np.ndarray, "*masks height width"]
) -> Float[np.ndarray, "*masks"]:
    """J: intersection over union of every mask; 1 where both are empty."""
    both, either = ((found & wanted).sum((-2, -1)), (found | wanted).sum((-2, -1)))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def boundary(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Pixels that differ from the one to the right, the one below or the one across; the frame's edge is none."""
    right, below = (np.pad(mask, p, mode="edge") for p in (((0, 0), (0, 1)), ((0, 1), (0, 0))))
    across = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != right[:, 1:]) | (mask != below[1:]) | (mask != across[1:, 1:])


def boundary_measure(found: Bool[np.ndarray, "height width"], wanted: Bool[np.ndarray, "height width"]) -> float:
    """F: of the boundaries of two masks the harmonic mean of the shares that lie within the tolerance of the other's.

    Two masks without a boundary agree: 1; where one has none it is 0.
    """
    a, b = boundary(found), boundary(wanted)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    reach = math.ceil(TOLERANCE * math.hypot(*found.shape))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = x**2 + y**2 <= reach**2
    precision = (a & ndimage.binary_dilation(b, disc)).sum() / a.sum()
    recall = (b & ndimage.binary_dilation(a, disc)).sum() / b.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def similarity_and_boundary(
    found: Bool[np.ndarray, "time height width"], wanted: Bool[np.ndarray, "time height width"]
) -> tuple[float, float]:
    """J and F of the masks of one expression, means over the frames."""
    edges = [boundary_measure(a, b) for a, b in zip(found, wanted, strict=True)]
    return float(region_similarity(found, wanted).mean()), float(np.mean(edges))
