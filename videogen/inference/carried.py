"""Watching a stream with a reducer that goes on from segment to segment: bridges (VideoLLaMB), summaries
(VideoStreaming)."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from videogen.inference.eyes import AskedEye, Limit, checked, clip_with_rate, of_pixels, size_of
from videogen.language.slots import Filled
from videogen.parallel import inside, on_host
from videogen.reducers import Chain, of_grid
from videogen.tasks.answering import ANSWER, QUESTION, VIDEO
from videogen.training.loading import Loaded


def carries(loaded: Loaded) -> bool:
    """Whether the last reducer of a model goes on with a stream, and nothing before or beside it sees more than a
    frame."""
    model = loaded.modules["language"]
    vision, chain = model.vision, list(model.vision.chain.reducers)
    # A choice by the question, and what a hook looks up, would be of the whole clip.
    whole = vision.ask is not None or model.stream.backbone.looks_beside
    alone = vision.encoder.framewise and all(reducer.framewise for reducer in chain[:-1])
    return bool(chain) and chain[-1].recurrent and alone and not whole


class CarriedEye(AskedEye):
    """A model that was trained on clips, whose last reducer is recurrent: frames are read segment by segment, and the
    model is asked about what the reducer remembers of all of them.

    Up to the length of a clip of training that is exactly what the model sees of the clip.

    Args:
      loaded: it.
    """

    def __init__(self, loaded: Loaded):
        self.loaded, self.answerer = loaded, loaded.task.answering(loaded.modules)
        clip, vision = clip_with_rate(loaded), loaded.modules["language"].vision
        self.clip, self.trained = clip, (clip.frames - 1) / clip.fps
        self.segment = vision.chain.reducers[-1].frames
        self.room, self.places = clip.frames // self.segment, int(np.prod(vision.encoder.sides[1:]))
        self._fold, self._answer = jax.jit(self._folded), jax.jit(self._answered)
        self._begin = jax.jit(self._begun)
        self._reset()
        with inside(self.answerer.mesh):
            slots = jax.jit(self._slots)(self.answerer.states, self.carry)
        self.told = int(slots.max()) + 1
        kept = self.told * self.segment
        tokens = -(-self.answerer.shape.tokens // clip.frames)
        size = size_of(self.carry) + self.pending.nbytes
        forgets = "the oldest frames count through the memory of the reducer alone"
        self.limit = Limit(kept, tokens, clip.fps, forgets, kept - self.segment, size)

    def _reset(self) -> None:
        with inside(self.answerer.mesh):
            self.carry = self._begin(self.answerer.states)
        self.pending = np.zeros((self.segment, self.clip.height, self.clip.width, 3), np.uint8)
        self.waiting: list[float] = []
        # Of the segments that may still be told apart, in seconds.
        self.times: list[list[float]] = []
        self.seen, self.first, self.before = 0, 0.0, None

    def fresh(self):
        other = copy.copy(self)
        other._reset()
        return other

    def push(self, frame, second):
        frame = checked(frame, self.loaded)
        self.first = second if not self.seen else self.first
        found, self.before = of_pixels(frame, self.before), frame
        self.pending[len(self.waiting)] = frame
        self.waiting.append(second)
        self.seen += 1
        if len(self.waiting) == self.segment:
            self.carry, self.times = self._with_pending()
            self.waiting = []
        return found

    def _with_pending(self) -> tuple[Any, list[list[float]]]:
        """What is carried behind the frames that wait, and the times of the segments."""
        if not self.waiting:
            return self.carry, self.times
        there = np.arange(self.segment) < len(self.waiting)
        with inside(self.answerer.mesh):
            carry = self._fold(self.answerer.states, self.carry, self.pending * there[:, None, None, None], there)
        times = [*self.waiting, *[self.waiting[-1]] * (self.segment - len(self.waiting))]
        return carry, [*self.times, times][-self.told :]

    def said(self, question):
        ids, mask = self.ids(question)
        carry, times = self._with_pending()
        seconds = np.zeros((self.told, self.segment))
        seconds[: len(times)] = times
        # The newest frame is no later than it would be in training.
        base = max(self.first, times[-1][-1] - self.trained)
        seconds = np.clip(seconds - base, 0.0, self.trained).astype(np.float32)
        count = np.float32(min(self.seen, self.clip.frames) * self.places)
        with inside(self.answerer.mesh):
            given = carry, seconds, count, ids, mask
            found, exists = map(on_host, self._answer(self.answerer.states, *given))
        return self.loaded.text.decode(found[0][exists[0]]) or "(nothing)"

    # Traced -----------------------------------------------------------------------------------------------------------

    def _tokens(self, states: Any, frames: UInt8[Array, "time height width 3"], there: Bool[Array, "time"]) -> Any:
        """A segment in front of the last reducer, on its grid."""
        live = self.answerer.live(states)
        vision = live["language"].vision
        batch = {"video": frames[None], "times": jnp.zeros((1, len(frames)))}
        clips = self.answerer.task.reader.clips(live, batch)
        grid = vision.encoder(clips.inputs, clips.seconds, there[None]).astype(jnp.float32)
        others = Chain([*vision.chain.reducers[:-1]], vision.chain.needs)
        return others.reduce(of_grid(grid, there[None]), vision.of_clip(grid, clips.inputs, jax.random.key(0)[None]))[0]

    def _begun(self, states: Any) -> Any:
        shape = (self.segment, self.clip.height, self.clip.width, 3)
        none = jnp.zeros(shape, jnp.uint8), jnp.ones(self.segment, bool)
        grid = jax.eval_shape(lambda: self._tokens(states, *none)).grid
        return self.answerer.live(states)["language"].vision.chain.reducers[-1].begin(1, grid, self.room)

    def _slots(self, states: Any, carry: Any) -> Int[Array, "tokens"]:
        return self.answerer.live(states)["language"].vision.chain.reducers[-1].remembered(carry)[1]

    def _folded(
        self, states: Any, carry: Any, frames: UInt8[Array, "time height width 3"], there: Bool[Array, "time"]
    ) -> Any:
        reducer = self.answerer.live(states)["language"].vision.chain.reducers[-1]
        return reducer.fold(carry, self._tokens(states, frames, there))

    def _answered(
        self,
        states: Any,
        carry: Any,
        seconds: Float[Array, "segments time"],
        count: Float[Array, ""],
        ids: Int[Array, "1 words"],
        mask: Bool[Array, "1 words"],
    ) -> tuple[Array, Array]:
        """The ids of an answer, and which there are.

        Args:
          states: of the modules.
          carry: of the reducer.
          seconds: of the frames of the segments that are told apart.
          count: how many tokens all that is remembered counts for.
          ids, mask: of the question.
        """
        vision = self.answerer.live(states)["language"].vision
        tokens, slot = vision.chain.reducers[-1].remembered(carry)
        place = jnp.clip(jnp.round(tokens.position[0, :, 0]), 0, self.segment - 1).astype(jnp.int32)
        times = jnp.where(slot < 0, 0.0, seconds[jnp.maximum(slot, 0), place])[None]
        sizes = None
        if vision.proportional:
            sizes = tokens.size * count / jnp.maximum(tokens.size.sum(1, keepdims=True), 1e-12)
        filled = Filled(vision.placed(tokens, times), tokens.filled().mask, sizes)
        decoding = self.answerer.decoding(states, 1, 1)
        state, step = decoding.read({(QUESTION, 0): Filled(ids, mask), (VIDEO, 0): filled})
        drawn = decoding.advance(state, step, {})[1][ANSWER, 0]
        return drawn.values, drawn.exists
