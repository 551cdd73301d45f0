"""Running a prompt program: what it asks, in order, and what that costs beside the last answer.

Nothing is known of the models but how they are called. Every text is kept.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from videogen.language.parsing import read_list, read_yes
from videogen.language.programs import Program, Step

LanguageModel = Callable[[str], str]
"""A model that goes on with a text."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a question is about: a video, or a part of it.

    Attributes:
      video: whatever the video-language model takes.
      start, stop: seconds from its beginning; both the same for a single frame.
      weights: how much each frame counts; ``None``: all the same.
    """

    video: Any
    start: float
    stop: float
    weights: tuple[float, ...] | None = None


class Answer(NamedTuple):
    """What a video-language model says.

    Attributes:
      text: the answer.
      tokens: how many were drawn.
      seconds: how long it took.
      yes: the probability that it is "yes" (or A); ``None`` where the model does not tell.
    """

    text: str
    tokens: int
    seconds: float
    yes: float | None = None


class Ask(Protocol):
    """A video-language model."""

    def __call__(self, seen: Seen, prompt: str, longest: int) -> Answer:
        """The answer to a prompt about what is seen, of at most ``longest`` tokens."""


class Exchange(NamedTuple):
    """A question that was asked and its answer.

    Attributes:
      step: its name; ``final`` for the last.
      prompt, text: in full.
      tokens: of the answer.
      seconds: it took.
      start, stop: of the part of the video; ``None`` for a question that is about none.
    """

    step: str
    prompt: str
    text: str
    tokens: int
    seconds: float
    start: float | None = None
    stop: float | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program found.

    Attributes:
      answer: to the question.
      exchanges: everything that was asked, the question last.
      results: by step: texts, lists, truths or probabilities.
      unread: answers that could not be read as they should.
      weights: of the frames, where the program finds any.
    """

    answer: Answer
    exchanges: tuple[Exchange, ...]
    results: Mapping[str, Any]
    unread: int
    weights: tuple[float, ...] | None

    @property
    def extra_tokens(self) -> int:
        """Tokens of all answers but the last."""
        return sum(one.tokens for one in self.exchanges[:-1])

    @property
    def extra_seconds(self) -> float:
        """Time of all questions but the last."""
        return sum(one.seconds for one in self.exchanges[:-1])


def words(text: str) -> int:
    """Words between blanks: how long a text is where no tokenizer is at hand."""
    return len(text.split())


def tiles(duration: float, count: int) -> list[tuple[float, float]]:
    """Start and stop in seconds of so many equal segments, which begin at 0 and end at ``duration``."""
    edges = [duration * i / count for i in range(count)] + [duration]
    return list(zip(edges[:-1], edges[1:], strict=True))


class _Run:
    """A program that is running: what was found and asked so far."""

    def __init__(self, ask: Ask, language_model: LanguageModel, count: Callable[[str], int], clock: Callable):
        self.ask, self.language_model, self.count, self.clock = ask, language_model, count, clock
        self.exchanges: list[Exchange] = []
        self.results: dict[str, Any] = {}
        self.texts: dict[str, str] = {}
        self.unread = 0

    def step(self, step: Step, whole: Seen, times: Sequence[float]) -> None:
        """Asks what a step asks, and keeps what it finds."""
        prompt, found, lines = step.prompt, [], []
        if step.when and not self.results[step.when]:
            prompt = step.otherwise
        items = self.results[step.each] if step.each else [None]
        for seen in self._seen(step, whole, times) if prompt else []:
            for item in items:
                text = prompt.format(**self.texts, **({} if item is None else {"item": item}))
                answer = self._asked(step, seen, text)
                value = self._read(step, answer)
                found += value if step.read == "list" else [value]
                place = {} if seen is None else {"start": f"{seen.start:g}", "stop": f"{seen.stop:g}"}
                lines.append(step.line.format(text=answer.text.strip(), **place))
        many = step.read == "list" or step.each or step.asked in ("segment", "frame")
        self.results[step.name] = found if many else found[0] if found else None
        self.texts[step.name] = ", ".join(found) if step.read == "list" else step.joined.join(lines)

    def _seen(self, step: Step, whole: Seen, times: Sequence[float]) -> list[Seen | None]:
        if step.asked == "text":
            return [None]
        if step.asked == "video":
            return [whole]
        parts = tiles(whole.stop - whole.start, step.segments)
        if step.asked == "frame":
            parts = [(t, t) for t in times]
        return [dataclasses.replace(whole, start=whole.start + a, stop=whole.start + b) for a, b in parts]

    def _asked(self, step: Step, seen: Seen | None, prompt: str) -> Answer:
        if seen is not None:
            answer = self.ask(seen, prompt, step.longest)
            place = (seen.start, seen.stop)
        else:
            begun = self.clock()
            text = self.language_model(prompt)
            answer, place = Answer(text, self.count(text), self.clock() - begun), (None, None)
        self.exchanges.append(Exchange(step.name, prompt, answer.text, answer.tokens, answer.seconds, *place))
        return answer

    def _read(self, step: Step, answer: Answer) -> Any:
        """What an answer says; nothing, counted, where it cannot be read."""
        if step.read == "text":
            return answer.text
        if step.read == "list":
            found = read_list(answer.text)
            self.unread += found is None
            return (found or [])[: step.most]
        if step.asked == "frame" and answer.yes is not None:
            return float(answer.yes)
        found = read_yes(answer.text)
        self.unread += found is None
        if step.asked == "frame":
            return 0.5 if found is None else float(found)
        return bool(found)


def run(
    program: Program,
    ask: Ask,
    language_model: LanguageModel,
    video: Any,
    question: str,
    *,
    duration: float,
    times: Sequence[float] = (),
    count: Callable[[str], int] = words,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Asks what a program asks, and the question at last.

    Args:
      program: what is asked.
      ask: the video-language model.
      language_model: reads text alone.
      video: whatever ``ask`` takes.
      question: as it would be asked without a program.
      duration: of the video in seconds.
      times: of its frames in seconds, for programs that ask about frames.
      count: tokens of a text of the language model.
      clock: seconds, for what the language model takes.
    """
    state, whole = _Run(ask, language_model, count, clock), Seen(video, 0.0, float(duration))
    state.texts["question"] = question
    for step in program.steps:
        state.step(step, whole, times)
    prompt, weights = program.final.format(**state.texts), None
    if program.needs and not state.results[program.needs]:
        prompt = question
    if program.weights:
        found = state.results[program.weights]
        # Where no frame helps, all count the same.
        weights = tuple(found) if any(found) else (1.0,) * len(found)
    answer = ask(dataclasses.replace(whole, weights=weights), prompt, program.longest)
    state.exchanges.append(Exchange("final", prompt, answer.text, answer.tokens, answer.seconds, 0.0, whole.stop))
    return Outcome(answer, tuple(state.exchanges), state.results, state.unread, weights)
