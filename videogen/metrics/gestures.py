"""Reads the words that a figure signs, and what it looks like, from pixels alone.

The judge of the ``signer`` source. It never sees the caption: it compares where the colours of both gloves are with
where the renderer has them for every word, frame by frame, so that place, shape and which hand is in front all count.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from videogen.data.signer import GESTURES, LEFT, MOVED, RIGHT, sign
from videogen.data.signer_source import GLOVES, SHIRTS, SKINS, progress, render

Pixels = UInt8[np.ndarray, "time height width 3"]

_SLEEVE = 0.75
_PALETTE = np.array(
    [*GLOVES.values(), *SHIRTS.values(), *(_SLEEVE * np.array(c) for c in SHIRTS.values()), *SKINS, (0, 0, 0)],
    np.float32,
)
_CHROMA = _PALETTE - _PALETTE.mean(1, keepdims=True)
_HANDS = (LEFT, RIGHT)


@dataclasses.dataclass(frozen=True)
class SignReading:
    """What is seen in a clip.

    Attributes:
      words: the likeliest word of each equal part of the clip.
      agreement: of each, how well both hands are where that word has them, in [0, 1].
      shirts: the shirt of each frame.
    """

    words: tuple[str, ...]
    agreement: tuple[float, ...]
    shirts: tuple[str, ...]


def read_signs(video: Pixels, words: int) -> SignReading:
    """Reads a clip of a number of words, which have equal shares of it."""
    hands, found, agreement = glove_cover(video), [], []
    for number in range(words):
        scores = {}
        for word in GESTURES:
            frames, wanted = _template(word, number, words, *video.shape[:3])
            scores[word] = _overlap(hands[:, frames], wanted)
        best = max(scores, key=scores.get)
        found.append(best)
        agreement.append(scores[best])
    return SignReading(tuple(found), tuple(agreement), tuple(_shirt(frame) for frame in video))


def signs_read(videos: Sequence[Pixels], wanted: Sequence[Sequence[str]], shirts: Sequence[str]) -> dict[str, float]:
    """Shares in [0, 1]: of words that are read right, of whole sentences, and of frames with the right shirt."""
    readings = [read_signs(video, len(words)) for video, words in zip(videos, wanted, strict=True)]
    of_words = [
        a == b
        for reading, words in zip(readings, wanted, strict=True)
        for a, b in zip(reading.words, words, strict=True)
    ]
    of_sentences = [reading.words == tuple(words) for reading, words in zip(readings, wanted, strict=True)]
    of_frames = [np.mean([s == shirt for s in r.shirts]) for r, shirt in zip(readings, shirts, strict=True)]
    return {
        "words": float(np.mean(of_words)),
        "sentences": float(np.mean(of_sentences)),
        "appearance": float(np.mean(of_frames)),
    }


def glove_cover(video: Pixels) -> Float[np.ndarray, "hands time height width"]:
    """How much each glove covers each pixel, in [0, 1], of the left and the right hand."""
    chroma = video.astype(np.float32)
    chroma -= chroma.mean(-1, keepdims=True)
    distance = ((chroma[..., None, :] - _CHROMA) ** 2).sum(-1)
    nearest = distance.argmin(-1)
    cover = []
    for place, hand in enumerate(GLOVES):
        own = _CHROMA[place]
        share = np.clip(chroma @ own / (own @ own), 0.0, 1.0)
        cover.append((hand, np.where(nearest == place, share, 0.0)))
    return np.stack([dict(cover)[hand] for hand in _HANDS])


@functools.lru_cache(maxsize=256)
def _template(
    word: str, number: int, words: int, frames: int, height: int, width: int
) -> tuple[np.ndarray, Float[np.ndarray, "hands time height width"]]:
    """The frames in which a word is signed at a place of a sentence, and the gloves there."""
    within = progress(frames) * words - number
    chosen = np.flatnonzero((within >= MOVED) & (within < 1.0))
    figure = sign((word,), within[chosen])
    return chosen, glove_cover(render(figure, "red", SKINS[0], 120, height, width))


def _overlap(seen: np.ndarray, wanted: np.ndarray) -> float:
    """The soft intersection over union of both hands: mean over frames."""
    together = np.minimum(seen, wanted).sum((0, 2, 3)) / np.maximum(np.maximum(seen, wanted).sum((0, 2, 3)), 1e-6)
    return float(together.mean()) if len(together) else 0.0


def _shirt(frame: UInt8[np.ndarray, "height width 3"]) -> str:
    """The shirt whose colour the torso has."""
    height, width = frame.shape[:2]
    torso = frame[int(0.5 * height) : int(0.95 * height), int(0.4 * width) : int(0.6 * width)].astype(np.float32)
    torso = torso.reshape(-1, 3) - torso.reshape(-1, 3).mean(1, keepdims=True)
    chroma = np.array([np.array(c, np.float32) - np.mean(c) for c in SHIRTS.values()])
    distance = ((torso[:, None] - chroma) ** 2).sum(-1)
    return list(SHIRTS)[int(np.bincount(distance.argmin(1), minlength=len(SHIRTS)).argmax())]
