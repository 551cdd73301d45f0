"""What a session sees and speaks with: a model that was trained on streams, or one that was trained on clips."""

import copy
import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float, UInt8

from videogen.data.clip import Clip
from videogen.data.inputs import clip_of, sample_clip
from videogen.errors import UserError
from videogen.inference.answering import Ids, ids_of
from videogen.parallel import inside, on_host
from videogen.tasks.watcher import FORGETS, Watcher
from videogen.training.loading import Loaded

DESCRIBE, NOT_YET = "what is there to see?", "not yet"
"""What a model of clips is asked where it speaks by itself, and its answer to a question whose time has not come."""

SAME = 0.02
"""Mean absolute difference of pixels in [0, 1] below which a place of a frame is dropped, where there are no vectors of
single frames (the pixel mode of TimeChat-Online; the number is ours) …"""
PLACES = 6
"""… and places on a side of a frame."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a session can remember.

    Attributes:
      frames: in memory at most.
      each: tokens of a frame, with what stands before it in the row.
      fps: frames per second of training.
      forgets: what happens to frames when memory is full.
      kept: frames that stay then.
      size: bytes of the memory.
    """

    frames: int
    each: int
    fps: float
    forgets: str
    kept: int
    size: int = 0

    @property
    def minutes(self) -> float:
        """How long a stream fits at the rate of training."""
        return self.frames / self.fps / 60

    def lines(self) -> list[str]:
        """The limit, for people."""
        long = f"{self.minutes:.1f} minutes" if self.minutes >= 1 else f"{60 * self.minutes:g} seconds"
        fits = (
            f"{self.frames} frames of {self.each} slots fit into the memory: {long} at {self.fps:g} frames per second"
        )
        gone = self.frames - self.kept
        return [fits, f"then {self.forgets}, {gone} at a time; {self.size / 2**20:.1f} MiB, however long the stream is"]


@dataclasses.dataclass(frozen=True)
class Glance:
    """What is found at a new frame.

    Attributes:
      silence: the probability of silence; 1 of a model that does not know it.
      dropped: the share of the frame that hardly differs from the one before.
      features: of the whole frame.
    """

    silence: float
    dropped: float
    features: Float[np.ndarray, "width"]


class Eye:
    """Base of both.

    Attributes:
      knows_silence: the model was trained to say nothing where there is nothing to say.
      loaded: the model.
      limit: what it can remember.
      clip: the size and rate of the frames that it takes.
    """

    knows_silence: ClassVar[bool] = False
    loaded: Loaded
    limit: Limit
    clip: Clip

    def fresh(self) -> "Eye":
        """The same before the first frame of another stream; nothing is compiled anew."""
        raise NotImplementedError

    def push(self, frame: UInt8[np.ndarray, "height width 3"], second: float) -> Glance:
        """Takes the next frame.

        Raises:
          UserError: it is of another size than those of training.
        """
        raise NotImplementedError

    def ids(self, question: str) -> Ids:
        """The ids of a question, ``[1, length]``, and which there are.

        Raises:
          UserError: it is empty or too long.
        """
        return ids_of(self.loaded, question, "the question")

    def ask(self, question: str, threshold: float) -> str | None:
        """The answer behind the last frame; ``None``: the model says nothing yet."""
        raise NotImplementedError

    def tell(self) -> str:
        """What the model says behind the last frame."""
        raise NotImplementedError

    def tell_of(self, start: int, stop: int) -> str:
        """What it says about frames of the stream, by their numbers from 0 on."""
        raise NotImplementedError


def checked(frame: np.ndarray, loaded: Loaded) -> np.ndarray:
    """A frame; refused where it is of another size or type than those of training."""
    clip, frame = loaded.config.data.clip, np.asarray(frame)
    if frame.shape != (clip.height, clip.width, 3) or frame.dtype != np.uint8:
        raise UserError(
            f"frames are uint8 {clip.height}×{clip.width}×3, got {frame.dtype} {'×'.join(map(str, frame.shape))}"
        )
    return frame


class StreamEye(Eye):
    """A model that was trained on streams (``tasks.watcher.Watcher``).

    Args:
      loaded: it.
      watcher: its, of another session; ``None``: a new one.
      **how: ``frames``, ``evict`` and ``keep`` of a new ``Watcher``.
    """

    knows_silence = True

    def __init__(self, loaded: Loaded, watcher: Watcher | None = None, **how: Any):
        self.loaded, self.clip = loaded, clip_of(loaded.config)
        self.watcher = watcher or loaded.task.watching(loaded.modules, **how)
        self.memory = self.watcher.begin()
        # Of the frames in memory, in seconds; and what is second 0 of the row.
        self.times: list[float] = []
        self.base = 0.0
        fps, watcher = loaded.config.data.clip.fps, self.watcher
        self.trained = (loaded.task.stream.frames - 1) / fps
        forgets = FORGETS[watcher.evict]
        self.limit = Limit(watcher.frames, watcher.group, fps, forgets, watcher.kept, size_of(self.memory))

    def fresh(self):
        return StreamEye(self.loaded, self.watcher)

    def push(self, frame, second):
        frame = checked(frame, self.loaded)
        if len(self.times) == self.watcher.frames:
            self._forget()
        if not self.times:
            self.base = second
        self.memory, found = self.watcher.run("push", self.memory, frame, self._since(second))
        self.times.append(second)
        silence, dropped, features = jax.tree.map(np.asarray, tuple(found))
        return Glance(float(silence), float(dropped), features)

    def _since(self, second: float) -> np.float32:
        """A time as it is in the row: in the range of training."""
        return np.float32(np.clip(second - self.base, 0.0, self.trained))

    def _forget(self) -> None:
        """Makes room; the frames that stay are read again, the last one no later than it would be in training."""
        index = np.asarray(self.watcher.run("choose", self.memory))
        self.times = [self.times[i] for i in index]
        span = (len(index) - 1) / self.limit.fps
        self.base = max(self.times[0], self.times[-1] - span)
        seconds = np.array([self._since(second) for second in self.times])
        self.memory = self.watcher.run("forget", self.memory, index, seconds)

    def ask(self, question, threshold):
        ids, mask = self.ids(question)
        state, silence = self.watcher.run("asked", self.memory, ids[0], mask[0])
        return None if float(silence) >= threshold else self._said(state)

    def tell(self):
        return self._said(self.memory.state)

    def _said(self, state: Any) -> str:
        ids, there = map(np.asarray, self.watcher.run("say", state, self.memory.count))
        return self.loaded.text.decode(ids[there]) or "(nothing)"


