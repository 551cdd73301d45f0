"""Points of one figure brought onto another."""

import numpy as np
import pytest

from videogen.data.pose_alignment import aligned
from videogen.data.signer import sign
from videogen.errors import UserError

BONE = ((0, 1),)


def test_a_body_that_moves_does_not_shrink():
    """Points at 0.4 and 0.8 that go up and down by 0.2: a line through all frames would have half the slope."""
    moved = np.array([0.0, -0.2, 0.2])
    points = np.array([0.4, 0.8])[None, :, None] + np.zeros(2) + moved[:, None, None]
    known = np.ones(points.shape[:2], bool)
    _, scale, shift = aligned(points, known, points[0], known[0], bones=BONE)
    assert scale == pytest.approx(1.0, abs=1e-12) and shift == pytest.approx([0.0, 0.0], abs=1e-12)
    flat = points[..., 0].ravel(), np.tile(points[0, :, 0], 3)
    assert np.polyfit(*flat, 1)[0] == pytest.approx(0.6, abs=0.11)


def test_a_clip_aligned_to_its_own_first_frame_does_not_change():
    figure = sign(("come", "rise"), np.linspace(0, 1, 9))
    found, *_ = aligned(figure.pose, figure.pose_mask, figure.pose[0], figure.pose_mask[0])
    assert np.abs(found - figure.pose).max() < 1e-6


def test_scale_and_place_of_another_figure_are_found():
    figure = sign(("come", "rise"), np.linspace(0, 1, 9))
    other = 0.5 * figure.pose[3] + np.array([0.1, 0.3])
    found, scale, shift = aligned(figure.pose, figure.pose_mask, other, figure.pose_mask[3], frame=3)
    assert scale == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(shift, [0.1, 0.3], atol=1e-5)
    np.testing.assert_allclose(found[3], other, atol=1e-5)


def test_points_that_are_not_known_decide_nothing():
    figure = sign(("come", "rise"), np.linspace(0, 1, 9))
    wild, mask = figure.pose.copy(), figure.pose_mask.copy()
    wild[:, 4], mask[:, 4] = 10.0, False
    found, scale, _ = aligned(wild, mask, figure.pose[0], figure.pose_mask[0])
    assert scale == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_allclose(np.delete(found, 4, 1), np.delete(figure.pose, 4, 1), atol=1e-5)


def test_none_leaves_points_as_they_are_and_what_has_nothing_in_common_is_refused():
    figure = sign(("come",), np.linspace(0, 1, 3))
    mask = np.zeros_like(figure.pose_mask)
    same, scale, shift = aligned(figure.pose, mask, figure.pose[0], mask[0], align="none")
    assert same is figure.pose and scale == 1.0 and not shift.any()
    with pytest.raises(UserError, match="no bone in common to be aligned by; choose another frame, or align=none"):
        aligned(figure.pose, mask, figure.pose[0], figure.pose_mask[0])
    with pytest.raises(UserError, match="unknown alignment 'bone'"):
        aligned(figure.pose, mask, figure.pose[0], mask[0], align="bone")
