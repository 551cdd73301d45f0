"""Sequences of a figure's joints in space and in the picture of a camera: data for lifting poses from 2-D to 3-D.

Lengths are in metres. The axes of a camera are x to the right, y down and z away from it.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from videogen.data.clip import Clip
from videogen.data.shapes_source import FPS
from videogen.data.signer import FOREARM, GESTURES, JOINTS, LEFT, NECK, RIGHT, RIGHT_SIDE, UPPER_ARM, sign
from videogen.data.signer_source import progress, split_of
from videogen.data.source import Source
from videogen.errors import UserError

METRES = 1.25
"""Height of the signer's frame: an upper arm of 0.24 of it has 30 cm."""

ROOT = JOINTS.index("neck")
"""The joint that the others are told from."""

FOCAL = 2.5
"""Focal length in halves of the picture's side."""

DISTANCES, YAWS, PITCHES = (2.5, 4.0), (-60.0, 60.0), (-20.0, 20.0)
"""Ranges of a camera's distance in metres and of its angles in degrees."""

FORWARD, SWIVEL, SWAY = 0.3, 60.0, 25.0
"""The most that a hand moves towards the viewer in metres, and that an elbow and the body turn in degrees."""


WORD = 1.5
"""Seconds of a word."""


def bent(
    shoulder: Float[np.ndarray, "frames 3"],
    wrist: Float[np.ndarray, "frames 3"],
    outwards: float,
    swivel: Float[np.ndarray, "frames"],
) -> tuple[Float[np.ndarray, "frames 3"], Float[np.ndarray, "frames 3"]]:
    """Elbow and wrist of an arm whose hand is wanted somewhere; beyond its reach the stretched arm points there.

    Args:
      shoulder: its place.
      wrist: where the hand is wanted.
      outwards: the side that the elbow bends to, as a sign of x.
      swivel: angle by which the elbow is turned about the line from shoulder to wrist, in radians.
    """
    upper, lower = UPPER_ARM * METRES, FOREARM * METRES
    line = wrist - shoulder
    length = np.maximum(np.linalg.norm(line, axis=-1, keepdims=True), 1e-6)
    unit = line / length
    length = np.clip(length, 1e-3, upper + lower - 1e-6)
    along = (upper**2 - lower**2 + length**2) / (2 * length)
    across = np.sqrt(np.maximum(upper**2 - along**2, 0.0))
    side = np.array([outwards, 0.0, 0.0]) - outwards * unit[:, :1] * unit
    side /= np.maximum(np.linalg.norm(side, axis=-1, keepdims=True), 1e-6)
    turned = np.cos(swivel)[:, None] * side + np.sin(swivel)[:, None] * np.cross(unit, side)
    return shoulder + along * unit + across * turned, shoulder + length * unit


def figure(
    words: tuple[str, ...], at: Float[np.ndarray, "frames"], rng: np.random.Generator
) -> Float[np.ndarray, "frames joints 3"]:
    """The joints of a signer at each progress through a sentence, from its neck, in metres.

    The gestures say where hands are in the plane of the body. How far they come forwards, how elbows turn and how the
    body sways is drawn once for a sequence; all of it moves evenly.
    """
    flat = sign(words, at).pose
    joints = np.zeros((*flat.shape[:2], 3))
    joints[..., :2] = (flat[..., ::-1] - np.array(NECK)[::-1]) * METRES
    for hand, sign_of_x in ((RIGHT, -1.0), (LEFT, 1.0)):
        first = RIGHT_SIDE[0] + (0 if hand == RIGHT else 3)
        reach, rounds, phase, turn, drift = rng.uniform((0, 1, 0, -1, -1), (1, 3, 2 * np.pi, 1, 1))
        wrist = joints[:, first + 2].copy()
        wrist[:, 2] = -FORWARD * reach * (0.5 - 0.5 * np.cos(2 * np.pi * rounds * at + phase))
        swivel = np.deg2rad(SWIVEL) * (0.7 * turn + 0.3 * drift * np.sin(2 * np.pi * at + phase))
        joints[:, first + 1], joints[:, first + 2] = bent(joints[:, first], wrist, sign_of_x, swivel)
    wide, phase = rng.uniform((0, 0), (1, 2 * np.pi))
    return joints @ turned_about_y(np.deg2rad(SWAY) * wide * np.sin(2 * np.pi * at + phase)).swapaxes(-1, -2)


