"""Hands in videos: boxes, SSIM inside them, how far gloves are."""

import numpy as np
import pytest

from videogen import data
from videogen.data.clip import Clip
from videogen.metrics import ssim
from videogen.metrics.hands import glove_distance, hand_boxes, hand_ssim

CLIP = Clip(3, 24, 24, 8.0)


@pytest.fixture(scope="module")
def samples():
    source = data.build({"name": "signer", "words": 2}, clip=CLIP, seed=1, split="train")
    return [source[i] for i in range(2)]


@pytest.fixture(scope="module")
def videos(samples):
    return np.stack([sample["video"] for sample in samples])


def points(samples):
    return tuple(np.stack([sample[name] for sample in samples]) for name in ("hands", "hands_mask"))


def test_a_box_is_the_rectangle_around_the_points():
    hands = np.zeros((1, 2, 21, 3), np.float32)
    hands[0, 0, :, :2] = (0.5, 0.25)
    hands[0, 0, 0, :2], hands[0, 1] = (0.7, 0.45), 0.9
    inside = hand_boxes(hands, np.array([[True, False]]), 10, 10)[0]
    wanted = np.zeros((10, 10), bool)
    wanted[5:7, 2:5] = True  # middles of pixels from 0.48 to 0.72, and from 0.23 to 0.47
    np.testing.assert_array_equal(inside, wanted)


def test_equal_videos_have_1_and_hands_that_are_missing_have_no_value(videos, samples):
    hands, known = points(samples)
    assert hand_ssim(videos, videos, hands, known) == pytest.approx(1.0, abs=1e-6)
    assert hand_ssim(videos, videos, hands, np.zeros_like(known)) is None


def test_a_box_of_the_whole_frame_gives_ssim(videos, samples):
    hands, known = points(samples)
    hands = np.zeros_like(hands)
    hands[..., 1, :2] = 1.0
    noisy = np.clip(videos.astype(int) + np.random.default_rng(0).integers(-40, 40, videos.shape), 0, 255)
    noisy = noisy.astype(np.uint8)
    wanted = ssim(noisy.astype(np.float32) / 255, videos.astype(np.float32) / 255)
    assert hand_ssim(noisy, videos, hands, known) == pytest.approx(float(wanted.mean()), abs=1e-5)


def test_only_what_is_inside_the_boxes_counts(videos, samples):
    hands, known = points(samples)
    far = hand_boxes(hands, known, 24, 24)
    grown = np.stack([np.stack([_grown(f) for f in clip]) for clip in far])
    other = np.where(grown[..., None], videos, 255 - videos)
    assert hand_ssim(other, videos, hands, known) == pytest.approx(1.0, abs=1e-5)
    assert hand_ssim(255 - videos, videos, hands, known) < 0.5


def _grown(mask):
    """With all pixels that a window whose middle is in the mask has."""
    out = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        out[max(y - 5, 0) : y + 6, max(x - 5, 0) : x + 6] = True
    return out


def test_gloves_that_move_by_two_pixels_are_that_far(videos):
    found = glove_distance(videos, videos)
    assert found["hand_distance"] == 0.0 and found["hands_seen"] > 0.9
    moved = np.roll(videos, 2, axis=2)
    found = glove_distance(moved[:, :, 2:], videos[:, :, :-2])
    np.testing.assert_allclose(found["hand_distance"], 0.0, atol=0.02)
    shifted = glove_distance(moved, videos)["hand_distance"]
    assert shifted == pytest.approx(2 / 24, abs=0.02)
    grey = np.full_like(videos, 128)
    assert glove_distance(grey, videos) == {"hand_distance": None, "hands_seen": 0.0}
