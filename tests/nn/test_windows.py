"""Windows are a bijection of the grid, in raster order."""

import numpy as np
import pytest

from videogen.errors import UserError
from videogen.nn import merge_boxes, merge_windows, partition_boxes, partition_windows

GRID = np.arange(2 * 3 * 4 * 6 * 5).reshape(2, 3, 4, 6, 5)


@pytest.mark.parametrize("window", [1, 2])
def test_merging_inverts_partitioning(window):
    windows = partition_windows(GRID, window)
    assert windows.shape == (2, 3 * 24 // window**2, window, window, 5)
    np.testing.assert_array_equal(merge_windows(windows, 4, 6), GRID)


def test_windows_are_squares_of_one_frame_in_raster_order():
    windows = partition_windows(GRID, 2)
    for time in range(3):
        for row in range(2):
            for column in range(3):
                square = GRID[:, time, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                np.testing.assert_array_equal(windows[:, (time * 2 + row) * 3 + column], square)


@pytest.mark.parametrize("window", [0, 3, 4])
def test_sides_that_windows_do_not_tile_are_refused(window):
    with pytest.raises(UserError, match="4×6 latents are no multiple of the window"):
        partition_windows(GRID, window)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 2, 3), (1, 4, 2)])
def test_boxes_are_a_bijection_in_raster_order(size):
    a, b, c = size
    boxes = partition_boxes(GRID, size)
    assert boxes.shape == (2 * 72 // (a * b * c), a * b * c, 5)
    np.testing.assert_array_equal(merge_boxes(boxes, size, (3, 4, 6)), GRID)
    found = iter(boxes)
    for example in range(2):
        for t in range(0, 3, a):
            for y in range(0, 4, b):
                for x in range(0, 6, c):
                    box = GRID[example, t : t + a, y : y + b, x : x + c].reshape(-1, 5)
                    np.testing.assert_array_equal(next(found), box)
