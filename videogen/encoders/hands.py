"""Hands in videos: the palm detector and the hand landmarks of MediaPipe (npm ``@mediapipe/hands``, Apache-2.0).

The networks are read from the folder of the unpacked package, as they are, and run by ``ai-edge-litert``. What stands
around them (anchors, turned crops, thresholds) follows the package's own graph; see Zhang et al., "MediaPipe Hands"
(arXiv 2006.10214). A hand of 21 points: the wrist, then four points of each finger from the palm to its tip.
"""

import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from videogen.errors import UserError

LANDMARKS = "hand_landmark_full.tflite"
ASSETS, LOADER = "hands_solution_packed_assets.data", "hands_solution_packed_assets_loader.js"
PALMS = "palm_detection_full.tflite"
"""The detector, a part of ``ASSETS``; ``LOADER`` says where it begins and ends."""

DETECTOR_SIDE, CROP_SIDE = 192, 224
LEAST_SCORE, LEAST_PRESENCE, MOST_OVERLAP = 0.5, 0.5, 0.3
"""A palm counts from this score, a hand from this presence; of palms that overlap more, the surer one counts."""

GROWTH, SHIFT = 2.6, -0.5
"""The crop of a hand is so many palms wide, and its middle is moved by so much of one towards the fingers."""

DEPTH_SCALE = 0.4
"""What the depths of the network are divided by, to be in the unit of x."""

LEFT, RIGHT = 0, 1
POINTS = 21
WRIST, MIDDLE = 0, 2
"""The key points of a palm that tell how the hand is turned."""


def anchors() -> Float[np.ndarray, "anchors 2"]:
    """The centres (x, y) in [0, 1] that the detector's boxes are relative to: two at every place of a grid of 24 × 24,
    six at every place of one of 12 × 12."""
    grids = []
    for side, each in ((24, 2), (12, 6)):
        y, x = np.mgrid[:side, :side]
        centres = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) / side
        grids.append(np.repeat(centres, each, axis=0))
    return np.concatenate(grids).astype(np.float32)


