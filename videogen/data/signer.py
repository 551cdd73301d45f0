"""A figure that signs: words as movements of two arms and hands, in points and in pixels.

Positions are (y, x) in units of the frame's sides, from 0 to 1; depths z are in the same unit, smaller is nearer to the
viewer. Left and right are the signer's own: the right hand is on the left of the picture. All is a function of
progress in [0, 1] through a sentence, so one sentence fits every number of frames.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

Point = tuple[float, float]

JOINTS = ("head", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist")
"""The points of the body, in their order."""

BONES = ((0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7))
"""Pairs of joints with a bone between them."""

RIGHT_SIDE = (2, 3, 4)
"""Shoulder, elbow and wrist of the right arm among the joints; those of the left one are three further."""

LEFT, RIGHT = 0, 1
"""The places of the hands on their axis."""

FINGERS = 5
HAND_POINTS = 1 + 4 * FINGERS
"""The wrist, and four points of every finger from the palm to its tip: thumb, index, middle, ring, little finger."""

HAND_BONES = tuple((0 if j == 0 else 4 * i + j, 4 * i + j + 1) for i in range(FINGERS) for j in range(4))
"""Pairs of points of a hand with a bone between them."""

HEAD, NECK, SHOULDERS = (0.2, 0.5), (0.36, 0.5), {RIGHT: (0.4, 0.35), LEFT: (0.4, 0.65)}
UPPER_ARM, FOREARM, HAND = 0.24, 0.24, 0.11
"""Lengths of the bones of an arm, and of a stretched hand."""

SHAPES = {
    "open": (1.0, 1.0, 1.0, 1.0, 1.0),
    "fist": (0.3, 0.0, 0.0, 0.0, 0.0),
    "point": (0.3, 1.0, 0.0, 0.0, 0.0),
}
"""Shape of a hand -> how far each finger is stretched."""

SPREAD = np.deg2rad((-50.0, -18.0, 0.0, 15.0, 30.0))
"""The angles of the fingers from the line of the forearm."""

TILT = 0.4
"""How far the front one of two hands leans towards the viewer, and the other one away."""

MOVED = 0.3
"""Share of a word in which the hands come to where it begins."""


@dataclasses.dataclass(frozen=True)
class Gesture:
    """A word.

    Attributes:
      right: the points through which the right wrist moves evenly; empty: it rests.
      left: the same of the left wrist.
      shape: of the hands that move, a name in ``SHAPES``.
      nearer: the hand that is in front of the other.
    """

    right: tuple[Point, ...] = ()
    left: tuple[Point, ...] = ()
    shape: str = "open"
    nearer: int = RIGHT


def _mirrored(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple((y, 1.0 - x) for y, x in points)


def _both(*points: Point, shape: str = "open", nearer: int = RIGHT) -> Gesture:
    return Gesture(points, _mirrored(points), shape, nearer)


GESTURES = {
    "hello": Gesture(right=((0.22, 0.12), (0.22, 0.3), (0.22, 0.12))),
    "rise": Gesture(right=((0.75, 0.2), (0.15, 0.2)), shape="fist"),
    "fall": Gesture(right=((0.15, 0.2), (0.75, 0.2))),
    "there": Gesture(left=((0.7, 0.7), (0.2, 0.9)), shape="point"),
    "drink": Gesture(left=((0.7, 0.75), (0.28, 0.56)), shape="fist"),
    "turn": Gesture(right=((0.45, 0.15), (0.6, 0.3), (0.45, 0.42), (0.3, 0.3), (0.45, 0.15)), shape="point"),
    "come": _both((0.5, 0.1), (0.55, 0.42)),
    "go": _both((0.55, 0.42), (0.5, 0.1)),
    "house": _both((0.12, 0.46), (0.5, 0.14)),
    "big": _both((0.75, 0.4), (0.15, 0.15), shape="fist"),
    "cover": _both((0.6, 0.2), (0.6, 0.62)),
    "hide": _both((0.6, 0.2), (0.6, 0.62), nearer=LEFT),
}
"""Word -> gesture. ``cover`` and ``hide`` differ in nothing but which hand is in front where they cross."""

REST = {RIGHT: (0.82, 0.28), LEFT: (0.82, 0.72)}
"""Where a wrist is that does not move."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """The points of a signer in every frame.

    Attributes:
      pose: (y, x) of ``JOINTS``.
      pose_mask: which of them are known.
      hands: (y, x, z) of the left and the right hand; z is the depth relative to the wrist.
      hands_mask: which hands are known.
      nearer: the hand that is in front.
    """

    pose: Float[np.ndarray, "frames joints 2"]
    pose_mask: Bool[np.ndarray, "frames joints"]
    hands: Float[np.ndarray, "frames 2 points 3"]
    hands_mask: Bool[np.ndarray, "frames 2"]
    nearer: np.ndarray


def sign(words: Sequence[str], progress: Float[np.ndarray, "frames"]) -> Figure:
    """The figure at each progress through a sentence, whose words have equal shares of it."""
    at = np.clip(np.asarray(progress, np.float64) * len(words), 0, len(words) - 1e-9)
    number, within = at.astype(int), at - at.astype(int)
    wrists = np.empty((len(at), 2, 2))
    shapes, nearer = np.empty((len(at), 2), object), np.empty(len(at), int)
    for frame, (word, share) in enumerate(zip(number, within, strict=True)):
        gesture = GESTURES[words[word]]
        before = GESTURES[words[word - 1]] if word else Gesture()
        nearer[frame] = gesture.nearer
        for hand in (LEFT, RIGHT):
            track, last = _track(gesture, hand), _track(before, hand)[-1]
            moving = share < MOVED
            points = (last, track[0]) if moving else track
            done = share / MOVED if moving else (share - MOVED) / (1 - MOVED)
            wrists[frame, hand] = _along(points, done)
            shapes[frame, hand] = gesture.shape if _moves(gesture, hand) else "open"
    pose, hands = np.empty((len(at), len(JOINTS), 2)), np.empty((len(at), 2, HAND_POINTS, 3))
    pose[:, 0], pose[:, 1] = HEAD, NECK
    for hand in (LEFT, RIGHT):
        first = RIGHT_SIDE[0] + (0 if hand == RIGHT else 3)
        for frame in range(len(at)):
            elbow, wrist = reach(SHOULDERS[hand], wrists[frame, hand], outwards=1.0 if hand == LEFT else -1.0)
            pose[frame, first : first + 3] = SHOULDERS[hand], elbow, wrist
            gesture = GESTURES[words[number[frame]]]
            both = gesture.left and gesture.right
            tilt = 0.0 if not both else -TILT if hand == gesture.nearer else TILT
            hands[frame, hand] = hand_points(wrist, wrist - elbow, shapes[frame, hand], hand, tilt)
    known = np.ones(pose.shape[:2], bool), np.ones(hands.shape[:2], bool)
    return Figure(pose.astype(np.float32), known[0], hands.astype(np.float32), known[1], nearer)


def _moves(gesture: Gesture, hand: int) -> bool:
    return bool(gesture.right if hand == RIGHT else gesture.left)


def _track(gesture: Gesture, hand: int) -> tuple[Point, ...]:
    return (gesture.right if hand == RIGHT else gesture.left) or (REST[hand],)


def _along(points: Sequence[Point], done: float) -> Float[np.ndarray, "2"]:
    """Where one is after a share of the way through points, whose legs take equal times."""
    if len(points) == 1:
        return np.asarray(points[0], np.float64)
    leg = min(int(done * (len(points) - 1)), len(points) - 2)
    share = done * (len(points) - 1) - leg
    a, b = (np.asarray(points[i], np.float64) for i in (leg, leg + 1))
    return a + share * (b - a)


def reach(
    shoulder: Point, wrist: Float[np.ndarray, "2"], outwards: float
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Elbow and wrist of an arm whose hand is wanted somewhere; beyond its reach the stretched arm points there.

    Args:
      shoulder: its place.
      wrist: where the hand is wanted.
      outwards: the side the elbow bends to, as a sign of x.
    """
    shoulder = np.asarray(shoulder, np.float64)
    line = np.asarray(wrist, np.float64) - shoulder
    length = np.linalg.norm(line)
    near, far = 1e-3, UPPER_ARM + FOREARM - 1e-6
    line = line * (np.clip(length, near, far) / max(length, near))
    length = np.linalg.norm(line)
    along = (UPPER_ARM**2 - FOREARM**2 + length**2) / (2 * length)
    across = np.sqrt(max(UPPER_ARM**2 - along**2, 0.0))
    unit = line / length
    normal = np.array([-unit[1], unit[0]])
    normal *= np.sign(normal[1]) * outwards or 1.0
    return shoulder + along * unit + across * normal, shoulder + line


