"""Cells that are said frame by frame."""

import math

import pytest

from videogen.errors import UserError
from videogen.evaluation.tracking import FARTHEST, NAMES, read_cells, tracking


def test_cells_are_read_and_keep_their_places():
    assert read_cells("1 5 9") == [0, 4, 8] and read_cells("1, 5, 9") == [0, 4, 8]
    assert read_cells("top left, middle, bottom_right") == [0, 4, 8]
    assert read_cells("top,unknown,,bottom") == [1, None, None, 7]
    assert read_cells("center, middle-left; Upper right\nlower middle") == [4, 3, 2, 7]
    assert read_cells("top and bottom") == [None] and read_cells("") == [] and read_cells("0 10 3") == [None, None, 2]
    assert [read_cells(name) for name in NAMES] == [[cell] for cell in range(9)]


def test_a_perfect_track():
    found = tracking([0, 1, 4, 8], [0, 1, 4, 8])
    assert (found.right, found.mean_distance, found.last_distance, found.transitions) == (1, 0, 0, 1)


def test_distances_are_those_of_the_centres():
    found = tracking([0, 0, 0], [0, 1, 8])
    assert found.right == pytest.approx(1 / 3)
    assert found.mean_distance == pytest.approx((0 + 1 / 3 + 2 * math.sqrt(2) / 3) / 3)
    assert found.last_distance == pytest.approx(2 * math.sqrt(2) / 3)
    assert found.transitions == 0


def test_steps_are_right_wherever_they_begin():
    found = tracking([3, 4, 5, 5], [0, 1, 2, 5])
    assert found.right == 0.25 and found.transitions == pytest.approx(2 / 3)


def test_what_is_not_said_is_wrong_and_farthest_and_shifts_nothing():
    found = tracking([0, None], [0, 4, 8])
    assert found.right == pytest.approx(1 / 3) and found.last_distance == FARTHEST == pytest.approx(math.sqrt(2))
    assert found.mean_distance == pytest.approx(2 * FARTHEST / 3) and found.transitions == 0
    assert tracking([0, 4, 8, 8, 8], [0, 4, 8]).right == 1


def test_one_frame_has_no_step():
    assert tracking([3], [3]).transitions is None
    with pytest.raises(UserError, match="at least one frame"):
        tracking([3], [])
