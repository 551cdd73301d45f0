"""Hands: what stands around MediaPipe's networks, and the networks where their package is at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from videogen.encoders import hands
from videogen.encoders.hands import (
    CROP_SIDE,
    LEFT,
    RIGHT,
    Hands,
    anchors,
    crop,
    decoded,
    region_of,
    suppressed,
    to_frame,
)
from videogen.errors import UserError


def palm(centre=(50.0, 60.0), size=(20.0, 16.0), wrist=(50.0, 70.0), middle=(50.0, 50.0)):
    points = np.zeros((7, 2))
    points[0], points[2] = wrist, middle
    return np.concatenate([centre, size, points.ravel()])


def test_anchors_stand_in_the_middles_of_two_grids():
    found = anchors()
    assert found.shape == (2016, 2)
    np.testing.assert_allclose(found[[0, 1, 2, 48]] * 24, [[0.5, 0.5], [0.5, 0.5], [1.5, 0.5], [0.5, 1.5]], atol=1e-6)
    np.testing.assert_allclose(
        found[[1152, 1157, 1158, -1]] * 12, [[0.5, 0.5], [0.5, 0.5], [1.5, 0.5], [11.5, 11.5]], atol=1e-5
    )


def test_boxes_are_relative_to_their_anchors():
    raw = np.arange(18, dtype=np.float32)[None] * 19.2
    box = decoded(raw.copy(), np.array([[0.25, 0.5]], np.float32))[0]
    np.testing.assert_allclose(box[:4], [0.25, 0.6, 0.2, 0.3], atol=1e-6)
    np.testing.assert_allclose(box[4:].reshape(7, 2), (0.1 * np.arange(4, 18)).reshape(7, 2) + [0.25, 0.5], atol=1e-6)


def test_of_boxes_that_overlap_the_surest_stays():
    boxes = np.zeros((4, 18))
    # The second shares 3/5 of the union with the first, the third 1/3 with the second, the fourth stands alone.
    boxes[:, :4] = [(0, 0, 4, 1), (1, 0, 4, 1), (3, 0, 4, 1), (20, 0, 4, 1)]
    assert suppressed(boxes, np.array([0.9, 0.8, 0.7, 0.95])) == [3, 0, 2]
    assert suppressed(boxes, np.array([0.6, 0.8, 0.7, 0.5])) == [1, 3]
    assert suppressed(boxes[:0], np.zeros(0)) == []


def test_the_region_of_an_upright_palm_is_not_turned_and_lies_towards_the_fingers():
    centre, size, turn = region_of(palm())
    assert turn == pytest.approx(0.0, abs=1e-9) and size == pytest.approx(2.6 * 20)
    np.testing.assert_allclose(centre, [50.0, 60.0 - 0.5 * 16], atol=1e-9)


@pytest.mark.parametrize(
    ("wrist", "middle", "turn", "towards"),
    [
        ((40, 60), (60, 60), np.pi / 2, (8, 0)),
        ((60, 60), (40, 60), -np.pi / 2, (-8, 0)),
        ((50, 50), (50, 70), -np.pi, (0, 8)),
    ],
)
def test_regions_turn_with_the_hand(wrist, middle, turn, towards):
    centre, _, found = region_of(palm(wrist=wrist, middle=middle))
    assert found == pytest.approx(turn)
    np.testing.assert_allclose(centre, np.add((50, 60), towards), atol=1e-9)
    # In the region the middle finger is right above the wrist.
    region = (np.array([50.0, 60.0]), 100.0, found)
    up, down = to_frame(np.array([[0.5, 0.4], [0.5, 0.6]]), region)
    np.testing.assert_allclose(up, np.array(middle, float), atol=1e-9)
    np.testing.assert_allclose(down, np.array(wrist, float), atol=1e-9)


def test_a_crop_shows_the_region_upright_and_black_beyond_the_frame():
    frame = np.zeros((300, 300, 3), np.uint8)
    frame[100:200, 40:60] = 255
    # The white bar lies from the wrist to the fingers; turned to the right in the frame, upright in the crop.
    picture = crop(frame.transpose(1, 0, 2), (np.array([150.0, 50.0]), 112.0, np.pi / 2))
    lit = picture[..., 0] > 0.5
    assert lit[:, 92:132].mean() > 0.85 and not lit[:, :85].any() and not lit[:, 140:].any()
    outside = crop(np.full((10, 10, 3), 255, np.uint8), (np.array([0.0, 5.0]), 10.0, 0.0))
    assert not outside[:, : CROP_SIDE // 2 - 20].any() and outside[112, 200].min() == 1.0


def package(folder: Path, entries, assets=b"0123456789"):
    text = "loadPackage({'files': [" + ", ".join(json.dumps(entry) for entry in entries) + "]})"
    (folder / hands.LOADER).write_text(text)
    (folder / hands.ASSETS).write_bytes(assets)
    return folder


def test_a_packed_file_is_cut_out_where_the_loader_says(tmp_path):
    entries = [
        {"filename": "/a/palm_detection_lite.tflite", "start": 0, "end": 3},
        {"filename": "/a/palm_detection_full.tflite", "start": 3, "end": 8},
    ]
    assert hands._packed(package(tmp_path, entries), hands.PALMS) == b"34567"


@pytest.mark.parametrize(("start", "end"), [(3, 11), (-1, 4), (5, 5), (8, 3), ("a", 4)])
def test_places_beyond_the_file_are_refused(tmp_path, start, end):
    folder = package(tmp_path, [{"filename": "/a/palm_detection_full.tflite", "start": start, "end": end}])
    with pytest.raises(UserError, match="does not say where palm_detection_full.tflite lies"):
        hands._packed(folder, hands.PALMS)


def test_missing_and_damaged_packages_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="name the folder of the unpacked npm package @mediapipe/hands"):
        Hands(tmp_path)
    entry = {"filename": "/a/palm_detection_full.tflite", "start": 0, "end": 10}
    monkeypatch.setattr(hands.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'videogen\[prepare\]'"):
        Hands(package(tmp_path, [entry]))
    monkeypatch.setattr(hands.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(hands.importlib, "import_module", lambda name: None)
    with pytest.raises(UserError, match="palm detector is no TensorFlow Lite model"):
        Hands(package(tmp_path, [entry]))


class Stub(Hands):
    """Hands whose networks say what they are told."""

    def __init__(self, palms, found):
        self._found, self._palms_of = iter(found), palms

    def palms(self, frame):
        return np.stack([palm()] * self._palms_of)

    def landmarks(self, frame, region):
        return next(self._found)


def test_of_several_hands_of_a_side_the_surest_counts_and_unsure_ones_are_not_there():
    def hand(value, presence, side):
        return np.full((21, 3), value), presence, side

    found = [hand(1.0, 0.6, LEFT), hand(2.0, 0.9, LEFT), hand(3.0, 0.8, LEFT), hand(4.0, 0.49, RIGHT)]
    points, mask = Stub(4, found)(np.zeros((1, 8, 8, 3), np.uint8))
    assert mask.tolist() == [[True, False]] and (points[0, LEFT] == 2.0).all() and not points[0, RIGHT].any()


@pytest.fixture(scope="module")
def real():
    pytest.importorskip("ai_edge_litert")
    folder = os.environ.get("VIDEOGEN_HANDS")
    if not folder:
        pytest.skip("VIDEOGEN_HANDS names no unpacked npm package @mediapipe/hands")
    return Hands(folder)


def test_the_real_networks_see_no_hand_in_a_plain_picture(real):
    _, mask = real(np.full((2, 64, 96, 3), 128, np.uint8))
    assert mask.shape == (2, 2) and not mask.any()
