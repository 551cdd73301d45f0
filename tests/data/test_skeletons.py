"""Skeletons: bones keep their lengths, points are projections, samples are functions of a number; folders of poses."""

import numpy as np
import pytest

from videogen import data
from videogen.data.skeletons import FOCAL, METRES, ROOT, SkeletonSource, bent, projected, turned_about_y, window
from videogen.data.source import SampleError
from videogen.errors import UserError

CLIP = data.Clip(9, 1, 1, 12.0)


def source(split="train", **settings):
    return SkeletonSource(clip=CLIP, seed=0, split=split, **settings)


def test_bones_keep_their_lengths_and_points_are_projections():
    for i in range(5):
        sample = source()[i]
        joints, points = sample["joints"].astype(np.float64), sample["points"]
        assert joints.shape == (9, 8, 3) and points.shape == (9, 8, 2) and points.dtype == np.float32
        for a, b in ((2, 3), (3, 4), (5, 6), (6, 7)):
            np.testing.assert_allclose(np.linalg.norm(joints[:, a] - joints[:, b], axis=-1), 0.3, rtol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(joints[:, 0] - joints[:, 1], axis=-1), 0.16 * METRES, rtol=1e-4)
        np.testing.assert_allclose(points, FOCAL * joints[..., :2] / joints[..., 2:], rtol=1e-4, atol=1e-6)
        # The camera looks at the neck.
        np.testing.assert_allclose(points[:, ROOT], 0.0, atol=1e-6)
        assert (joints[:, ROOT, 2] >= 2.5).all() and (joints[:, ROOT, 2] <= 4.0).all()


def test_samples_are_functions_of_seed_and_number_and_differ():
    one, two = source()[3], source()[3]
    np.testing.assert_array_equal(one["joints"], two["joints"])
    assert np.abs(one["joints"] - source()[4]["joints"]).max() > 0.05
    other = SkeletonSource(clip=CLIP, seed=1, split="train")[3]
    assert np.abs(one["joints"] - other["joints"]).max() > 0.05
    # Elbows and hands leave the plane of the body: depths are no function of the picture.
    depth = np.stack([source()[i]["joints"][:, 3, 2] - source()[i]["joints"][:, 2, 2] for i in range(8)])
    assert depth.std() > 0.03


def test_an_elbow_turns_about_its_arm_and_a_far_hand_is_pointed_at():
    shoulder, far = np.zeros((1, 3)), np.array([[0.0, 5.0, 0.0]])
    elbow, wrist = bent(shoulder, far, 1.0, np.zeros(1))
    np.testing.assert_allclose(wrist, [[0, 0.6, 0]], atol=1e-5)
    near = np.array([[0.0, 0.36, 0.0]])
    # Half of the arm's length along, and across by Pythagoras: 0.3² = 0.18² + 0.24².
    for angle, expected in ((0.0, (0.24, 0.18, 0.0)), (np.pi / 2, (0.0, 0.18, -0.24))):
        elbow, wrist = bent(shoulder, near, 1.0, np.full(1, angle))
        np.testing.assert_allclose(elbow[0], expected, atol=1e-9)
        np.testing.assert_allclose(wrist, near, atol=1e-9)
    assert bent(shoulder, near, -1.0, np.zeros(1))[0][0, 0] == pytest.approx(-0.24)


def test_clips_are_windows_of_a_sentence_at_their_rate():
    # Two words of 1.5 s at 10 frames a second: 30 steps, of which 9 frames take 8.
    clip = data.Clip(9, 1, 1, 10.0)
    np.testing.assert_allclose(window(clip, 2, 0.0), np.arange(9) / 30)
    np.testing.assert_allclose(window(clip, 2, 1.0), np.arange(22, 31) / 30)
    np.testing.assert_allclose(window(clip, 2, 0.5), np.arange(11, 20) / 30)
    # A long clip ends at rest, and one without a rate is the whole sentence.
    long = window(data.Clip(40, 1, 1, 10.0), 2, 0.7)
    np.testing.assert_allclose(long[:31], np.arange(31) / 30)
    assert (long[30:] == 1).all()
    np.testing.assert_allclose(window(data.Clip(4, 1, 1), 2, 0.3), [0.125, 0.375, 0.625, 0.875])


def test_geometry():
    np.testing.assert_allclose(projected(np.array([1.0, -2.0, 5.0])), [0.5, -1.0])
    np.testing.assert_allclose(turned_about_y(np.float64(np.pi / 2)) @ [0, 3, 1], [1, 3, 0], atol=1e-12)


