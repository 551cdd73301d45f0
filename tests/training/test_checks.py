"""What is refused before it fills the memory."""

import os

import numpy as np
import pytest

from videogen.errors import UserError
from videogen.training.checks import check_held_out


def test_held_out_clips_take_at_most_a_quarter_of_the_memory():
    """``eval_batch_size=2**40`` read procedural clips until the machine was full."""
    quarter = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    fields = {"video": ((4, 8, 8, 3), np.uint8), "audio": ((64,), np.float32)}
    clip = 4 * 8 * 8 * 3 + 64 * 4
    check_held_out(quarter // clip, fields)
    with pytest.raises(UserError, match="use a smaller data.eval_batch_size"):
        check_held_out(quarter // clip + 1, fields)
