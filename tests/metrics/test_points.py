"""Distances of points, some of which are missing."""

import numpy as np
import pytest

from videogen.metrics.points import point_distance


def test_the_mean_is_over_points_known_on_both_sides():
    a = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [9.0, 9.0]])
    b = np.array([[0.0, 1.0], [0.0, 0.0], [10.0, 10.0], [-1.0, -1.0]])
    known_a, known_b = np.array([True, True, True, False]), np.array([True, True, False, True])
    assert point_distance(a, known_a, b, known_b) == (pytest.approx(3.0), 0.5)


def test_masking_frames_of_a_perfect_copy_leaves_the_score_at_zero():
    rng = np.random.default_rng(0)
    points, known = rng.normal(size=(200, 2, 21, 3)), np.ones((200, 2, 21), bool)
    masked, lost = points.copy(), known.copy()
    masked[::100], lost[::100] = 10.0, False
    assert point_distance(points, known, masked, lost) == (0.0, 0.99)


def test_where_nothing_is_known_there_is_no_value():
    points, known = np.zeros((4, 2)), np.zeros(4, bool)
    assert point_distance(points, known, points, ~known) == (None, 0.0)
    assert point_distance(points[:0], known[:0], points[:0], known[:0]) == (None, 0.0)
