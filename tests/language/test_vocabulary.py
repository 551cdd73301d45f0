"""Disjoint ranges of ids, there and back; times and boxes as ids; levels of audio in the order of a stream."""

import numpy as np
import pytest

from videogen.errors import UserError
from videogen.language import Bins, Ids, Vocabulary
from videogen.tokens import SegmentLayout

VOCABULARY = Vocabulary.of(text=11, video=(7,), audio=(4, 4, 3), time=5, markers=("begin", "end"))


def test_every_id_has_one_place_and_comes_back():
    assert VOCABULARY.size == 11 + 7 + 11 + 5 + 2
    places = [VOCABULARY.place(i) for i in range(VOCABULARY.size)]
    assert len(set(places)) == VOCABULARY.size
    for number, (name, level, local) in enumerate(places):
        ids = np.zeros(len(VOCABULARY[name].levels), np.int32)
        ids[level] = local
        assert VOCABULARY.to_stream(name, ids)[level] == number
        np.testing.assert_array_equal(VOCABULARY.from_stream(name, VOCABULARY.to_stream(name, ids)), ids)
    masks = np.stack([VOCABULARY.mask(found.name) for found in VOCABULARY.ranges])
    assert (masks.sum(axis=0) == 1).all()
    assert VOCABULARY.place(11 + 7 + 4 + 2) == ("audio", 1, 2) and VOCABULARY.mask("audio", 2).sum() == 3
    assert VOCABULARY.word("end") == VOCABULARY.size - 1


def test_a_published_vocabulary_is_extended_behind_its_own_ids():
    vocabulary = Vocabulary.of(text=32_000, markers=("begin_video", "end_video"), time=300)
    ids = np.array([[0], [31_999]])
    np.testing.assert_array_equal(vocabulary.to_stream("text", ids), ids)
    assert vocabulary.word("begin_video") == 32_000 and vocabulary.size == 32_302


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda: Vocabulary.of(text=0), "range 'text' of the vocabulary is empty"),
        (lambda: Vocabulary.of(a=("x",), b=("x",)), "two markers of the vocabulary have one name"),
        (lambda: VOCABULARY["vidoe"], "no range 'vidoe'; did you mean 'video'"),
        (lambda: VOCABULARY.word("ende"), "no marker 'ende'; did you mean 'end'"),
        (lambda: VOCABULARY.place(36), "the ids 0 to 35, got 36"),
        (lambda: VOCABULARY.to_stream("text", np.array([11])), "by level, got 11"),
        (lambda: VOCABULARY.to_stream("audio", np.array([1])), "have 3 levels, got 1"),
    ],
)
def test_what_cannot_be_is_refused(do, message):
    with pytest.raises(UserError, match=message):
        do()


def test_times_come_back_within_half_a_bin_in_order_with_both_ends():
    bins, times = Bins(300, extent=12.5), np.linspace(0, 12.5, 4001)
    ids = bins.encode(times)
    assert np.abs(bins.decode(ids) - times).max() <= 0.5 * 12.5 / 299 + 1e-9
    assert (np.diff(ids) >= 0).all() and ids[0] == 0 and ids[-1] == 299
    np.testing.assert_array_equal(bins.encode(bins.decode(ids)), ids)


def test_boxes_come_back_within_half_a_point_and_flips_commute():
    bins, sides = Bins(1000, nearest=True), np.random.default_rng(0).uniform(size=4000)
    assert np.abs(bins.decode(bins.encode(sides)) - sides).max() <= 1 / (2 * 999) + 1e-9
    assert np.abs(bins.encode(1 - sides) - (999 - bins.encode(sides))).max() <= 1


def test_levels_of_audio_stand_coarse_first():
    kind = Ids.of("audio", SegmentLayout((("time", 5),), (4, 4, 3)))
    codes = np.arange(15).reshape(1, 5, 3)
    flat = kind.flat(codes)
    np.testing.assert_array_equal(flat[0], [0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14])
    np.testing.assert_array_equal(kind.restored(flat), codes)
