"""Captioned videos of a figure that signs: procedural, with its points, and readable back from the pixels.

A caption is ``a signer in COLOUR signs WORD [then WORD …]``.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from videogen.data.clip import Clip
from videogen.data.pose_maps import capsule
from videogen.data.shapes_source import COLOURS, FPS
from videogen.data.signer import (
    BONES,
    GESTURES,
    HAND_POINTS,
    JOINTS,
    LEFT,
    RIGHT,
    Figure,
    sign,
)
from videogen.data.source import Source
from videogen.errors import UserError

SHIRTS = {name: COLOURS[name] for name in ("red", "green", "blue", "purple")}
GLOVES = {LEFT: COLOURS["cyan"], RIGHT: COLOURS["yellow"]}
"""Each hand has a colour of its own, so that a program can follow it."""
SKINS = ((224, 180, 150), (150, 105, 80), (95, 70, 58))
TONES = (60, 120, 190)

_HEAD, _ARM, _FINGER, _PALM, _TORSO = 0.1, 0.045, 0.022, 0.05, 0.16
_WAIST = (0.95, 0.5)


def caption(shirt: str, words: Sequence[str]) -> str:
    """What a clip shows."""
    return f"a signer in {shirt} signs {' then '.join(words)}"


def parse(text: str) -> tuple[str, tuple[str, ...]]:
    """Shirt and words of a caption.

    Raises:
      UserError: the text does not follow the grammar, or has other words.
    """
    match = re.fullmatch(r"a signer in (\w+) signs (\w+(?: then \w+)*)", text.strip())
    words = tuple(match[2].split(" then ")) if match else ()
    if not match or match[1] not in SHIRTS or not set(words) <= GESTURES.keys():
        raise UserError(f"{text!r} is no caption of the signer source; write it like 'a signer in red signs hello'")
    return match[1], words


def split_of(words: Sequence[str]) -> str:
    """'eval' for one in eight sentences of two or more words, by the SHA-256 of the words, else 'train'."""
    # A word alone is always in training: none is new in 'eval'.
    return "eval" if len(words) > 1 and hashlib.sha256(" ".join(words).encode()).digest()[0] % 8 == 0 else "train"


def render(
    figure: Figure, shirt: str, skin: Sequence[float], tone: float, height: int, width: int
) -> UInt8[np.ndarray, "time height width 3"]:
    """Draws a signer on a plain background."""
    frames = len(figure.pose)
    video = np.full((frames, height, width, 3), tone, np.float32)

    def paint(cover: np.ndarray, colour: Sequence[float]) -> None:
        nonlocal video
        video = video + cover[..., None] * (np.asarray(colour, np.float32) - video)

    def bone(a: np.ndarray, b: np.ndarray, radius: float, colour: Sequence[float]) -> None:
        paint(capsule(a, b, radius, height, width), colour)

    neck = figure.pose[:, 1]
    bone(neck + (0.06, 0.0), np.broadcast_to(np.float32(_WAIST), neck.shape), _TORSO, SHIRTS[shirt])
    bone(figure.pose[:, 0], figure.pose[:, 0], _HEAD, skin)
    for i, j in BONES[2:4] + BONES[5:7]:
        bone(figure.pose[:, i], figure.pose[:, j], _ARM, 0.75 * np.array(SHIRTS[shirt]))
    layers = {}
    for hand in (LEFT, RIGHT):
        points, cover = figure.hands[:, hand, :, :2], 0.0
        for tip in range(4, HAND_POINTS, 4):  # the points of a finger are on one line
            cover = np.maximum(cover, capsule(points[:, 0], points[:, tip], _FINGER, height, width))
        palm = points[:, [0, 5, 9, 17]].mean(1)
        layers[hand] = np.maximum(cover, capsule(palm, palm, _PALM, height, width))
    # The hand in front is painted last.
    for turn in (1, 0):
        for hand in (LEFT, RIGHT):
            now = (figure.nearer == hand) == (turn == 0)
            paint(layers[hand] * now[:, None, None], GLOVES[hand])
    return (video + 0.5).astype(np.uint8)


class SignerSource(Source):
    """A figure whose hands sign one word after another.

    A sample also has its points, ``pose`` and ``hands`` with their masks (``data.signer.Figure``), and its
    ``attributes``: shirt, skin, tone and words. Hands are (y, x, z), y and x in units of the frame's sides.

    Args:
      clip: words have equal shares of its frames.
      seed: with the index, decides the sample.
      split: sentences of 'eval' never occur in 'train', whatever the seed, and all of their words do.
      length: number of samples.
      words: of a sentence, 1 to 4.
    """

    classes = tuple(GESTURES)
    signed = True

    def __init__(self, *, clip: Clip, seed: int, split: str, length: int = 1_000_000, words: int = 2):
        super().__init__(clip=clip, seed=seed, split=split)
        least = 1 if split == "train" else 2
        if not least <= words <= 4:
            raise UserError(f"a sentence of the split {split!r} has {least} to 4 words, got words={words}")
        self._length, self.words = length, words

    def __len__(self) -> int:
        return self._length

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        frames = self.clip.frames
        return {
            **super().fields,
            "pose": ((frames, len(JOINTS), 2), np.float32),
            "pose_mask": ((frames, len(JOINTS)), np.bool_),
            "hands": ((frames, 2, HAND_POINTS, 3), np.float32),
            "hands_mask": ((frames, 2), np.bool_),
        }

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sentence at ``index``; nothing about reading it is random, so ``rng`` is not used."""
        said, clip = self._said(index), self.clip
        figure = sign(said["words"], progress(clip.frames))
        look = (said["shirt"], said["skin"], said["tone"])
        return {
            "video": render(figure, *look, clip.height, clip.width),
            "pose": figure.pose,
            "pose_mask": figure.pose_mask,
            "hands": figure.hands,
            "hands_mask": figure.hands_mask,
            "caption": caption(said["shirt"], said["words"]),
            "label": self.classes.index(said["words"][0]),
            "fps": clip.fps or FPS,
            "attributes": said,
        }

    def caption(self, index: int) -> str:
        said = self._said(index)
        return caption(said["shirt"], said["words"])

    def captions(self) -> list[str]:
        """Every caption of this split."""
        return [caption(shirt, words) for words in self.sentences() for shirt in SHIRTS]

    def sentences(self) -> list[tuple[str, ...]]:
        """Every sentence of this split; no word comes twice."""
        return [words for words in itertools.permutations(GESTURES, self.words) if split_of(words) == self.split]

    def _said(self, index: int) -> dict[str, Any]:
        rng, names = np.random.default_rng([self.seed, index]), list(GESTURES)
        shirt, skin, tone = rng.integers(0, (len(SHIRTS), len(SKINS), len(TONES))).tolist()
        while True:
            words = tuple(names[i] for i in rng.permutation(len(names))[: self.words])
            if split_of(words) == self.split:
                return {"shirt": list(SHIRTS)[shirt], "skin": SKINS[skin], "tone": TONES[tone], "words": words}


def progress(frames: int) -> np.ndarray:
    """The progress through the sentence at each frame: the middles of equal shares."""
    return (np.arange(frames) + 0.5) / frames