def hand_points(
    wrist: Float[np.ndarray, "2"], direction: Float[np.ndarray, "2"], shape: str, hand: int, tilt: float = 0.0
) -> Float[np.ndarray, "points 3"]:
    """The points of a hand at a wrist that goes on in a direction; bent fingers come towards the viewer.

    Args:
      wrist: its place.
      direction: of the forearm.
      shape: a name in ``SHAPES``.
      hand: ``LEFT`` or ``RIGHT``.
      tilt: depth of a point for its distance from the wrist, below 0 for a hand that leans towards the viewer.
    """
    angle = np.arctan2(*direction)  # y over x
    points = np.zeros((HAND_POINTS, 3))
    points[:, :2] = wrist
    for finger, stretched in enumerate(SHAPES[shape]):
        # The thumb of the right hand is towards the middle of the body, as is that of the left.
        turn = angle + SPREAD[finger] * (1.0 if hand == LEFT else -1.0)
        along = np.array([np.sin(turn), np.cos(turn)])
        reached, depth = np.array([0.35, 0.6, 0.8, 1.0]) * HAND, np.zeros(4)
        if stretched < 1:
            bent = np.array([0.35, 0.5, 0.4, 0.3]) * HAND
            reached = stretched * reached + (1 - stretched) * bent
            depth = -(1 - stretched) * np.array([0.0, 0.2, 0.35, 0.25]) * HAND
        points[1 + 4 * finger : 5 + 4 * finger, :2] = wrist + reached[:, None] * along
        points[1 + 4 * finger : 5 + 4 * finger, 2] = depth + tilt * reached
    return points
