"""Rows of a model that watches a stream: frames one after another, and beside them what is asked and said.

The main line of a row is ``begin, tokens of frame 0, separator, tokens of frame 1, separator, …``. A turn leaves it
behind a frame and does not come back: ``question, words, end`` where something is asked, then ``answer, words, end``
where something is said. It sees the frames up to its own, and no other turn; no frame sees a turn. So what is kept of
a stream does not depend on what was asked or said, and question B after A is question B alone.

What is learned (VideoLLM-online, O11): the last token of a frame, and the end of a question, predict ``answer`` where
something is said there and else ``separator``, which is silence; ``answer`` and every word of it predict the next word,
and the last one ``end``.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from videogen.language.spans import RowShape, Spans
from videogen.language.vocabulary import Vocabulary
from videogen.nn import Causal, Equal, NotLater, Same
from videogen.nn.masks import INDEX

TURN, FRAME = "turn", "frame"
"""Tags: 0 of the main line, else 1 + the number of the turn; the frame that a slot belongs to or stands behind."""

MASK = Causal() & (Equal(TURN, 0) | Same(TURN)) & NotLater(FRAME)
"""Who sees whom."""

MARKERS = ("begin", "separator", "question", "answer", "end")


def frames_that_fit(context: int, each: int, words: int = 0) -> int:
    """Frames of ``each`` tokens, with a separator before each, in ``context`` slots of which ``words`` are for texts:
    ``(context - words) // (each + 1)``."""
    return max(context - words, 0) // (each + 1)


class Turns(NamedTuple):
    """What is asked and said behind frames; words are local ids at the front.

    Attributes:
      frame: behind which frame each stands; -1: there is no such turn.
      asked, asked_mask: what is asked; a turn without any word is said unasked.
      said, said_mask: what is said; without any word nothing is.
    """

    frame: Int[Array, "batch turns"]
    asked: Int[Array, "batch turns words"]
    asked_mask: Bool[Array, "batch turns words"]
    said: Int[Array, "batch turns words"]
    said_mask: Bool[Array, "batch turns words"]


@dataclasses.dataclass(frozen=True)
class StreamShape:
    """The slots of rows; static.

    Attributes:
      frames: of a stream.
      each: tokens of a frame.
      turns: of a stream.
      words: of a text at most.
    """

    frames: int
    each: int
    turns: int
    words: int

    @property
    def group(self) -> int:
        """Slots of a frame: the marker before it and its tokens."""
        return 1 + self.each

    @property
    def main(self) -> int:
        """Slots of the main line."""
        return self.frames * self.group

    @property
    def turn(self) -> int:
        """Slots of a turn: two markers around the question, one before the answer."""
        return 2 * self.words + 3

    @property
    def others(self) -> int:
        """Slots that are no tokens of frames."""
        return self.frames + self.turns * self.turn

    @property
    def spans(self) -> RowShape:
        """The same for hooks: every frame is a clip."""
        return RowShape(self.frames, self.each, self.others, self.each)


