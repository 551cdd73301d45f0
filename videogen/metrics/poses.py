"""Errors of poses in space, in the units of the data (Human3.6M's protocols 1 and 2)."""

import numpy as np
from jaxtyping import Float


def mpjpe(
    found: Float[np.ndarray, "*any joints 3"], wanted: Float[np.ndarray, "*any joints 3"], root: int
) -> Float[np.ndarray, "*any"]:
    """Of every pose the mean distance of its joints, the root included, where both poses are told from their root."""
    found, wanted = (np.asarray(x, np.float64) - x[..., root : root + 1, :] for x in (found, wanted))
    return np.linalg.norm(found - wanted, axis=-1).mean(-1)


def aligned_mpjpe(
    found: Float[np.ndarray, "*any joints 3"], wanted: Float[np.ndarray, "*any joints 3"]
) -> Float[np.ndarray, "*any"]:
    """P-MPJPE: the same where each pose found is first turned, scaled and shifted to fit best, in least squares."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    to = wanted.mean(-2, keepdims=True)
    a, b = found - found.mean(-2, keepdims=True), wanted - to
    u, sizes, v = np.linalg.svd(np.swapaxes(a, -1, -2) @ b)
    # A rotation, and no reflection.
    flip = np.ones(sizes.shape)
    flip[..., -1] = np.sign(np.linalg.det(u @ v))
    scale = (sizes * flip).sum(-1) / np.maximum((a**2).sum((-1, -2)), 1e-12)
    fitted = scale[..., None, None] * (a @ (u * flip[..., None, :]) @ v) + to
    return np.linalg.norm(fitted - wanted, axis=-1).mean(-1)
