"""Streams of shapes, with what is to be said of them and when, and questions of three kinds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from videogen.data.clip import Clip
from videogen.data.source import Source
from videogen.data.stream_scenes import (
    EVENTS,
    LEAST_FRAMES,
    MOST,
    QUESTIONS,
    Scene,
    StreamQuestion,
    asked_of,
    draw_scene,
    render_stream,
    split_of_stream,
    told,
)
from videogen.errors import UserError, near_matches

TOLD, NOT_YET = "told", "not yet"
KINDS = (TOLD, *QUESTIONS, NOT_YET)
"""What a turn is; its place is its number in ``turn_kind``. Nothing is said at a turn of the kind ``not yet``."""

TURNS = MOST + 3
"""Turns of a sample: the events, a question about the past or the present, and one about the future, twice."""
FPS = 2.0

Turn = tuple[int, str, str, str]
"""Frame, kind, what is asked, what is said."""


class StreamsSource(Source):
    """Streams in which shapes appear, leave, move, turn to another colour, and flash (``stream_scenes``).

    A turn i stands behind frame ``turn_frame[i]`` (-1: there is no such turn): the text ``asked_i`` is what a person
    asks there, empty where nobody does, and ``said_i`` what is said, empty where nothing is. Turns of the kind ``told``
    are the events, in their order; a question about the future is there twice: at a frame before its event, where
    nothing is said, and at the frame of the event, where its answer is. ``times`` are those of the frames in seconds,
    ``attributes`` the scene.

    Args:
      clip: how many frames a stream has; its ``fps`` is that of the stream (2 when not given).
      seed: with the index, decides the sample.
      split: no stream of 'eval' occurs in 'train', by its ground and what is told of it.
      length: number of samples.
      kinds: of events (``stream_scenes.EVENTS``); by default all.
    """

    texts = ("caption", *(f"{name}_{i}" for i in range(TURNS) for name in ("asked", "said")))

    def __init__(self, *, clip: Clip, seed: int, split: str, length: int = 1_000_000, kinds: Sequence[str] = EVENTS):
        super().__init__(clip=clip, seed=seed, split=split)
        self._length, self.kinds = length, tuple(kinds)
        for kind in self.kinds:
            if kind not in EVENTS:
                raise UserError(f"unknown kind of event {kind!r}{near_matches(kind, EVENTS)}")
        if not self.kinds:
            raise UserError("kinds names no event; leave it out for all")
        if clip.frames < LEAST_FRAMES:
            raise UserError(f"a stream has at least {LEAST_FRAMES} frames, got {clip.frames}; raise data.clip.frames")

    def __len__(self) -> int:
        return self._length

    @property
    def fps(self) -> float:
        return self.clip.fps or FPS

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return {**super().fields, **self.described(self.clip, {})}

    @classmethod
    def described(cls, clip: Clip, settings: Any) -> dict[str, tuple[tuple[int, ...], type]]:
        turns = dict.fromkeys(("turn_frame", "turn_kind"), ((TURNS,), np.int32))
        return {**super().described(clip, settings), "times": ((clip.frames,), np.float32), **turns}

    def scene(self, index: int) -> Scene:
        """The stream of sample ``index``; nothing is rendered."""
        rng = np.random.default_rng([self.seed, index])
        while True:
            scene = draw_scene(self.clip.frames, self.fps, self.kinds, rng)
            if scene["events"] and split_of_stream(scene) == self.split:
                return scene

    def turns(self, index: int, scene: Scene | None = None) -> list[Turn]:
        """Frame, kind, what is asked and what is said of every turn of sample ``index``, whose ``scene`` may be known
        already."""
        scene, rng = scene or self.scene(index), np.random.default_rng([self.seed, index, 1])
        found = [(event["frame"], TOLD, "", told(event)) for event in scene["events"]]
        frame = int(rng.integers(scene["frames"]))
        kind = QUESTIONS[int(rng.integers(2))]
        if question := asked_of(kind, scene, frame, rng):
            found.append((frame, kind, str(question), question.answer(scene, frame)))
        first = int(rng.integers(scene["events"][-1]["frame"]))
        if question := asked_of("future", scene, first, rng):
            found += self._awaited(question, scene, first, rng)
        return found

    @staticmethod
    def _awaited(question: StreamQuestion, scene: Scene, first: int, rng: np.random.Generator) -> list[Turn]:
        """A question about the future: asked behind a frame, not yet answered there, answered at its event."""
        event = question.event(scene, first)
        assert event is not None
        frame = int(rng.integers(first, event["frame"]))
        own = [each["frame"] for each in scene["events"] if each["kind"] == question.by]
        # At a frame at which such an event happens the answer would be that event.
        silent = [(frame, NOT_YET, str(question), "")] if frame not in own else []
        return [*silent, (event["frame"], "future", str(question), event[question.what])]

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The stream at ``index``; nothing about reading it is random, so ``rng`` is not used."""
        scene = self.scene(index)
        turns = self.turns(index, scene)
        turns += [(-1, TOLD, "", "")] * (TURNS - len(turns))
        numbers = np.arange(self.clip.frames)
        sample: dict[str, Any] = {
            "video": render_stream(scene, numbers, self.clip.height, self.clip.width),
            "times": (numbers / self.fps).astype(np.float32),
            "fps": self.fps,
            "caption": _ground(scene),
            "turn_frame": np.array([turn[0] for turn in turns], np.int32),
            "turn_kind": np.array([KINDS.index(turn[1]) for turn in turns], np.int32),
            "attributes": scene,
        }
        for i, (_, _, asked, said) in enumerate(turns):
            sample |= {f"asked_{i}": asked, f"said_{i}": said}
        return sample

    def caption(self, index: int) -> str:
        return _ground(self.scene(index))

    def texts_at(self, index: int) -> list[str]:
        scene = self.scene(index)
        return [_ground(scene), *(text for turn in self.turns(index, scene) for text in turn[2:] if text)]

    def name_of(self, index: int) -> str:
        return f"stream {index} of shapes_streams"


def _ground(scene: Scene) -> str:
    return f"a {scene['tone']} {scene['texture']} background"
