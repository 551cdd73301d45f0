"""The base of every source: random access to samples that depend on nothing but (seed, index)."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from videogen.data.clip import Clip
from videogen.errors import UserError, near_matches

SPLITS = ("train", "eval")


class SampleError(Exception):
    """One sample cannot be used; the pipeline skips it, logs it and goes on.

    Attributes:
      name: the file or record.
      reason: why, in a few words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Source:
    """A list of samples.

    A sample is a dict: ``video uint8 [time, height, width, 3]`` (the token source: ``tokens/SEGMENT`` instead),
    ``caption str`` ('' when there is none), ``fps float``, ``label int`` where ``classes`` is not empty, and
    ``audio float32 [samples, channels]`` where it was asked for.

    Attributes:
      clip: the size of every sample.
      seed: with the index, decides everything random about ``source[index]``.
      split: 'train' or 'eval'.
      classes: the name of each label; empty when samples have no label.
      captioned: number of samples that have a caption; ``None`` where that is not known without reading them.
      uncaptioned: whether it was asked for to train models of text without any caption.
      keeps_apart: whether samples of 'eval' do not occur in 'train'.
      made_from: of a token cache, the ``source`` config, ``clip`` and ``split`` of the videos, where it says so.
      field: what a sample is learned from: ``video``, ``tokens`` or ``pose``.
      texts: the texts of a sample: ``caption``, which may be empty and is cut where it is too long, and, of a source of
        questions, ``question``, ``answer`` and ``wrong``, or a second text of a clip, such as ``subtitle``. Texts other
        than captions are never cut: such a sample is skipped. Of several questions about a clip, each of their texts is
        a tuple, and all samples have equally many. With questions a sample also has ``kind`` and ``options``, a tuple
        of possible answers, empty for an open question.
      questions_per_clip: how many questions a sample has, where it has any.
      judged: whether captions name all there is to see, so that ``metrics.judge`` can read them back from videos.
      signed: whether they name the words that a figure signs, so that ``metrics.gestures`` can.
    """

    field = "video"
    judged = signed = False
    texts: tuple[str, ...] = ("caption",)
    questions_per_clip = 1

    classes: tuple[str, ...] = ()
    captioned: int | None = None
    uncaptioned: bool = False
    keeps_apart: bool = True
    made_from: dict[str, Any] | None = None

    def __init__(self, *, clip: Clip, seed: int, split: str):
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}{near_matches(split, SPLITS)}")
        self.clip = clip
        self.seed = seed
        self.split = split

    @classmethod
    def texts_said(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """``texts`` of a source with these settings."""
        return cls.texts

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Name -> shape and dtype of the arrays of a sample that training reads, sound aside."""
        return {"video": ((self.clip.frames, self.clip.height, self.clip.width, 3), np.uint8)}

    @classmethod
    def described(cls, clip: Clip, settings: Any) -> dict[str, tuple[tuple[int, ...], type]]:
        """``fields`` of samples of this size where the data are not at hand; ``settings`` are the source's section."""
        return {"video": ((clip.frames, clip.height, clip.width, 3), np.uint8)}

    @property
    def fps(self) -> float | None:
        """Frames per second of the samples; ``None`` where nothing tells them."""
        return self.clip.fps

    def __len__(self) -> int:
        raise NotImplementedError

    def contents(self) -> str:
        """A word that changes where what the source holds does, so that a resumed run can say so."""
        return str(len(self))

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads sample ``index``; ``rng`` decides what is random about the reading (window, crop).

        Raises:
          SampleError: the sample cannot be decoded.
        """
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        return self.sample(index, np.random.default_rng([self.seed, index]))

    def choice(self, rng: np.random.Generator) -> np.random.Generator | None:
        """What decides window and crop: a generator in 'train' and where windows are random by name, else nothing."""
        return rng if self.split == "train" or self.clip.window == "random" else None

    def segments(self, sample: dict[str, Any]) -> np.ndarray | None:
        """A label of every pixel of a sample, from 1, of a source that has drawn it; ``None``: it knows none."""
        return None

    def label(self, index: int) -> int:
        """The label of sample ``index``, of a source with ``classes``; without decoding where it can be had so."""
        return self[index]["label"]

    def caption(self, index: int) -> str:
        """The caption of sample ``index``; sources do without decoding where they can."""
        return self[index]["caption"]

    def texts_at(self, index: int) -> list[str]:
        """What a vocabulary learns from sample ``index``: all of its texts."""
        return [self.caption(index)]

    def name_of(self, index: int) -> str:
        """What sample ``index`` is called in messages."""
        return f"sample {index}"


def held_out(key: str, share: float) -> bool:
    """Whether ``key`` belongs to the held-out ``share`` of all keys; its SHA-256 decides."""
    return place(key) < share * 2**64


def place(key: str) -> int:
    """Where ``key`` stands among all keys, from 0 to 2⁶⁴, by its SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8])


def proportions(weights: Sequence[float], rule: str) -> list[int]:
    """Whole numbers in exactly the proportions of ``weights`` as they are written: 0.1 is one tenth.

    Args:
      weights: positive numbers.
      rule: what the message says every one of them must be.

    Raises:
      UserError: a weight is not positive.
    """
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except (ValueError, ZeroDivisionError):
        exact = [Fraction(0)]
    if min(exact) <= 0:
        raise UserError(f"every {rule}, got {weights}")
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [weight // math.gcd(*whole) for weight in whole]
