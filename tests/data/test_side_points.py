"""Points beside the videos of a folder, and the maps of them."""

import numpy as np
import pytest

from videogen import data
from videogen.data.clip import Clip
from videogen.data.pose_maps import hands_map, pose_map
from videogen.data.signer import HAND_POINTS, JOINTS
from videogen.data.source import SampleError
from videogen.errors import UserError

FRAMES, HEIGHT, WIDTH = 20, 64, 96


def write(path, **changed):
    """Points of 20 frames: joint j of frame i is at x = 48 + i, y = 2·j; the right hand moves with it."""
    frame, joint = np.meshgrid(np.arange(FRAMES), np.arange(len(JOINTS)), indexing="ij")
    hands = np.zeros((FRAMES, 2, HAND_POINTS, 3))
    hands[:, 1, :, 0], hands[:, 1, :, 1] = 48 + np.arange(FRAMES)[:, None], 32
    hands[:, 1, 3:, 2] = 9.6
    arrays = {"points": np.stack([48.0 + frame, 2.0 * joint], axis=-1), "mask": np.ones((FRAMES, len(JOINTS)), bool)}
    arrays |= {"names": np.array(JOINTS), "size": np.array([HEIGHT, WIDTH]), "hands": hands}
    arrays |= {"hands_mask": np.tile([False, True], (FRAMES, 1))}
    arrays = {key: value for key, value in (arrays | changed).items() if value is not None}
    np.savez(path, **arrays)


def build(path, clip, split="train", **settings):
    settings = {"name": "video_folder", "path": str(path), "holdout": 0.0, **settings}
    return data.build(settings, clip=clip, seed=0, split=split)


@pytest.mark.parametrize(("fps", "step"), [(None, 1), (5.0, 2)])
def test_points_are_those_of_the_frames_that_are_shown(make_video, numbers, tmp_path, fps, step):
    """64 × 96 pixels become 32 × 48 and then, cropped, 32 × 32: x = 48 + i is at (24 + i/2 - 8) / 32."""
    make_video("a.mp4", frames=FRAMES, size=(HEIGHT, WIDTH))
    write(tmp_path / "a.pose.npz")
    source = build(tmp_path, Clip(4, 32, 32, fps))
    starts = set()
    for draw in range(6):
        sample = source.sample(0, np.random.default_rng(draw))
        shown = np.array(numbers(sample["video"]))
        starts.add(shown[0])
        np.testing.assert_array_equal(np.diff(shown), step)
        np.testing.assert_allclose(sample["pose"][:, 3, 1], (16 + shown / 2) / 32, atol=1e-6)
        np.testing.assert_allclose(sample["pose"][:, 3, 0], 3 / 32, atol=1e-6)
        np.testing.assert_allclose(sample["hands"][:, 1, 0, :2], np.stack([0 * shown + 0.5, (16 + shown / 2) / 32], -1))
        np.testing.assert_allclose(sample["hands"][:, 1, 5, 2], 9.6 / 2 / 32, atol=1e-6)
        np.testing.assert_array_equal(sample["hands_mask"], [[False, True]] * 4)
        np.testing.assert_array_equal(sample["hands"][:, 0], 0)
    assert len(starts) > 1
    assert {name: (a.shape, a.dtype) for name, a in sample.items() if name in source.fields} == source.fields


def test_joints_that_are_missing_are_not_known(make_video, tmp_path):
    make_video("a.mp4")
    names = np.array(["other", *JOINTS[:0:-1]])  # without the head, in another order
    write(tmp_path / "a.pose.npz", names=names, hands=None)
    sample = build(tmp_path, Clip(4, 32, 32))[0]
    np.testing.assert_array_equal(sample["pose_mask"], [[False] + [True] * 7] * 4)
    np.testing.assert_array_equal(sample["pose"][:, 0], 0)
    np.testing.assert_allclose(sample["pose"][:, 1, 0], 7 / 32, atol=1e-6)
    assert not sample["hands_mask"].any()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (None, "there is no a.pose.npz"),
        ({"mask": None}, "mask must be"),
        ({"points": np.zeros((20, 8))}, "points must be"),
        ({"names": np.array(["neck"] * 8)}, "a joint named twice"),
        ({"points": np.full((20, 8, 2), np.nan)}, "are no numbers"),
        ({"mask": np.ones((20, 8))}, "mask has the type float64"),
        ({"points": np.zeros((3, 8, 2)), "mask": np.ones((3, 8), bool), "hands": None}, "has 3 frames"),
        (b"no archive", "cannot be read"),
    ],
)
def test_a_missing_or_malformed_file_is_a_skipped_sample_with_its_reason(make_video, tmp_path, changed, reason):
    make_video("a.mp4")
    make_video("b.mp4")
    write(tmp_path / "b.pose.npz")
    if isinstance(changed, bytes):
        (tmp_path / "a.pose.npz").write_bytes(changed)
    elif changed is not None:
        write(tmp_path / "a.pose.npz", **changed)
    source = build(tmp_path, Clip(4, 32, 32), split="eval")
    with pytest.raises(SampleError, match=reason):
        source[0]
    assert source[1]["pose"].shape == (4, 8, 2)


def test_without_any_points_nothing_changes(make_video, tmp_path):
    make_video("a.mp4")
    source = build(tmp_path, Clip(4, 32, 32))
    assert set(source.fields) == {"video"} and "pose" not in source[0]
    with pytest.raises(UserError, match="no points to draw"):
        build(tmp_path, Clip(4, 32, 32), maps=True)


def test_maps_are_drawn_of_the_points_and_hidden_ones_draw_nothing():
    clip = Clip(3, 24, 24, 8.0)
    source = data.build({"name": "signer", "maps": True}, clip=clip, seed=1, split="train")
    sample, plain = source[4], data.build({"name": "signer"}, clip=clip, seed=1, split="train")[4]
    np.testing.assert_array_equal(sample["video"], plain["video"])
    assert source.fields["maps"] == ((3, 24, 24, 6), np.uint8) and sample["maps"].shape == (3, 24, 24, 6)
    np.testing.assert_array_equal(sample["maps"][..., :3], pose_map(plain["pose"], plain["pose_mask"], 24, 24))
    np.testing.assert_array_equal(sample["maps"][..., 3:], hands_map(plain["hands"], plain["hands_mask"], 24, 24))
    assert sample["maps"][..., :3].any() and sample["maps"][..., 3:].any()
    assert source.caption(4) == plain["caption"] and source.classes and len(source) == 1_000_000