class AskedEye(Eye):
    """Base of models of clips, which are asked anew each time."""

    def ask(self, question, threshold):
        text = self.said(question)
        return None if text.strip().casefold() == NOT_YET else text

    def tell(self):
        return self.said(DESCRIBE)

    def said(self, question: str) -> str:
        """The answer about all that is remembered; nothing of it stays."""
        raise NotImplementedError


def clip_with_rate(loaded: Loaded) -> Clip:
    """The clips of training, with the frames per second of the data, where something tells them, else 1."""
    clip = sample_clip(loaded.config)
    return dataclasses.replace(clip, fps=clip.fps or loaded.config.data.get("frame_rate") or 1.0)


class ClipEye(AskedEye):
    """A model that was trained on clips: the last frames are the clip that it is asked about, each time anew.

    Args:
      loaded: it.
      frames: in memory at most; ``None``: those of a clip of training, which is the most that there can be.
    """

    def __init__(self, loaded: Loaded, frames: int | None = None):
        clip = clip_with_rate(loaded)
        frames = clip.frames if frames is None else frames
        if not 2 <= frames <= clip.frames:
            raise UserError(
                f"the memory holds 2 to {clip.frames} frames, as many as clips of training have, not {frames}"
            )
        self.loaded, self.clip, self.room = loaded, clip, clip.frames
        self.answerer = loaded.task.answering(loaded.modules)
        self._program = jax.jit(self._answered)
        self.frames = np.zeros((clip.frames, clip.height, clip.width, 3), np.uint8)
        self.times = np.zeros(clip.frames)
        self.count, self.seen = 0, 0
        each = -(-self.answerer.shape.tokens // clip.frames)
        size = size_of((self.frames, self.times))
        self.limit = Limit(frames, each, clip.fps, FORGETS["oldest"], frames - 1, size)

    def fresh(self):
        other = copy.copy(self)
        other.frames, other.times = np.zeros_like(self.frames), np.zeros_like(self.times)
        other.count = other.seen = 0
        return other

    def push(self, frame, second):
        # A copy: the frame moves where the memory is full.
        frame, before = checked(frame, self.loaded), self.frames[self.count - 1].copy() if self.count else None
        if self.count == self.limit.frames:
            self.frames[: self.count - 1] = self.frames[1 : self.count].copy()
            self.times[: self.count - 1] = self.times[1 : self.count].copy()
            self.count -= 1
        self.frames[self.count], self.times[self.count] = frame, second
        self.count, self.seen = self.count + 1, self.seen + 1
        return of_pixels(frame, before)

    def said(self, question):
        return self._answer(question, 0, self.count)

    def tell_of(self, start, stop):
        first = self.seen - self.count
        return self._answer(DESCRIBE, max(start - first, 0), max(stop - first, 1))

    def _answer(self, question: str, start: int, stop: int) -> str:
        """The answer about frames in memory; nothing of it stays."""
        ids, mask = self.ids(question)
        count, room = stop - start, self.room
        # Frames that are not there repeat the last one, whose time goes on.
        place = start + np.minimum(np.arange(room), count - 1)
        times = (self.times[place] - self.times[start]).astype(np.float32)
        batch = {"video": self.frames[place][None], "times": times[None], "question_ids": ids, "question_mask": mask}
        batch["frame_mask"] = np.arange(room)[None] < count
        with inside(self.answerer.mesh):
            ids, exists = map(on_host, self._program(self.answerer.states, batch))
        return self.loaded.text.decode(ids[0][exists[0]]) or "(nothing)"

    def _answered(self, states: Any, batch: Any) -> Any:
        """The ids of an answer, and which there are."""
        begun, _, _ = self.answerer.begun(states, self.answerer.see(states, batch), batch)
        return self.answerer.gone_on(states, begun, clips=1)


def of_pixels(frame: UInt8[np.ndarray, "height width 3"], before: np.ndarray | None) -> Glance:
    """What pixels say of a frame and the one before it, where there is one."""
    now = _places(frame)
    dropped = 0.0 if before is None else float((np.abs(now - _places(before)).mean(-1) < SAME).mean())
    return Glance(1.0, dropped, (now - 0.5).reshape(-1))


def _places(frame: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "places channels"]:
    """Pixels in [0, 1] of the places of a frame, one row for each."""
    height, width = (min(PLACES, side) for side in frame.shape[:2])
    cut = frame[: frame.shape[0] // height * height, : frame.shape[1] // width * width] / np.float32(255)
    parts = cut.reshape(height, cut.shape[0] // height, width, cut.shape[1] // width, 3).swapaxes(1, 2)
    return parts.reshape(height * width, -1)


def size_of(memory: Any) -> int:
    """Bytes of the arrays of a memory."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(memory))