class Hands:
    """Finds hands in frames; ``hands(frames) -> points, mask``.

    Args:
      folder: of the unpacked package.

    Raises:
      UserError: ai-edge-litert is not installed, or a file of the package is missing or damaged.
    """

    def __init__(self, folder: Path | str):
        folder = Path(folder)
        self._palms = _network(_packed(folder, PALMS), "palm detector")
        self._landmarks = _network(_read(folder / LANDMARKS), "hand landmarks")

    def __call__(
        self, frames: UInt8[np.ndarray, "frames height width 3"]
    ) -> tuple[Float[np.ndarray, "frames 2 21 3"], Bool[np.ndarray, "frames 2"]]:
        """The points of the left and the right hand of every frame, and which are there.

        Points are (x, y) in pixels and a depth in the same unit relative to the wrist, smaller is nearer; left and
        right are the person's own. Of several hands of a side the surest counts. Points of a hand that is not there
        are 0 and mean nothing.
        """
        points, known = np.zeros((len(frames), 2, POINTS, 3), np.float32), np.zeros((len(frames), 2), bool)
        for number, frame in enumerate(frames):
            best = [LEAST_PRESENCE, LEAST_PRESENCE]
            for palm in self.palms(frame):
                found, presence, side = self.landmarks(frame, region_of(palm))
                if presence > best[side]:
                    best[side] = presence
                    points[number, side], known[number, side] = found, True
        return points, known

    def palms(self, frame: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "palms 18"]:
        """Centre, size and seven key points (x, y) of every palm, in pixels, the surest first."""
        height, width = frame.shape[:2]
        scale = DETECTOR_SIDE / max(height, width)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        left, top = ((DETECTOR_SIDE - side) // 2 for side in size)
        padded = np.zeros((DETECTOR_SIDE, DETECTOR_SIDE, 3), np.float32)
        resized = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
        padded[top : top + size[1], left : left + size[0]] = np.asarray(resized, np.float32) / 255.0
        raw, logits = self._palms(padded[None])
        scores = 1.0 / (1.0 + np.exp(-np.clip(logits[0, :, 0], -100, 100)))
        sure = np.flatnonzero(scores > LEAST_SCORE)
        boxes = decoded(raw[0, sure], anchors()[sure])
        kept = boxes[suppressed(boxes, scores[sure])] * DETECTOR_SIDE
        kept[:, [0, *range(4, 18, 2)]] -= left
        kept[:, [1, *range(5, 18, 2)]] -= top
        return kept / scale

    def landmarks(
        self, frame: UInt8[np.ndarray, "height width 3"], region: tuple[Float[np.ndarray, "2"], float, float]
    ) -> tuple[Float[np.ndarray, "21 3"], float, int]:
        """The points of the hand in a region, how sure it is that there is one, and its side."""
        found, presence, side, _ = self._landmarks(crop(frame, region)[None])
        points = found.reshape(POINTS, 3).astype(np.float64)
        _, size, _ = region
        depth = points[:, 2] * size / (CROP_SIDE * DEPTH_SCALE)
        whole = to_frame(points[:, :2] / CROP_SIDE, region)
        # The networks were trained on mirrored pictures: what they call left is the person's right.
        of = RIGHT if float(side[0, 0]) > 0.5 else LEFT
        return np.concatenate([whole, (depth - depth[0])[:, None]], axis=1), float(presence[0, 0]), of


def decoded(raw: Float[np.ndarray, "boxes 18"], centres: Float[np.ndarray, "boxes 2"]) -> Float[np.ndarray, "boxes 18"]:
    """Boxes of the detector in units of its side: centre, size, key points."""
    boxes = raw / DETECTOR_SIDE
    boxes[:, :2] += centres
    boxes[:, 4:] += np.tile(centres, (1, 7))
    return boxes


def suppressed(boxes: Float[np.ndarray, "boxes 18"], scores: Float[np.ndarray, "boxes"]) -> list[int]:
    """The places of the boxes that overlap no surer one by more than ``MOST_OVERLAP``, the surest first."""
    kept: list[int] = []
    low, high = boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2
    area = np.prod(boxes[:, 2:4], axis=1)
    for i in np.argsort(-scores, kind="stable"):
        sides = [np.clip(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0, None) for j in kept]
        shared = [float(np.prod(side)) for side in sides]
        if all(s <= MOST_OVERLAP * (area[i] + area[j] - s) for s, j in zip(shared, kept, strict=True)):
            kept.append(int(i))
    return kept


def region_of(palm: Float[np.ndarray, "18"]) -> tuple[Float[np.ndarray, "2"], float, float]:
    """Centre (x, y), side and turn in radians of the square that holds the hand of a palm, in pixels.

    The turn brings the line from the wrist to the middle finger upright.
    """
    wrist, middle = (palm[4 + 2 * k : 6 + 2 * k] for k in (WRIST, MIDDLE))
    turn = np.pi / 2 - np.arctan2(-(middle[1] - wrist[1]), middle[0] - wrist[0])
    turn = float((turn + np.pi) % (2 * np.pi) - np.pi)
    moved = SHIFT * palm[3] * np.array([-np.sin(turn), np.cos(turn)])
    return palm[:2] + moved, float(GROWTH * max(palm[2], palm[3])), turn


def to_frame(
    places: Float[np.ndarray, "points 2"], region: tuple[Float[np.ndarray, "2"], float, float]
) -> Float[np.ndarray, "points 2"]:
    """Places in a region, from 0 to 1, as pixels of the frame."""
    centre, size, turn = region
    cos, sin = np.cos(turn), np.sin(turn)
    return centre + size * (places - 0.5) @ np.array([[cos, sin], [-sin, cos]])


def crop(
    frame: UInt8[np.ndarray, "height width 3"], region: tuple[Float[np.ndarray, "2"], float, float]
) -> Float[np.ndarray, "224 224 3"]:
    """The turned square of a frame in [0, 1]; black beyond its edges."""
    corners = to_frame(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), region)
    across, down = (corners[1] - corners[0]) / CROP_SIDE, (corners[2] - corners[0]) / CROP_SIDE
    affine = (across[0], down[0], corners[0, 0], across[1], down[1], corners[0, 1])
    picture = Image.fromarray(frame).transform(
        (CROP_SIDE, CROP_SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    return np.asarray(picture, np.float32) / 255.0


def _packed(folder: Path, name: str) -> bytes:
    """A file of the package's assets, from where the loader says that it lies."""
    loader, assets = _read(folder / LOADER).decode(errors="replace"), _read(folder / ASSETS)
    for entry in re.findall(r'\{\s*"filename"[^{}]*\}', loader):
        try:
            place = json.loads(entry)
            start, end = int(place["start"]), int(place["end"])
        except (ValueError, KeyError, TypeError):
            continue
        if str(place["filename"]).endswith("/" + name) and 0 <= start < end <= len(assets):
            return assets[start:end]
    raise UserError(
        f"{folder / LOADER} does not say where {name} lies in {ASSETS}; unpack @mediapipe/hands there again"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); name the folder of the unpacked npm package @mediapipe/hands"
        ) from error


def _network(content: bytes, what: str) -> Any:
    """A function of the network's inputs that gives its outputs in the order of the file."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise UserError("finding hands needs ai-edge-litert; install it with: pip install 'videogen[prepare]'")
    runtime = importlib.import_module("ai_edge_litert.interpreter")
    if content[4:8] != b"TFL3":
        raise UserError(f"the file of the {what} is no TensorFlow Lite model; unpack @mediapipe/hands again")
    try:
        interpreter = runtime.Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the file of the {what} is damaged ({error}); unpack @mediapipe/hands again") from error
    taken, given = interpreter.get_input_details(), interpreter.get_output_details()
    given = sorted(given, key=lambda detail: detail["name"])

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        for detail, array in zip(taken, arrays, strict=True):
            interpreter.set_tensor(detail["index"], np.ascontiguousarray(array, np.float32))
        interpreter.invoke()
        return [interpreter.get_tensor(detail["index"]) for detail in given]

    return run
