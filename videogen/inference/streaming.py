"""Sessions: a model watches a stream frame by frame, speaks by itself, and is asked at any time; memory is bounded."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import UInt8

from videogen.building import check_fields
from videogen.data.video_io import read_stream
from videogen.errors import UserError
from videogen.inference.carried import CarriedEye, carries
from videogen.inference.eyes import ClipEye, Eye, Glance, StreamEye
from videogen.ranges import OneOf, Share
from videogen.reducers.online import ChangeTrigger, SceneCutter
from videogen.training.loading import Loaded

SPEAKS = ("silence", "changes", "scenes", "never")
"""When a model speaks by itself: where silence is improbable behind a frame (VideoLLM-online), where the share of
tokens that are dropped says that a scene begins (TimeChat-Online), at the end of every scene, about it (VideoLLaMB)."""


AHEAD = 2
"""Frames behind a scene that are seen when its end is known, at most."""


@dataclasses.dataclass(frozen=True)
class Said:
    """What a model says.

    Attributes:
      second: when.
      text: what.
      question: that it answers; empty: none.
      start: of the scene that it is about, in seconds; ``None``: it is about no scene.
    """

    second: float
    text: str
    question: str = ""
    start: float | None = None

    def line(self) -> str:
        """With its time, for people."""
        when = f"[{self.second:.2f} s]" if self.start is None else f"[{self.start:.2f} … {self.second:.2f} s]"
        return " ".join(filter(None, (when, self.question, self.text)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a session goes.

    Attributes:
      speaks: one of ``SPEAKS``; ``None``: ``silence`` of a model that was trained on streams, else ``changes``.
      threshold: a model of streams is silent while the probability of silence is at least this; ``None``: as its
        config says.
      frames: in memory at most; ``None``: as many as training has.
      evict, keep: which frames go where memory is full, and the share that stays (``tasks.watcher``); ``None``: as the
        config says.
    """

    speaks: Annotated[str, OneOf(*SPEAKS)] | None = None
    threshold: Share | None = None
    frames: int | None = None
    evict: str | None = None
    keep: Share | None = None

    def __post_init__(self):
        check_fields(self)


