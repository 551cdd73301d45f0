"""The picture of what was read."""

import numpy as np
from PIL import Image

from videogen.reporting.readings import COLUMNS, write_readings


def test_a_wrong_reading_is_red(tmp_path):
    """Crops are grey, so that all red is of letters."""
    crops = np.full((2, 32, 160, 3), 200, np.uint8)
    for after, red in (("Cat", False), ("Cot $1", True), ("", True)):
        write_readings(tmp_path / "a.png", [(crops, "Cat", "Cat", after)] * (COLUMNS + 1))
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        assert ((pixels[..., 0] - pixels[..., 1]) > 60).any() == red, after


def test_nothing_to_show(tmp_path):
    write_readings(tmp_path / "a.png", [])
    assert not (tmp_path / "a.png").exists()