class Rows(NamedTuple):
    """Rows of streams.

    Attributes:
      ids: of the stream, of slots that have one; 0 of tokens of frames.
      visual: the token of a frame that a slot is, over all frames; -1 of others.
      exists: no padding.
      tags: what ``MASK`` compares.
      asks: the slots that predict something: the last of every frame, then of every turn the end of its question, and
        ``answer`` and the words behind it.
      target: what each of them is to predict.
      silent: where that is silence …
      speaks: … and where it is what is said, ``answer`` in front and ``end`` behind it.
    """

    ids: Int[Array, "batch slots"]
    visual: Int[np.ndarray, "slots"]
    exists: Bool[Array, "batch slots"]
    tags: dict[str, Int[Array, "batch slots"]]
    asks: Int[Array, "batch predictions"]
    target: Int[Array, "batch predictions"]
    silent: Bool[Array, "batch predictions"]
    speaks: Bool[Array, "batch predictions"]

    def spans(self, shape: StreamShape) -> Spans:
        """Where the tokens of frames stand, for hooks of a backbone."""
        count = len(self.exists)
        clip = np.where(self.visual >= 0, self.visual // shape.each, -1)
        token = np.where(self.visual >= 0, self.visual % shape.each, 0)
        whole = [jnp.broadcast_to(jnp.asarray(x, jnp.int32), self.ids.shape) for x in (clip, token)]
        asking = jnp.zeros((count, 1), jnp.int32)
        return Spans(whole[0], whole[1], jnp.ones(self.ids.shape), asking, None, shape.spans)


def build_rows(turns: Turns, shape: StreamShape, vocabulary: Vocabulary, text: str = "text") -> Rows:
    """The rows of streams whose frames all exist; texts are of a range of the vocabulary."""
    begin, separator, question, answer, end = map(vocabulary.word, MARKERS)
    start, batch = vocabulary[text].start, len(turns.frame)
    there = turns.frame >= 0
    asked, said = there & turns.asked_mask.any(-1), there & turns.said_mask.any(-1)

    def slot(word: int) -> Array:
        return jnp.full((batch, shape.turns, 1), word, jnp.int32)

    parts = [slot(question), turns.asked + start, slot(end), slot(answer), turns.said + start]
    own = [turns.asked_mask & asked[..., None], turns.said_mask & said[..., None]]
    of_turn = jnp.concatenate(parts, -1)
    exists = jnp.concatenate([asked[..., None], own[0], asked[..., None], said[..., None], own[1]], -1)
    # The main line is the same in all rows.
    within, frame = np.arange(shape.main) % shape.group, np.arange(shape.main) // shape.group
    ids = np.where(within > 0, 0, np.where(frame == 0, begin, separator)).astype(np.int32)
    visual = np.full(shape.main + shape.turns * shape.turn, -1)
    visual[: shape.main] = np.where(within > 0, frame * shape.each + within - 1, -1)
    index = (turns.frame[..., None] + 1) * shape.group + jnp.cumsum(exists, -1, dtype=jnp.int32) - 1
    number = jnp.broadcast_to(1 + jnp.arange(shape.turns)[:, None], exists.shape)
    behind = jnp.broadcast_to(turns.frame[..., None], exists.shape)

    def joined(main: np.ndarray, turn: Array) -> Array:
        whole = jnp.broadcast_to(jnp.asarray(main), (batch, shape.main)).astype(turn.dtype)
        return jnp.concatenate([whole, turn.reshape(batch, -1)], axis=1)

    tags = {INDEX: (np.arange(shape.main), index), TURN: (np.zeros(shape.main), number), FRAME: (frame, behind)}
    predicted = _predicted(turns, shape, asked, said, separator, answer, end, start)
    return Rows(
        joined(ids, of_turn),
        visual,
        joined(np.ones(shape.main, bool), exists),
        {tag: joined(main, turn.astype(jnp.int32)) for tag, (main, turn) in tags.items()},
        *predicted,
    )


def _predicted(
    turns: Turns,
    shape: StreamShape,
    asked: Bool[Array, "batch turns"],
    said: Bool[Array, "batch turns"],
    separator: int,
    answer: int,
    end: int,
    start: int,
) -> tuple[Array, Array, Array, Array]:
    """``asks``, ``target``, ``silent`` and ``speaks`` of ``Rows``."""
    batch, words = len(turns.frame), shape.words
    last = jnp.broadcast_to((jnp.arange(shape.frames) + 1) * shape.group - 1, (batch, shape.frames))
    first = shape.main + shape.turn * jnp.arange(shape.turns)[:, None]
    # Of a turn: the end of its question, ``answer`` and the words of it.
    slots = first + jnp.concatenate([jnp.array([words + 1]), words + 2 + jnp.arange(words + 1)])
    asks = jnp.concatenate([last, jnp.broadcast_to(slots.reshape(1, -1), (batch, slots.size))], axis=1)
    # What is said unasked begins at the frame.
    rows, unasked = jnp.arange(batch)[:, None], said & ~asked
    frame = jnp.where(unasked, turns.frame, shape.frames)
    speaks = jnp.zeros((batch, shape.frames + 1), bool).at[rows, frame].set(True)[:, :-1]
    decided = jnp.where(said, answer, separator)[..., None]
    count = turns.said_mask.sum(-1, keepdims=True)
    following = jnp.pad(turns.said + start, ((0, 0), (0, 0), (0, 1)))
    following = jnp.where(jnp.arange(words + 1) == count, end, following)
    text = said[..., None] & (jnp.arange(words + 1) <= count)
    flat = (batch, shape.turns * (words + 2))
    of_turns = jnp.concatenate([decided, following], -1).reshape(flat)
    silent = jnp.concatenate([(asked & ~said)[..., None], jnp.zeros_like(text)], -1).reshape(flat)
    saying = jnp.concatenate([(asked & said)[..., None], text], -1).reshape(flat)
    target = jnp.concatenate([jnp.where(speaks, answer, separator), of_turns], axis=1)
    silent, saying = jnp.concatenate([~speaks, silent], axis=1), jnp.concatenate([speaks, saying], axis=1)
    return asks, jnp.where(silent | saying, target, 0).astype(jnp.int32), silent, saying
