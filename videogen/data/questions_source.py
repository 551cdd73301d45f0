"""Moving shapes with a question about each clip and its answer."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from videogen.data.clip import Clip, spread
from videogen.data.further_questions import further
from videogen.data.question_frames import render
from videogen.data.question_scenes import LEAST, MOTIONLESS, Look, Scene, draw
from videogen.data.questions import CELLS, KINDS, OPEN, PER_FRAME, Question, answer_of, caption_of
from videogen.data.shapes_source import COLOURS, COMPOSITION, FPS
from videogen.data.source import Source
from videogen.errors import UserError, near_matches
from videogen.ranges import Count

CLOSED = tuple(kind for kind in KINDS if kind not in OPEN)
LONGEST_READING = 64
"""Frames of a video whose questions have an answer of one word for each."""


class QuestionsSource(Source):
    """Clips of shapes with ``question``, ``answer``, ``options``, ``kind`` and ``wrong``, endless in effect.

    Sample i has the kind ``kinds[i % len(kinds)]``. ``options`` are all answers that such a question can have, in a
    fixed order, each as likely as the others whatever the question says, so that one who sees no video is right by
    chance (``questions.chances``); open questions have none. ``wrong`` is an answer with one wrong word. ``times`` are
    those of the frames in seconds, and ``attributes`` the scene (``question_scenes``).

    Args:
      clip: how many frames are shown; its ``fps`` is that of the video (8 when not given).
      seed: with the index, decides the sample.
      split: as of ``shapes``, by the caption; what does not move is held out by what it shows, and 'composition' leaves
        such kinds out.
      length: number of samples.
      kinds: of the questions (``questions.KINDS``); by default all that have a closed set of answers.
      distractors: most shapes beside the one that is asked about, 0 … 2; of ``count`` there are always up to 3, of
        ``order`` at least 2.
      seconds: length of a longer video over which the frames are spread; 0: the clip is the video.
      needle: frames of the video that show a symbol instead, where a question is about it.
      depth: where they are, from 0 (first frame) to 1 (last); without it anywhere.
      questions_per_clip: asked about each clip of 'train': where it is more than 1, ``question``, ``answer`` and
        ``wrong`` are tuples. The first question is of the kind that the index says, the others of any kind; their
        texts may tell something of their answers, so a clip of another split has one.
    """

    texts = ("caption", "question", "answer", "wrong")

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        length: int = 1_000_000,
        kinds: Sequence[str] = CLOSED,
        distractors: int = 1,
        seconds: float = 0.0,
        needle: int = 1,
        depth: float | None = None,
        questions_per_clip: Count = 1,
    ):
        super().__init__(clip=clip, seed=seed, split="eval" if split == COMPOSITION else split)
        self.split, self._length = split, length
        self.questions_per_clip = questions_per_clip if split == "train" else 1
        self.kinds = tuple(kind for kind in kinds if split != COMPOSITION or kind not in MOTIONLESS)
        rate = clip.fps or FPS
        frames = round(seconds * rate) or clip.frames
        self._check(frames, distractors, needle, depth)
        self._look = Look(frames, rate, clip.height, clip.width, distractors, needle, depth)
        self._shown = spread(frames, clip.frames)

    def _check(self, frames: int, distractors: int, needle: int, depth: float | None) -> None:
        """Raises ``UserError`` where a setting is out of range, or a clip too short for a kind."""
        if not self.kinds:
            raise UserError(f"kinds names no kind of question that the split {self.split!r} has; leave it out for all")
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(f"unknown kind of question {kind!r}{near_matches(kind, KINDS)}")
            if self.clip.frames < (least := LEAST.get(kind, 1)):
                shown = self.clip.frames
                raise UserError(f"questions of the kind {kind!r} need clips of at least {least} frames, got {shown}")
            if kind in PER_FRAME and frames > LONGEST_READING:
                raise UserError(
                    f"{kind!r} has an answer of {frames} words, one a frame; use {LONGEST_READING} or fewer"
                )
        if not 0 <= distractors <= 2:
            raise UserError(f"distractors must be 0, 1 or 2, got {distractors}")
        if frames < self.clip.frames:
            raise UserError(
                f"a video of {frames} frames cannot give {self.clip.frames}; make data.source.seconds longer"
            )
        if not 1 <= needle < max(frames, 2):
            raise UserError(f"needle must be from 1 to {frames - 1} frames of a video of {frames}, got {needle}")
        if depth is not None and not 0 <= depth <= 1:
            raise UserError(f"depth is a place from 0 (first frame) to 1 (last), got {depth}")

    def __len__(self) -> int:
        return self._length

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return {**super().fields, "times": ((self.clip.frames,), np.float32)}

    @functools.cached_property
    def fps(self) -> float:
        """Frames per second that are shown; the mean where they are spread over a longer video."""
        if self._look.frames == self.clip.frames or self.clip.frames == 1:
            return self._look.fps
        return self._look.fps * (self.clip.frames - 1) / float(self._shown[-1] - self._shown[0])

    def asked(self, index: int) -> tuple[Question, Scene]:
        """The question of sample ``index`` and its scene; nothing is rendered."""
        rng = np.random.default_rng([self.seed, index])
        return draw(self.kinds[index % len(self.kinds)], self._look, self.split, rng)

    def frames(self, index: int, numbers: Int[np.ndarray, "time"]) -> UInt8[np.ndarray, "time height width 3"]:
        """Frames of the video of sample ``index``, whether its clip shows them or not; no other is drawn.

        Args:
          index: of the sample.
          numbers: of the frames of the video, from 0 on.
        """
        _, scene = self.asked(index)
        return render(scene, numbers, self.clip.height, self.clip.width)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The question at ``index``; nothing about reading it is random, so ``rng`` is not used."""
        question, scene = self.asked(index)
        return {
            "video": render(scene, self._shown, self.clip.height, self.clip.width),
            "times": (self._shown / self._look.fps).astype(np.float32),
            "fps": self.fps,
            **self._said(index, question, scene),
            "options": question.options,
            "kind": question.kind,
            "attributes": scene,
        }

    def _texts(self, index: int, question: Question, scene: Scene) -> dict[str, str]:
        answer = answer_of(question, scene)
        wrong = _wrong(question, answer, np.random.default_rng([self.seed, index, 1]))
        return {"caption": caption_of(scene), "question": str(question), "answer": answer, "wrong": wrong}

    def _said(self, index: int, question: Question, scene: Scene) -> dict[str, str | tuple[str, ...]]:
        """The texts of a sample: of several questions, tuples of theirs."""
        first = self._texts(index, question, scene)
        if self.questions_per_clip == 1:
            return first
        rng = np.random.default_rng([self.seed, index, 2])
        asked = further(scene, question, self.kinds, self.questions_per_clip, rng)
        every = [first, *(self._texts(index, question, scene) for question in asked[1:])]
        return {**{name: tuple(own[name] for own in every) for name in first}, "caption": first["caption"]}

    def caption(self, index: int) -> str:
        return caption_of(self.asked(index)[1])

    def texts_at(self, index: int) -> list[str]:
        question, scene = self.asked(index)
        return [*self._texts(index, question, scene).values(), *question.options]

    def name_of(self, index: int) -> str:
        return f"question {index} of shapes_questions ({self.kinds[index % len(self.kinds)]})"


def _wrong(question: Question, answer: str, rng: np.random.Generator) -> str:
    """An answer with one wrong word."""
    words = answer.split()
    known = question.options or {"cells": CELLS}.get(question.what, tuple(COLOURS))
    places = [place for place, word in enumerate(words) if word in known]
    place = places[int(rng.integers(len(places)))]
    others = [word for word in known if word != words[place]]
    words[place] = others[int(rng.integers(len(others)))]
    return " ".join(words)