def turned_about_y(angle: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any 3 3"]:
    """Rotations about the axis that points down."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    rows = [[c, zero, s], [zero, one, zero], [-s, zero, c]]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def seen_by(
    joints: Float[np.ndarray, "frames joints 3"], rng: np.random.Generator
) -> Float[np.ndarray, "frames joints 3"]:
    """The joints in the axes of a camera that is drawn once for a sequence and looks at the neck."""
    low, high = zip(DISTANCES, np.deg2rad(YAWS), np.deg2rad(PITCHES), strict=True)
    distance, yaw, pitch = rng.uniform(low, high)
    c, s = np.cos(pitch), np.sin(pitch)
    tilt = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return joints @ (tilt @ turned_about_y(yaw)).T + np.array([0.0, 0.0, distance])


def projected(joints: Float[np.ndarray, "*any 3"]) -> Float[np.ndarray, "*any 2"]:
    """(x, y) in the picture, in halves of its side from the middle: ``FOCAL · (x, y) / z``."""
    return FOCAL * joints[..., :2] / joints[..., 2:]


def window(clip: Clip, words: int, start: float) -> Float[np.ndarray, "frames"]:
    """The progress through a sentence at the frames of a clip: all of it, or with ``fps`` a window of its seconds.

    Args:
      clip: of the sample.
      words: of the sentence, each of which lasts ``WORD`` seconds.
      start: where the window begins, from 0 to 1; one that is longer than the sentence begins with it and ends at rest.
    """
    if clip.fps is None:
        return progress(clip.frames)
    step = 1 / (clip.fps * WORD * words)
    spare = max(0.0, 1 - step * (clip.frames - 1))
    return np.minimum(start * spare + step * np.arange(clip.frames), 1.0)


class SkeletonSource(Source):
    """A figure that signs, as joints alone.

    A sample has ``points`` ``[frames, joints, 2]``, where the joints are in the picture, and ``joints``
    ``[frames, joints, 3]``, where they are in metres in the axes of the camera. The joints are those of
    ``data.signer.JOINTS``. Sentence, body and camera are drawn for every sample.

    Args:
      clip: a window of the sentence at its ``fps``; without, all of it. Height and width are not used.
      seed: with the index, decides the sample.
      split: sentences of 'eval' never occur in 'train'.
      length: number of samples.
      words: of a sentence, 1 to 4.
    """

    field = "pose"

    def __init__(self, *, clip: Clip, seed: int, split: str, length: int = 1_000_000, words: int = 2):
        super().__init__(clip=clip, seed=seed, split=split)
        least = 1 if split == "train" else 2
        if not least <= words <= 4:
            raise UserError(f"a sentence of the split {split!r} has {least} to 4 words, got words={words}")
        self._length, self.words = length, words

    def __len__(self) -> int:
        return self._length

    @classmethod
    def described(cls, clip: Clip, settings: Any) -> dict[str, tuple[tuple[int, ...], type]]:
        return pose_fields(clip.frames, len(JOINTS))

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return pose_fields(self.clip.frames, len(JOINTS))

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sequence at ``index``; nothing about reading it is random, so ``rng`` is not used."""
        own, names = np.random.default_rng([self.seed, index]), list(GESTURES)
        while split_of(words := tuple(names[i] for i in own.permutation(len(names))[: self.words])) != self.split:
            pass
        joints = seen_by(figure(words, window(self.clip, len(words), own.uniform()), own), own)
        return {
            "points": projected(joints).astype(np.float32),
            "joints": joints.astype(np.float32),
            "caption": "",
            "fps": self.clip.fps or FPS,
        }


def pose_fields(frames: int, joints: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Fields of sequences of poses."""
    return {"points": ((frames, joints, 2), np.float32), "joints": ((frames, joints, 3), np.float32)}
