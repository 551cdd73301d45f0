"""J and F in closed form."""

import math

import numpy as np
import pytest

from videogen.metrics.masks import boundary, boundary_measure, region_similarity, similarity_and_boundary


def square(side, top, left, size):
    mask = np.zeros((side, side), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_intersection_over_union():
    a, b, none = square(10, 0, 0, 4), square(10, 0, 2, 4), np.zeros((10, 10), bool)
    found = region_similarity(np.stack([a, a, none, none, a]), np.stack([a, b, none, a, none]))
    # Half of both overlap: 8 of 24 pixels.
    np.testing.assert_allclose(found, [1, 1 / 3, 1, 0, 0])


def test_a_boundary_is_where_a_neighbour_differs_and_not_the_edge_of_the_frame():
    mask = square(5, 1, 1, 2)
    expected = np.zeros((5, 5), bool)
    expected[:3, :3] = True
    expected[1, 1] = False
    np.testing.assert_array_equal(boundary(mask), expected)
    assert not boundary(np.ones((4, 4), bool)).any()


def test_boundaries_may_be_off_by_the_tolerance():
    # A diagonal of 28.3 pixels: 0.2 of one, rounded up to one.
    a = square(20, 5, 5, 6)
    assert boundary_measure(a, a) == 1
    assert boundary_measure(a, square(20, 5, 6, 6)) == 1
    assert boundary_measure(a, square(20, 5, 8, 6)) < 1
    # One of 283 pixels: 2.3, rounded up to three.
    wide = square(200, 50, 50, 60)
    assert boundary_measure(wide, square(200, 50, 53, 60)) == 1
    assert boundary_measure(wide, square(200, 50, 54, 60)) < 1


def test_masks_without_a_boundary():
    none, a = np.zeros((8, 8), bool), square(8, 2, 2, 3)
    assert boundary_measure(none, none) == 1 and boundary_measure(none, a) == boundary_measure(a, none) == 0
    assert boundary_measure(square(20, 0, 0, 3), square(20, 15, 15, 3)) == 0


def test_f_is_the_harmonic_mean_of_precision_and_recall():
    wanted, found = square(20, 2, 2, 5), square(20, 2, 2, 5) | square(20, 12, 12, 5)
    # All of the boundary that is wanted is found, and half of what is found is right.
    assert boundary_measure(found, wanted) == pytest.approx(2 * 0.5 / 1.5)
    assert boundary_measure(wanted, found) == pytest.approx(2 * 0.5 / 1.5)


def test_an_expression_is_the_mean_of_its_frames():
    a, none = square(10, 2, 2, 4), np.zeros((10, 10), bool)
    assert similarity_and_boundary(np.stack([a, none]), np.stack([a, a])) == (0.5, 0.5)
    assert math.isclose(similarity_and_boundary(np.stack([a]), np.stack([a]))[0], 1)
