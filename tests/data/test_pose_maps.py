"""Pictures of points: skeletons and hands."""

import numpy as np
import pytest

from videogen.data.pose_maps import FARTHEST, NEAREST, capsule, hands_map, hue, pose_map
from videogen.data.signer import JOINTS, LEFT, RIGHT, hand_points, sign


def figure():
    return sign(("come", "go"), np.linspace(0, 1, 6))


def test_a_capsule_covers_what_is_within_its_radius():
    a, b = np.array([[0.5, 0.25]]), np.array([[0.5, 0.75]])
    cover = capsule(a, b, 0.1, 40, 40)[0]
    y, x = np.mgrid[:40, :40] + 0.5
    along = np.clip(x, 10, 30)
    distance = np.hypot(y - 20, x - along)
    np.testing.assert_allclose(cover, np.clip(4.5 - distance, 0, 1), atol=1e-5)
    # A point is a disc, and sides count by themselves.
    disc = capsule(a[:, ::1], a, 0.1, 40, 80)[0]
    assert disc.sum() == pytest.approx(np.pi * 16, rel=0.03)
    assert np.average(np.arange(80) + 0.5, weights=disc.sum(0)) == pytest.approx(20.0, abs=1e-3)


def test_hues_are_full_colours_of_a_circle():
    np.testing.assert_allclose([hue(0.0), hue(1 / 3), hue(2 / 3)], 255 * np.eye(3), atol=1e-3)


def test_points_that_are_not_known_draw_nothing_whatever_they_say():
    found = figure()
    mask = found.pose_mask.copy()
    wrist = JOINTS.index("left_wrist")
    mask[2, wrist] = False
    wild = found.pose.copy()
    wild[2, wrist] = 1e9
    drawn = pose_map(wild, mask, 32, 32)
    whole = pose_map(found.pose, found.pose_mask, 32, 32)
    np.testing.assert_array_equal(drawn[[0, 1, 3, 4, 5]], whole[[0, 1, 3, 4, 5]])
    # The forearm is missing and all else is there.
    assert 0 < (drawn[2].max(-1) > 0).sum() < (whole[2].max(-1) > 0).sum()
    wild[2, wrist] = np.nan
    np.testing.assert_array_equal(pose_map(wild, mask, 32, 32), drawn)
    assert not pose_map(found.pose, np.zeros_like(mask), 32, 32).any()


def test_a_masked_hand_draws_no_pixel():
    found = figure()
    for hand, channel in ((LEFT, 0), (RIGHT, 1)):
        mask = np.zeros_like(found.hands_mask)
        mask[:, hand] = True
        hands = found.hands.copy()
        hands[:, 1 - hand] = -1.0
        drawn = hands_map(hands, mask, 32, 32)
        assert drawn[..., channel].any() and not drawn[..., 1 - channel].any()
    assert not hands_map(found.hands, np.zeros_like(mask), 32, 32).any()


def test_nearer_bones_are_lighter_and_cover_farther_ones():
    hand = hand_points(np.array([0.5, 0.5]), np.array([0.0, 1.0]), "open", LEFT)
    front, behind = hand.copy(), hand.copy()
    front[:, 2], behind[:, 2] = -0.12, 0.12
    both = np.ones((1, 2), bool)
    drawn = hands_map(np.stack([front, behind])[None], both, 48, 48)[0]
    exchanged = hands_map(np.stack([behind, front])[None], both, 48, 48)[0]
    # Both hands are at one place: the front one alone is seen, in its own colour.
    for picture, own, other in ((drawn, 0, 1), (exchanged, 1, 0)):
        assert picture[..., own].max() == NEAREST and not picture[picture[..., own] == NEAREST][:, other].any()
    alone = hands_map(np.stack([behind, behind])[None], np.array([[True, False]]), 48, 48)[0]
    assert alone[..., 0].max() == FARTHEST


def test_crossing_hands_differ_when_their_depths_are_exchanged():
    found = sign(("cover",), np.array([0.8]))
    exchanged = found.hands.copy()
    exchanged[..., 2] = exchanged[:, ::-1, :, 2]
    maps = [hands_map(hands, found.hands_mask, 48, 48).astype(int) for hands in (found.hands, exchanged)]
    assert np.abs(maps[0] - maps[1]).max() > 100
    # A skeleton in the plane cannot tell.
    np.testing.assert_array_equal(found.hands[..., :2], exchanged[..., :2])
