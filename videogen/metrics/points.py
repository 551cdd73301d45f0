"""Distances of points that may be missing. A missing point is a mask, never a coordinate."""

import numpy as np
from jaxtyping import Bool, Float


def point_distance(
    a: Float[np.ndarray, "... axes"],
    known_a: Bool[np.ndarray, "..."],
    b: Float[np.ndarray, "... axes"],
    known_b: Bool[np.ndarray, "..."],
) -> tuple[float | None, float]:
    """The mean distance of points that are known on both sides, and the share of points that are.

    The distance is ``None`` where no point is known on both sides: there is no value, and not the value 0.
    """
    both = known_a & known_b
    share = float(both.mean()) if both.size else 0.0
    if not both.any():
        return None, share
    return float(np.linalg.norm(a[both] - b[both], axis=-1).mean()), share
