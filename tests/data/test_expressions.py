"""Expressions about moving shapes: that they mean one shape, and that masks are what is seen of it."""

import numpy as np
import pytest

from videogen import data
from videogen.data.expressions_source import EXPRESSIONS, OCCLUDER, ExpressionsSource, render
from videogen.data.shapes_source import COLOURS
from videogen.errors import UserError

CLIP = data.Clip(12, 32, 32, 8.0)


def samples(kind, count=12, split="train"):
    source = ExpressionsSource(clip=CLIP, seed=0, split=split, kinds=(kind,))
    return [source[i] for i in range(count)]


def turns(track):
    steps = np.sign(np.round(np.diff(track, axis=0), 6))
    return int((steps[1:] != steps[:-1]).any(1).sum())


def test_masks_have_the_colour_of_the_shape_that_is_meant():
    for kind in ("colour", "form", "twice", "hidden"):
        for sample in samples(kind):
            scene, masks = sample["attributes"], sample["masks"]
            meant = scene["shapes"][scene["meant"]]
            colour = np.array(COLOURS[meant["colour"]], np.uint8)
            inside = (np.abs(sample["video"].astype(int) - colour) <= 1).all(-1)
            assert sample["marked"] and sample["answer"] == "here it is" and sample["wrong"] == "there is none"
            # Pixels of the pure colour are in the mask, and those in it are mixed with what is around at the outline.
            assert masks[inside].all() and inside[masks].mean() > 0.3
            assert masks.any((1, 2)).sum() >= 6


def test_expressions_mean_one_shape():
    for sample in samples("colour"):
        scene = sample["attributes"]
        meant, other = (scene["shapes"][i] for i in (scene["meant"], 1 - scene["meant"]))
        assert sample["question"] == f"the {meant['colour']} shape" and other["colour"] != meant["colour"]
    for sample in samples("form"):
        scene = sample["attributes"]
        meant, other = (scene["shapes"][i] for i in (scene["meant"], 1 - scene["meant"]))
        assert sample["question"] == f"the {meant['form']}" and other["form"] != meant["form"]


def test_the_one_that_turns_twice():
    places = []
    for sample in samples("twice", 24):
        scene = sample["attributes"]
        found = [turns(shape["track"]) for shape in scene["shapes"]]
        # Between two frames a corner may be cut, which then counts as two changes of direction of one turn.
        assert sample["question"] == EXPRESSIONS["twice"]
        corners = [len(np.unique(np.sign(np.round(np.diff(s["track"], axis=0), 6)), axis=0)) for s in scene["shapes"]]
        assert found[scene["meant"]] >= 2 and corners[scene["meant"]] >= 2 and found[1 - scene["meant"]] <= 2
        places.append(scene["meant"])
    assert set(places) == {0, 1}


def test_what_was_hidden_behind_the_square():
    for sample in samples("hidden"):
        scene = sample["attributes"]
        square = scene["shapes"][2]
        assert square["form"] == "square" and square["radius"] == OCCLUDER and len(scene["shapes"]) == 3
        covers = render(scene, CLIP)[1]
        meant, other = covers[scene["meant"]], covers[1 - scene["meant"]]
        # The one is hidden whole at some time and seen at both ends, the other is always seen.
        assert not meant.any((1, 2)).all() and meant[[0, -1]].any((1, 2)).all() and other.any((1, 2)).all()
        assert {shape["colour"] for shape in scene["shapes"]}.__len__() == 3


def test_what_is_not_there_has_no_mask_and_no_marker():
    for sample in samples("absent"):
        colours = {shape["colour"] for shape in sample["attributes"]["shapes"]}
        assert sample["question"].split()[1] not in colours
        assert not sample["masks"].any() and not sample["marked"] and sample["answer"] == "there is none"


def test_splits_and_settings():
    meant = {}
    for split in ("train", "eval"):
        scenes = [s["attributes"] for kind in ("colour", "form") for s in samples(kind, 60, split)]
        meant[split] = {(s["shapes"][s["meant"]]["colour"], s["shapes"][s["meant"]]["form"]) for s in scenes}
    assert meant["eval"] and not meant["train"] & meant["eval"]
    source = ExpressionsSource(clip=CLIP, seed=0, split="train")
    assert [source[i]["kind"] for i in range(6)] == [*EXPRESSIONS, "colour"]
    one, two = source[3], source[3]
    np.testing.assert_array_equal(one["video"], two["video"])
    assert {name: (one[name].shape, one[name].dtype) for name in source.fields} == {
        name: (shape, np.dtype(kind)) for name, (shape, kind) in source.fields.items()
    }
    np.testing.assert_allclose(one["times"], np.arange(12) / 8)
    assert set(source.texts_at(3)) == {one["question"], "here it is", "there is none"}
    for settings, words in (
        ({"kinds": ()}, "names no kind"),
        ({"kinds": ("colours",)}, "did you mean 'colour'"),
        ({"clip": data.Clip(7, 8, 8)}, "at least 8 frames, got 7"),
    ):
        with pytest.raises(UserError, match=words):
            ExpressionsSource(**{"clip": CLIP, "seed": 0, "split": "train", **settings})


def test_golden_clips():
    source = ExpressionsSource(clip=CLIP, seed=0, split="train")
    asked = [source[i]["question"] for i in range(5)]
    assert asked == [
        *("the cyan shape", "the square", "the shape that turns twice"),
        *("the shape that was hidden behind the square", "the yellow shape"),
    ]
    np.testing.assert_allclose([source[i]["masks"].sum() for i in range(5)], [859, 963, 656, 268, 0], atol=2)
    sums = [source[i]["video"].sum(dtype=np.int64) for i in range(5)]
    np.testing.assert_allclose(sums, [2_043_572, 7_231_346, 7_093_272, 2_468_078, 4_325_213], rtol=1e-5)
