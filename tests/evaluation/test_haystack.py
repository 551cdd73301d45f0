"""The map of needles, and its picture."""

import numpy as np
import pytest
from PIL import Image

from videogen import data
from videogen.data.clip import Clip
from videogen.errors import UserError
from videogen.evaluation.haystack import DEPTHS, LENGTHS, haystacks, heat_map
from videogen.reporting.heat_map import write_heat_map


def test_the_protocol_has_forty_lengths_and_twelve_depths():
    assert len(LENGTHS) == 40 and LENGTHS[0] == 1 and LENGTHS[-1] == 320 and len(set(LENGTHS)) == 40
    assert len(DEPTHS) == 12 and DEPTHS[0] == 0 and DEPTHS[-1] == 1


def test_a_map_counts_every_question():
    rows = [(8.0, 0.0, True), (8.0, 0.0, False), (8.0, 1.0, None), (4.0, 0.0, True)]
    found = heat_map(rows)
    assert found.lengths == (4.0, 8.0) and found.depths == (0.0, 1.0)
    np.testing.assert_array_equal(found.accuracy, [[1.0, np.nan], [0.5, 0.0]])
    np.testing.assert_array_equal(found.count, [[1, 0], [2, 1]])
    assert found.record()["accuracy"] == [[1.0, None], [0.5, 0.0]] and found.unparsed.sum() == 1
    with pytest.raises(UserError, match="no needle was asked for"):
        heat_map([])


def test_haystacks_are_sources_whose_needle_is_where_it_is_said_to_be():
    asked = haystacks(frames=8, fps=1.0, lengths=(4, 16, 320), depths=(0.0, 0.5, 1.0))
    assert [(length, depth) for length, depth, _ in asked] == [(n, d) for n in (16, 320) for d in (0.0, 0.5, 1.0)]
    for length, depth, settings in asked:
        source = data.build(settings, clip=Clip(8, 24, 24, 1.0), seed=0, split="eval")
        flash = source[0]["attributes"]["flash"]
        assert flash["first"] == round(depth * (length - 1)) and flash["count"] == 1
    with pytest.raises(UserError, match="no video of 4 s or less has 8 frames at 1 frames per second"):
        haystacks(frames=8, fps=1.0, lengths=(4,))
    # A needle of one second has as many frames as a second has.
    assert haystacks(frames=8, fps=8.0, lengths=(2,), depths=(0,))[0][2]["needle"] == 8


def test_the_picture_is_green_where_needles_are_found_and_red_where_not(tmp_path):
    for right, brighter in ((True, 1), (False, 0)):
        write_heat_map(tmp_path / "map.png", heat_map([(n, d, right) for n in (1, 2, 3) for d in (0, 1)]), "needles")
        picture = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
        height, width = picture.shape[:2]
        pixel = picture[height // 2, width // 3]
        assert pixel.argmax() == brighter and np.ptp(pixel) > 60
