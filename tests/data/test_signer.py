"""The signer: its points, its pixels, its sentences."""

import itertools

import numpy as np
import pytest

from videogen import data
from videogen.data.clip import Clip
from videogen.data.signer import (
    FOREARM,
    GESTURES,
    HAND_POINTS,
    JOINTS,
    LEFT,
    MOVED,
    REST,
    RIGHT,
    SHOULDERS,
    UPPER_ARM,
    hand_points,
    reach,
    sign,
)
from videogen.data.signer_source import SKINS, caption, parse, progress, render, split_of
from videogen.errors import UserError
from videogen.metrics.gestures import glove_cover

CLIP = Clip(12, 24, 24, 8.0)


def source(split="train", **settings):
    return data.build({"name": "signer", **settings}, clip=CLIP, seed=3, split=split)


@pytest.mark.parametrize("outwards", [-1.0, 1.0])
def test_the_bones_of_an_arm_keep_their_lengths_and_the_elbow_bends_outwards(outwards):
    shoulder, wanted = (0.4, 0.5), np.array([0.7, 0.55])
    elbow, wrist = reach(shoulder, wanted, outwards)
    np.testing.assert_allclose(wrist, wanted, atol=1e-9)
    lengths = np.linalg.norm(elbow - shoulder), np.linalg.norm(wrist - elbow)
    np.testing.assert_allclose(lengths, (UPPER_ARM, FOREARM), atol=1e-9)
    middle = (np.array(shoulder) + wanted) / 2
    assert np.sign(elbow[1] - middle[1]) == outwards


def test_an_arm_that_cannot_reach_points_there():
    elbow, wrist = reach((0.4, 0.5), np.array([0.4, 3.0]), 1.0)
    np.testing.assert_allclose(wrist, (0.4, 0.5 + UPPER_ARM + FOREARM), atol=1e-5)
    np.testing.assert_allclose(elbow, (0.4, 0.5 + UPPER_ARM), atol=1e-3)


def test_hands_hang_where_they_rest_and_move_through_the_points_of_a_word():
    figure = sign(("rise",), np.array([0.0, MOVED, (1 + MOVED) / 2, 1.0]))
    right, left = (figure.hands[:, hand, 0, :2] for hand in (RIGHT, LEFT))
    np.testing.assert_allclose(left, [REST[LEFT]] * 4, atol=1e-6)
    start, end = GESTURES["rise"].right
    np.testing.assert_allclose(right[0], REST[RIGHT], atol=1e-6)
    np.testing.assert_allclose(right[1], start, atol=1e-6)
    np.testing.assert_allclose(right[2], np.mean([start, end], axis=0), atol=1e-6)
    np.testing.assert_allclose(right[3], end, atol=1e-5)
    np.testing.assert_array_equal(figure.pose[:, JOINTS.index("right_wrist")], right)
    np.testing.assert_array_equal(figure.pose[:, JOINTS.index("left_shoulder")], [np.float32(SHOULDERS[LEFT])] * 4)


def test_a_word_begins_where_the_hands_were_at_the_end_of_the_one_before():
    figure = sign(("rise", "fall"), np.array([0.5 - 1e-6, 0.5 + 1e-6]))
    np.testing.assert_allclose(*figure.hands[:, RIGHT, 0, :2], atol=1e-4)


def test_depths_are_relative_to_the_wrist_and_tell_which_of_two_hands_is_in_front():
    at = np.array([0.8])
    cover, hide = sign(("cover",), at), sign(("hide",), at)
    assert cover.hands.shape == (1, 2, HAND_POINTS, 3) and not cover.hands[:, :, 0, 2].any()
    np.testing.assert_array_equal(cover.hands[..., :2], hide.hands[..., :2])
    np.testing.assert_allclose(cover.hands[..., 2], -hide.hands[..., 2])
    assert (cover.hands[0, RIGHT, 1:, 2] < 0).all() and (cover.hands[0, LEFT, 1:, 2] > 0).all()


def test_bent_fingers_are_nearer_and_shorter_than_stretched_ones():
    wrist, ahead = np.zeros(2), np.array([1.0, 0.0])
    stretched, fist = (hand_points(wrist, ahead, shape, LEFT) for shape in ("open", "fist"))
    tips = [8, 12, 16, 20]
    assert not stretched[:, 2].any() and (fist[tips, 2] < 0).all()
    assert (np.linalg.norm(fist[tips, :2], axis=1) < 0.5 * np.linalg.norm(stretched[tips, :2], axis=1)).all()


def test_every_sentence_belongs_to_one_split_and_every_word_of_eval_is_in_train():
    train, held_out = (set(source(split).sentences()) for split in ("train", "eval"))
    assert not train & held_out and len(train) + len(held_out) == 12 * 11 and len(held_out) == 13
    assert {word for words in held_out for word in words} <= {word for words in train for word in words}
    assert {split_of((word,)) for word in GESTURES} == {"train"}
    for split, sentences in (("train", train), ("eval", held_out)):
        drawn = [source(split)[i]["attributes"]["words"] for i in range(20)]
        assert set(drawn) <= sentences and len(set(drawn)) > 5


def test_samples_depend_on_seed_and_index_alone():
    one, again = source()[5], source()[5]
    assert all(np.array_equal(one[name], again[name]) for name in source().fields)
    assert one["caption"] == source().caption(5) == caption(one["attributes"]["shirt"], one["attributes"]["words"])
    assert parse(one["caption"]) == (one["attributes"]["shirt"], one["attributes"]["words"])
    for name, (shape, dtype) in source().fields.items():
        assert one[name].shape == shape and one[name].dtype == dtype


def test_the_hand_in_front_covers_the_other_in_the_picture():
    # Where the hands cross.
    look, at = ("red", SKINS[0], 60, 48, 48), np.array([0.75])
    cover, hide = (glove_cover(render(sign((word,), at), *look)).sum((1, 2, 3)) for word in ("cover", "hide"))
    assert cover[LEFT] < 0.6 * hide[LEFT] and hide[RIGHT] < 0.6 * cover[RIGHT]


def test_captions_list_what_a_split_can_say():
    captions = source("eval").captions()
    assert len(captions) == 13 * 4 == len(set(captions))
    assert {parse(text)[1] for text in captions} == set(source("eval").sentences())


@pytest.mark.parametrize(
    ("split", "words", "message"),
    [("train", 0, "1 to 4 words"), ("train", 5, "1 to 4 words"), ("eval", 1, "2 to 4 words")],
)
def test_sentences_of_other_lengths_are_refused(split, words, message):
    with pytest.raises(UserError, match=message):
        source(split, words=words)


@pytest.mark.parametrize("text", ["hello", "a signer in pink signs hello", "a signer in red signs hallo", ""])
def test_other_texts_are_no_captions(text):
    with pytest.raises(UserError, match="is no caption of the signer source"):
        parse(text)


def test_progress_is_that_of_the_middles_of_equal_shares():
    np.testing.assert_allclose(progress(4), [0.125, 0.375, 0.625, 0.875])


def test_all_words_are_signed_differently():
    tracks = {word: sign((word,), progress(24)).hands.ravel() for word in GESTURES}
    apart = [np.abs(tracks[a] - tracks[b]).max() for a, b in itertools.combinations(GESTURES, 2)]
    assert min(apart) > 0.05
