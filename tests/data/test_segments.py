"""Label maps and links of sources: drawn ones, the stand-in, and a callable."""

import numpy as np
import pytest

from videogen import data
from videogen.data.segments import WithSegments
from videogen.data.shapes_source import ShapesSource
from videogen.errors import UserError

CLIP = data.Clip(6, 32, 32, 8.0)


def built(**settings):
    return data.build({"name": "shapes", **settings}, clip=CLIP, seed=0, split="train")


def test_shapes_know_their_own_label_maps():
    source = built(segments="own", things=4)
    assert source.fields["segments"] == ((6, 32, 32), np.int16) and source.fields["links"] == ((4, 6), np.int16)
    for i in range(6):
        sample = source[i]
        shapes = sample["attributes"]["shapes"]
        assert sample["segments"].dtype == sample["links"].dtype == np.int16
        assert set(np.unique(sample["segments"])) == set(range(1, 2 + len(shapes)))
        # Background and shapes are one thing each through the clip; what is left is padding.
        rows = {tuple(row) for row in sample["links"]}
        assert rows == {*((n,) * 6 for n in range(1, 2 + len(shapes))), (0,) * 6}
        # The pixels of a shape have its label.
        plain = ShapesSource(clip=CLIP, seed=0, split="train")[i]["video"]
        np.testing.assert_array_equal(sample["video"], plain)
    assert len(source) == 1_000_000 and source.judged and source.caption(0) == source[0]["caption"]


def test_the_largest_things_are_kept():
    source = built(segments="own", things=1)
    for i in range(3):
        (row,) = source[i]["links"]
        areas = np.bincount(source[i]["segments"].ravel())
        assert row.tolist() == [int(areas.argmax())] * 6


def test_a_callable_and_the_stand_in():
    halves = np.ones((6, 32, 32), int)
    halves[:, :, 16:] = 2
    source = WithSegments(built(), lambda video: halves, 3)
    np.testing.assert_array_equal(source[0]["segments"], halves)
    assert source[0]["links"].tolist() == [[1] * 6, [2] * 6, [0] * 6]
    found = built(segments="stand_in", things=5)[0]
    assert found["segments"].min() == 1 and found["links"].shape == (5, 6) and found["links"].max() > 1


def test_all_else_is_that_of_the_source_inside():
    several = {"name": "shapes_questions", "questions_per_clip": 2, "kinds": ("form", "colour")}
    source = data.build({**several, "segments": "stand_in"}, clip=CLIP, seed=0, split="train")
    plain = data.build(several, clip=CLIP, seed=0, split="train")
    assert source.questions_per_clip == 2 and source.texts == plain.texts
    assert source.contents() == plain.contents() and source.fps == 8.0 and len(source) == len(plain)
    assert source.texts_at(3) == plain.texts_at(3) and source.name_of(3) == plain.name_of(3)
    assert source[3]["question"] == plain[3]["question"]


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="unknown data.source.segments 'owned'"):
        built(segments="owned")
    with pytest.raises(UserError, match=r"unknown data.source.segments \(0, 0\)"):
        built(segments=(0, 0))
    with pytest.raises(UserError, match="things must be a whole number of at least 1, got 0"):
        built(segments="own", things=0)
    source = data.build({"name": "signer", "segments": "own"}, clip=CLIP, seed=0, split="train")
    with pytest.raises(UserError, match="no label maps of its own; set data.source.segments=stand_in"):
        source[0]