def test_sentences_of_splits_differ_and_have_words():
    with pytest.raises(UserError, match="has 2 to 4 words, got words=1"):
        source("eval", words=1)
    with pytest.raises(UserError, match="has 1 to 4 words, got words=5"):
        source(words=5)
    assert len(source(length=7)) == 7 and source(words=1)[0]["joints"].shape == (9, 8, 3)
    assert source().fields == SkeletonSource.described(CLIP, {})


def written(folder, name, frames=12, count=3, changed=None):
    rng = np.random.default_rng(len(name))
    arrays = {"points": rng.normal(size=(frames, count, 2)), "joints": rng.normal(size=(frames, count, 3))}
    np.savez(folder / f"{name}.npz", **{**arrays, **(changed or {})})
    return arrays


def test_a_folder_of_poses(tmp_path):
    arrays = written(tmp_path, "a")
    one = data.build({"name": "pose_folder", "path": str(tmp_path)}, clip=CLIP, seed=0, split="eval")
    # The window of 9 of 12 frames is central.
    np.testing.assert_allclose(one[0]["joints"], arrays["joints"][1:10], rtol=1e-6)
    np.testing.assert_allclose(one[0]["points"], arrays["points"][1:10], rtol=1e-6)
    assert one.fields["points"] == ((9, 3, 2), np.float32) and not one.keeps_apart
    for i in range(8):
        written(tmp_path, f"b{i}")
    both = [
        data.build({"name": "pose_folder", "path": str(tmp_path), "holdout": 0.3}, clip=CLIP, seed=0, split=split)
        for split in ("train", "eval")
    ]
    names = [{source.name_of(i) for i in range(len(source))} for source in both]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 9 and both[0].keeps_apart
    starts = {float(both[0].sample(0, np.random.default_rng(i))["points"][0, 0, 0]) for i in range(20)}
    assert len(starts) == 4


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"points": np.zeros((12, 3, 3))}, "its arrays are"),
        ({"joints": np.zeros((11, 3, 3))}, "its arrays are"),
        ({"joints": np.full((12, 3, 3), np.nan)}, "not finite"),
    ],
)
def test_malformed_poses_are_skipped_or_refused(tmp_path, changed, words):
    written(tmp_path, "a")
    written(tmp_path, "b", changed=changed)
    written(tmp_path, "c", frames=8)
    written(tmp_path, "d", count=4)
    (tmp_path / "e.npz").write_bytes(b"PK nothing")
    source = data.build({"name": "pose_folder", "path": str(tmp_path), "holdout": 0}, clip=CLIP, seed=0, split="train")
    for index, said in ((1, words), (2, "8 frames of 3 joints"), (3, "12 frames of 4"), (4, "no readable")):
        with pytest.raises(SampleError, match=said):
            source[index]
    (tmp_path / "a.npz").unlink()
    with pytest.raises(UserError, match="every file needs points"):
        data.build({"name": "pose_folder", "path": str(tmp_path), "holdout": 0}, clip=CLIP, seed=0, split="train")


def test_a_folder_without_poses(tmp_path):
    with pytest.raises(UserError, match="no .npz file"):
        data.build({"name": "pose_folder", "path": str(tmp_path)}, clip=CLIP, seed=0, split="train")
    with pytest.raises(UserError, match="there is no folder"):
        data.build({"name": "pose_folder", "path": str(tmp_path / "x")}, clip=CLIP, seed=0, split="train")


def test_golden_joints():
    """Where head, elbows and wrists of two sequences are: every range that bodies and cameras are drawn from counts."""
    clip = data.Clip(9, 1, 1, 12.0)
    first, second = (SkeletonSource(clip=clip, seed=0, split="train")[i]["joints"] for i in (0, 1))
    expected = [[0.0, -0.1993, 3.4870], [-0.4245, 0.2017, 3.4228], [-0.3615, -0.0492, 3.5747], [0.2514, 0.5632, 3.3018]]
    np.testing.assert_allclose(first[4, [0, 3, 4, 7]], expected, atol=2e-4)
    np.testing.assert_allclose(second[0, [3, 6]], [[-0.3464, 0.2958, 2.9588], [0.3237, 0.2814, 2.7086]], atol=2e-4)
    np.testing.assert_allclose(second[8, [4, 7]], [[-0.4374, -0.1768, 2.8597], [0.2126, 0.5652, 2.6703]], atol=2e-4)
