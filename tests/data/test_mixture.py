from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict

from videogen import data
from videogen.data.clip import Clip
from videogen.errors import UserError

CLIP = Clip(2, 16, 16)


def build(parts, split="train"):
    return data.build({"name": "mixture", "parts": parts}, clip=CLIP, seed=0, split=split)


def shapes(weight, **settings):
    return {"name": "shapes", "weight": weight, "length": 50, **settings}


def count(mixture, indices):
    """How many shapes there are in the scenes at the indices: part 0 has one, part 1 two."""
    return Counter(len(mixture[i]["attributes"]["shapes"]) for i in indices)


def test_proportions_hold_overall_and_locally():
    mixture = build([shapes(3), shapes(1, second_shape=1.0)])
    assert count(mixture, range(100)) == {1: 75, 2: 25}
    for begin in range(0, 96, 4):
        assert count(mixture, range(begin, begin + 4)) == {1: 3, 2: 1}


def test_every_sample_of_every_part_occurs_and_small_parts_repeat():
    mixture = build([shapes(1, length=100), shapes(1, length=7, second_shape=1.0)])
    assert len(mixture) == 200
    captions = [mixture.caption(i) for i in range(200)]
    long = [c for c in captions if c.count("moves") == 1]
    short = [c for c in captions if c.count("moves") == 2]
    assert len(long) == len(short) == 100
    assert len(set(short)) <= 7 < len(set(long)) and short[:7] == short[7:14]
    assert captions[3] == mixture[3]["caption"]


def test_equal_parts_do_not_hold_equal_samples():
    mixture = build([shapes(1), shapes(1)])
    even, odd = ([mixture.caption(i) for i in range(begin, 40, 2)] for begin in (0, 1))
    assert sum(a == b for a, b in zip(even, odd, strict=True)) < 3


def test_uneven_weights_are_rounded_but_never_lost():
    mixture = build([shapes(0.9985), shapes(0.0015, second_shape=1.0)])
    assert count(mixture, range(1000))[2] in (1, 2)


def test_labels_only_where_all_parts_have_the_same(tmp_path, make_video):
    make_video("videos/x.mp4")
    folder = {"name": "video_folder", "path": str(tmp_path / "videos"), "weight": 1}
    assert build([shapes(1), shapes(2)]).classes == data.SOURCES["shapes"].classes
    mixture = build([shapes(1), folder])
    assert mixture.classes == ()
    assert all(mixture[i]["video"].shape == (2, 16, 16, 3) for i in range(4))


def test_parts_follow_the_split_and_config_dicts_work():
    parts = ConfigDict({"parts": [shapes(1)]}).to_dict()["parts"]
    train, held_out = build(parts), build(parts, "eval")
    assert not {train.caption(i) for i in range(50)} & {held_out.caption(i) for i in range(50)}
    np.testing.assert_array_equal(train[1]["video"], build(parts)[1]["video"])


@pytest.mark.parametrize(
    "parts, message",
    [
        ([], "needs parts"),
        ([{"name": "shapes"}], "positive weight"),
        ([shapes(-1)], "positive weight"),
        ([shapes(1), shapes(1e-6)], "leave out the smallest"),
        ([shapes(1, lenght=5)], "did you mean 'length'"),
        ([shapes(1, length=0)], "empty"),
    ],
)
def test_bad_mixtures_are_refused(parts, message):
    with pytest.raises(UserError, match=message):
        build(parts)
