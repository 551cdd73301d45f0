"""Published lists of expressions with masks: run lengths, ReVOS, ReasonVOS, and what is wrong with a folder."""

import json

import numpy as np
import pytest
from PIL import Image

from videogen import data
from videogen.data.expression_folder import decoded, run_lengths
from videogen.data.source import SampleError
from videogen.errors import UserError

CLIP = data.Clip(3, 8, 8)
SQUARE = np.zeros((16, 24), bool)
SQUARE[4:12, 8:16] = True


def lengths(mask):
    """Run lengths of a mask, column after column, beginning with what is outside."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    return np.diff(np.concatenate([[0], ends])).tolist()


def built(folder, split="train", **settings):
    section = {"name": "expression_folder", "path": str(folder), "fps": 6.0, **settings}
    return data.build(section, clip=CLIP, seed=0, split=split)


def frames(folder, video, count=5):
    """Pictures whose green is the number of the frame."""
    (folder / video).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((16, 24, 3), (0, 20 * i, 0), np.uint8)).save(folder / video / f"{i:05d}.png")
    return [f"{i:05d}" for i in range(count)]


@pytest.fixture
def revos(tmp_path):
    names = frames(tmp_path, "a/b")
    said = {
        "0": {"exp": "the one", "anno_id": [7], "type_id": 1},
        "1": {"exp": "both", "anno_id": [7, 8], "type_id": 0},
        "2": {"exp": "nothing", "anno_id": [], "type_id": 2},
    }
    other = np.roll(SQUARE, 8, axis=1)
    one, two = ({"size": [16, 24], "counts": lengths(mask)} for mask in (SQUARE, other))
    (tmp_path / "mask_dict.json").write_text(json.dumps({"7": [one, None, one, one, one], "8": [two] * 5}))
    (tmp_path / "list.json").write_text(json.dumps({"videos": {"a/b": {"expressions": said, "frames": names}}}))
    return tmp_path


def test_run_lengths_of_coco():
    assert run_lengths("61X13mN000`0").tolist() == [6, 1, 40, 4, 5, 4, 5, 4, 21]
    mask = decoded({"size": [10, 9], "counts": "61X13mN000`0"})
    assert mask.shape == (10, 9) and lengths(mask) == [6, 1, 40, 4, 5, 4, 5, 4, 21]
    np.testing.assert_array_equal(decoded({"size": [16, 24], "counts": lengths(SQUARE)}), SQUARE)
    assert not decoded({"size": [2, 3], "counts": [6]}).any()
    with pytest.raises(ValueError, match="runs of 5 pixels for 2 x 3"):
        decoded({"size": [2, 3], "counts": [2, 3]})


def test_revos(revos):
    source = built(revos, questions="list.json")
    assert len(source) == 3 and source.fps == 6.0 and source.caption(1) == "both" and not source.keeps_apart
    one, both, none = (source[i] for i in range(3))
    # Frames 0, 2 and 4 of five, at six a second.
    np.testing.assert_allclose(one["times"], [0, 2 / 6, 4 / 6])
    assert one["video"].shape == (3, 8, 8, 3) and one["video"][:, 0, 0, 1].tolist() == [0, 40, 80]
    # 16 × 24 pixels become 8 × 12, of which the middle eight columns are kept: 4 … 8 of 12 are 2 … 6.
    expected = np.zeros((8, 8), bool)
    expected[2:6, 2:6] = True
    for mask in one["masks"]:
        np.testing.assert_array_equal(mask, expected)
    expected[2:6, 6:] = True
    np.testing.assert_array_equal(both["masks"][0], expected)
    assert one["marked"] and one["answer"] == "here it is" and one["kind"] == "1"
    assert not none["marked"] and not none["masks"].any() and none["answer"] == "there is none"
    for name, (shape, kind) in source.fields.items():
        assert one[name].shape == shape and one[name].dtype == kind
    assert source.texts_at(0) == ["the one", "here it is", "there is none"]


def test_a_thing_that_is_out_of_sight(revos):
    clip = data.Clip(5, 8, 8)
    section = {"name": "expression_folder", "path": str(revos), "fps": 6.0, "questions": "list.json"}
    sample = data.build(section, clip=clip, seed=0, split="train")[0]
    assert sample["masks"].any((1, 2)).tolist() == [True, False, True, True, True]


def test_reason_vos(tmp_path):
    names = frames(tmp_path / "JPEGImages", "v")
    said = [{"exp_text": "what moves?", "obj_id": "3", "is_sent": "1"}]
    row = {"source": "MeViS", "expressions": said, "frames": names}
    (tmp_path / "meta_expressions.json").write_text(json.dumps({"videos": {"v": row}}))
    folder = tmp_path / "Annotations" / "mevis_v_3"
    folder.mkdir(parents=True)
    for name in names[:3]:
        Image.fromarray((SQUARE * 255).astype(np.uint8)).save(folder / f"{name}.png")
    sample = built(tmp_path)[0]
    assert sample["question"] == "what moves?" and sample["kind"] == "MeViS"
    assert sample["masks"].sum((1, 2)).tolist() == [16, 16, 0] and sample["marked"]


def test_what_is_wrong_is_said(revos):
    with pytest.raises(UserError, match="set data.source.fps"):
        built(revos, fps=None, questions="list.json")
    with pytest.raises(UserError, match="there is no .*meta_expressions.json"):
        built(revos)
    (revos / "broken.json").write_text("{")
    (revos / "empty.json").write_text('{"videos": {}}')
    (revos / "other.json").write_text("[]")
    (revos / "short.json").write_text(
        json.dumps(
            {"videos": {"a/b": {"expressions": {"0": {"exp": "x", "anno_id": [9]}}, "frames": ["00000", "9", "8"]}}}
        )
    )
    (revos / "silent.json").write_text(json.dumps({"videos": {"a/b": {"expressions": {"0": {}}, "frames": []}}}))
    for name, words in (
        *(("broken", "is no JSON"), ("empty", "has no expression"), ("other", "has no 'videos'")),
        ("silent", "a/b needs frames, and expressions with a text each"),
    ):
        with pytest.raises(UserError, match=words):
            built(revos, questions=f"{name}.json")
    with pytest.raises(SampleError, match="there is no frame 9"):
        built(revos, questions="short.json")[0]
    long = data.build(
        {"name": "expression_folder", "path": str(revos), "fps": 6.0, "questions": "list.json"},
        clip=data.Clip(6, 8, 8),
        seed=0,
        split="train",
    )
    with pytest.raises(SampleError, match="it has 5 frames, and clips have 6"):
        long[0]
    both = built(revos, "eval", questions="other.json", eval_questions="list.json")
    assert len(both) == 3 and both.keeps_apart
    (revos / "mask_dict.json").write_text("{}")
    with pytest.raises(SampleError, match="its mask in frame 00000 cannot be read"):
        built(revos, questions="list.json")[0]
    (revos / "mask_dict.json").unlink()
    with pytest.raises(UserError, match="neither mask_dict.json nor a folder Annotations"):
        built(revos, questions="list.json")
