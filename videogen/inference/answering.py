"""What a video-language model answers about a video file, and how long it takes."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from videogen.data.inputs import sample_clip
from videogen.data.video_io import read_spread
from videogen.errors import UserError
from videogen.parallel import inside, on_host, spread
from videogen.training.loading import Loaded

Ids = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Watched:
    """The frames of a video that a model sees.

    Attributes:
      frames: uint8.
      times: of each, in seconds from the first frame of the file.
      trained: seconds from the first to the last frame of clips in training; ``None``: unknown.
    """

    frames: UInt8[np.ndarray, "time height width 3"]
    times: Float[np.ndarray, "time"]
    trained: float | None

    @property
    def seconds(self) -> float:
        """From the first to the last frame."""
        return float(self.times[-1] - self.times[0])

    @property
    def rate(self) -> float:
        """Frames per second that are seen; 0 of a picture."""
        return (len(self.times) - 1) / self.seconds if self.seconds else 0.0

    def lines(self) -> list[str]:
        """What is worth knowing of them, for people."""
        said = [f"{len(self.times)} frames over {self.seconds:.2f} s: {self.rate:.3g} frames per second"]
        if self.trained and self.seconds > 1.01 * self.trained:
            said.append(f"the video is longer than the clips of training, {self.trained:.2f} s: answers may be wrong")
        return said


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
      question: it.
      answer: what the model says, or the likeliest option.
      before, after: tokens of the video behind the encoder, and behind all reducers.
      first: seconds to the first id of the answer: seeing, reducing and reading; of kept tokens without the first.
      each: seconds of each further id; with options those to read them all.
      likely: the share of each option, where there are any.
    """

    question: str
    answer: str
    before: float
    after: float
    first: float
    each: float
    likely: tuple[float, ...] = ()

    def lines(self, options: Sequence[str] = ()) -> list[str]:
        """The question, the answer and what it took, for people."""
        said = [f"{self.question}  {self.answer}"]
        if options:
            shares = zip(options, self.likely, strict=True)
            said.append("  " + ", ".join(f"{option} {share:.1%}" for option, share in shares))
        behind = "to read the options" if options else "each token"
        tokens = f"  {self.before:.0f} tokens, {self.after:.0f} behind the reducers"
        return [*said, f"{tokens}; {self.first:.3f} s to the first token, {self.each:.4f} s {behind}"]


def watch(loaded: Loaded, video: str) -> Watched:
    """Frames over the whole of a video file, as many as a clip of training has, at most at its rate.

    Raises:
      UserError: it is missing, has too few frames, or cannot be read.
    """
    clip = sample_clip(loaded.config)
    decoded = read_spread(video, dataclasses.replace(clip, window=None, fps=loaded.config.data.clip.fps or None))
    rate = loaded.config.data.get("frame_rate") or clip.fps
    return Watched(decoded.video, decoded.times, (clip.frames - 1) / rate if rate else None)


def ask(
    loaded: Loaded, watched: Watched, questions: Sequence[str], options: Sequence[str] = (), budget: int | None = None
) -> Iterator[Reply]:
    """Answers to questions about a video, each of them as if it were the first.

    Tokens that do not depend on a question are kept from one to the next. Compiling is in none of the times.

    Args:
      loaded: a video-language model.
      watched: of ``watch``.
      questions: at least one word each.
      options: possible answers, of which the likeliest is chosen; without any the answer is written.
      budget: tokens behind the last reducer; ``None``: as the config says.

    Raises:
      UserError: as ``check`` does, or the reducers cannot have the budget.
    """
    said, choices = check(loaded, questions, options)
    answerer = loaded.task.answering(loaded.modules, budget)
    shown = {"video": watched.frames[None], "times": watched.times[None].astype(np.float32)}
    with inside(answerer.mesh):
        states, put = answerer.states, lambda batch: spread(batch, answerer.mesh)
        shown = put(shown)
        seen, seeing = _timed(_compiled(answerer.see, states, shown), states, shown)
        room = len(choices) * loaded.config.text.tokenizer.length
        begin, further = None, None
        for number, (question, ids) in enumerate(zip(questions, said, strict=True)):
            asked = put({"question_ids": ids[0], "question_mask": ids[1]})
            begin = begin or _compiled(answerer.begun, states, seen, asked, room=room)
            (state, _, report), first = _timed(begin, states, seen, asked)
            # What is kept of the video was seen for the first question.
            first += 0.0 if number else seeing
            counted = {"before": float(report["tokens"]), "after": float(report["kept"]), "first": first}
            if choices:
                both = asked | put(_of_options(choices))
                further = further or _compiled(answerer.compared, states, state, both, clips=1)
                scores, each = _timed(further, states, state, both)
                shares = np.exp(on_host(jax.nn.log_softmax(scores[0])))
                answer = options[int(shares.argmax())]
                yield Reply(question, answer, **counted, each=each, likely=tuple(map(float, shares)))
                continue
            further = further or _compiled(answerer.gone_on, states, state, clips=1)
            (ids, exists), whole = _timed(further, states, state)
            answer = loaded.text.decode(on_host(ids)[0][on_host(exists)[0]])
            yield Reply(question, answer or "(nothing)", **counted, each=whole / (ids.shape[1] + 1))


def check(loaded: Loaded, questions: Sequence[str], options: Sequence[str] = ()) -> tuple[list[Ids], list[Ids]]:
    """The ids of questions and options, ``[1, length]`` each, and which there are.

    Raises:
      UserError: this is no video-language model, or a text is empty or too long.
    """
    if not loaded.task.answers:
        raise UserError(f"{loaded.directory} holds a {loaded.config.task}, and no model that answers questions")
    asked = [ids_of(loaded, text, "--question") for text in questions]
    return asked, [ids_of(loaded, text, "an option") for text in options]


def ids_of(loaded: Loaded, text: str, what: str) -> Ids:
    """The ids of a text, ``[1, length]``, and which there are.

    Raises:
      UserError: it is empty or too long; the message calls it ``what``.
    """
    if not text.strip():
        raise UserError(f"{what} is empty; write what you want to know")
    if loaded.text.is_cut(text):
        longest = loaded.config.text.tokenizer.length
        raise UserError(f"{what} has more than {longest} tokens (text.tokenizer.length): {text[:60]!r}")
    return loaded.text.encode([text])


def _of_options(choices: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    ids, masks = (np.concatenate(arrays)[None] for arrays in zip(*choices, strict=True))
    return {"options_ids": ids, "options_mask": masks}


def _compiled(function: Any, *arguments: Any, **static: Any) -> Any:
    return jax.jit(function, static_argnames=tuple(static)).lower(*arguments, **static).compile()


def _timed(compiled: Any, *arguments: Any) -> tuple[Any, float]:
    """What a compiled function gives, and the seconds that it takes."""
    start = time.perf_counter()
    found = jax.block_until_ready(compiled(*arguments))
    return found, time.perf_counter() - start


def parse_options(text: str | None) -> list[str]:
    """Options that are separated by commas."""
    return [option.strip() for option in text.split(",")] if text else []
