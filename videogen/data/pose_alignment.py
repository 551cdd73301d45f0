"""Bringing the points of one figure onto another: one scale from bone lengths, one shift from one frame.

A line fitted through the points of all frames takes the motion of the body for differences in size and shrinks the
figure; bone lengths do not move.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from videogen.data.signer import BONES
from videogen.errors import UserError, near_matches

ALIGNMENTS = ("bones", "none")
"""How ``aligned`` brings points to a reference."""


def aligned(
    points: Float[np.ndarray, "frames joints 2"],
    known: Bool[np.ndarray, "frames joints"],
    reference: Float[np.ndarray, "joints 2"],
    reference_known: Bool[np.ndarray, "joints"],
    *,
    frame: int = 0,
    align: str = "bones",
    bones: Sequence[tuple[int, int]] = BONES,
) -> tuple[Float[np.ndarray, "frames joints 2"], float, Float[np.ndarray, "2"]]:
    """``scale · points + shift``, the scale and the shift.

    Args:
      points: of a clip.
      known: which of them are known; the others are not used, and come back scaled like the rest.
      reference: the points of another figure.
      reference_known: which of them are known.
      frame: of the clip, which the shift brings onto the reference: the mean of the points that both know.
      align: ``"bones"``: the scale is the median over bones of the ratio of lengths, those of the clip medians over its
        frames; ``"none"``: scale 1 and no shift.
      bones: pairs of joints.

    Raises:
      UserError: an unknown name, or the two have no bone, or no point of the frame, in common.
    """
    if align not in ALIGNMENTS:
        raise UserError(f"unknown alignment {align!r}{near_matches(align, ALIGNMENTS)}")
    if align == "none":
        return points, 1.0, np.zeros(2, points.dtype)
    ratios = []
    for i, j in bones:
        seen = known[:, i] & known[:, j]
        if seen.any() and reference_known[i] and reference_known[j]:
            length = np.median(np.linalg.norm(points[seen, i] - points[seen, j], axis=-1))
            ratios.append(np.linalg.norm(reference[i] - reference[j]) / max(length, 1e-8))
    both = known[frame] & reference_known
    if not ratios or not both.any():
        raise UserError(
            f"the points of frame {frame} and those of the reference have no bone in common to be aligned by; "
            "choose another frame, or align=none"
        )
    scale = float(np.median(ratios))
    shift = reference[both].mean(0) - scale * points[frame, both].mean(0)
    return (scale * points + shift).astype(points.dtype), scale, shift