class Session:
    """One stream that is watched.

    Args:
      eye: what sees and speaks.
      speaks: one of ``SPEAKS``.
      threshold: of silence.
    """

    def __init__(self, eye: Eye, speaks: str, threshold: float):
        if speaks == "silence" and not eye.knows_silence:
            raise UserError("this model was not trained to be silent: it speaks at changes, at scenes, or never")
        if speaks == "scenes" and eye.knows_silence:
            raise UserError("a model of streams tells of events; of scenes tell models that were trained on clips")
        self.eye, self.speaks, self.threshold = eye, speaks, threshold
        self.open: list[str] = []
        self._trigger, self._cutter = ChangeTrigger(), SceneCutter(longest=max(eye.limit.frames - AHEAD, 2))
        self._times: list[float] = []

    def fresh(self) -> "Session":
        """A session like this one before its first frame; nothing is compiled anew."""
        return Session(self.eye.fresh(), self.speaks, self.threshold)

    def lines(self) -> list[str]:
        """What is worth knowing before the first frame, for people."""
        when = {
            "silence": f"it speaks where silence is less probable than {self.threshold:g}",
            "changes": "it speaks where a scene begins",
            "scenes": "it speaks at the end of every scene",
            "never": "it answers questions alone",
        }
        return [*self.eye.limit.lines(), when[self.speaks]]

    def push(self, frame: UInt8[np.ndarray, "height width 3"], second: float) -> list[Said]:
        """Takes the next frame; what the model says behind it.

        Args:
          frame: of the size of training.
          second: when it is shown, later than the one before.

        Raises:
          UserError: it is of another size, or not later.
        """
        if self._times and second <= self._times[-1]:
            raise UserError(f"a frame at {second:g} s came behind one at {self._times[-1]:g} s; give them in order")
        glance = self.eye.push(frame, second)
        changed = self._trigger.push(glance.dropped)
        # Times of the scene that goes on are needed, and of no earlier one.
        self._times.append(second)
        return [*self._unasked(glance, second, changed), *self._answers(second, changed)]

    def ask(self, question: str) -> Said | None:
        """Asks behind the last frame; ``None``: the model says nothing yet, and answers when it can.

        What was asked before changes nothing.

        Raises:
          UserError: no frame was seen, or the question is empty or too long.
        """
        if not self._times:
            raise UserError("nothing was seen yet; push a frame before asking")
        text = self.eye.ask(question, self.threshold)
        if text is None:
            self.wait_for(question)
            return None
        return Said(self._times[-1], text, question)

    def wait_for(self, question: str) -> None:
        """Asks about the future: the model answers when its time has come.

        Raises:
          UserError: the question is empty or too long.
        """
        self.eye.ids(question)
        if question not in self.open:
            self.open.append(question)

    def finish(self) -> list[Said]:
        """What is said at the end of the stream."""
        if self.speaks != "scenes" or not self._times:
            return []
        return self._of_scene(self._cutter.finish(), self._times[-1])

    def _unasked(self, glance: Glance, second: float, changed: bool) -> Iterator[Said]:
        """What the model says by itself."""
        told = {"silence": glance.silence < self.threshold, "changes": changed and not self.open}
        if told.get(self.speaks):
            yield Said(second, self.eye.tell())
        if self.speaks == "scenes":
            begin, scene = self._cutter.begin, self._cutter.push(glance.features)
            if scene is not None:
                yield from self._of_scene(scene, self._times[scene[1] - begin])
                del self._times[: scene[1] - begin]
        else:
            del self._times[:-1]

    def _of_scene(self, scene: tuple[int, int] | None, until: float) -> list[Said]:
        """The caption of a scene that has ended."""
        if scene is None:
            return []
        return [Said(until, self.eye.tell_of(*scene), start=self._times[0])]

    def _answers(self, second: float, changed: bool) -> Iterator[Said]:
        """Answers to open questions whose time has come; where scenes count these are asked again at changes alone."""
        if self.eye.knows_silence or changed:
            for question in list(self.open):
                text = self.eye.ask(question, self.threshold)
                if text is not None:
                    self.open.remove(question)
                    yield Said(second, text, question)


def watch_file(session: Session, video: str, questions: Sequence[tuple[float, str]] = ()) -> Iterator[Said]:
    """What a model says while the frames of a video file arrive, at the rate of training.

    Args:
      session: a new one.
      video: the file.
      questions: when each is asked, in seconds, and the question; it is asked behind the first frame from then on.

    Raises:
      UserError: the file cannot be read; a question is empty, too long, or asked behind the last frame.
    """
    for _, question in questions:
        session.eye.ids(question)
    waiting = sorted(questions, key=lambda asked: asked[0])
    clip, second = session.eye.clip, 0.0
    for frame, second in read_stream(video, clip):
        yield from session.push(frame, second)
        while waiting and waiting[0][0] <= second:
            said = session.ask(waiting.pop(0)[1])
            if said is not None:
                yield said
    if waiting:
        raise UserError(f"--at={waiting[0][0]:g} lies behind the last frame, at {second:g} s: ask earlier")
    yield from session.finish()


def open_session(loaded: Loaded, settings: Settings = Settings()) -> Session:
    """A session of a loaded model.

    Raises:
      UserError: it neither watches streams nor answers questions, or a setting is not for it.
    """
    task = loaded.task
    if task.watches:
        how = {name: getattr(settings, name) for name in ("frames", "evict", "keep")}
        eye: Eye = StreamEye(loaded, **how)
        threshold = task.session.threshold if settings.threshold is None else settings.threshold
        return Session(eye, settings.speaks or "silence", threshold)
    if not task.answers:
        raise UserError(f"{loaded.directory} holds a {loaded.config.task}, and no model that watches streams")
    for name in ("threshold", "evict", "keep"):
        if getattr(settings, name) is not None:
            raise UserError(f"{name} is for models that were trained on streams; leave it out")
    # Of a scene its own frames are needed, which a recurrent memory does not keep apart.
    if settings.frames is None and settings.speaks != "scenes" and carries(loaded):
        return Session(CarriedEye(loaded), settings.speaks or "changes", 0.0)
    return Session(ClipEye(loaded, settings.frames), settings.speaks or "changes", 0.0)
