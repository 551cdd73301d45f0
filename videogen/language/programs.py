"""Prompt programs: questions that are asked before the question, as data (X4 of the survey of reducers).

``asking.run`` asks them: a language model that reads text alone, and a video-language model.
"""

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from videogen import building
from videogen.errors import UserError, near_matches, shown
from videogen.ranges import Count, OneOf

ASKED = ("text", "video", "segment", "frame")
"""Who is asked: the language model; or the video-language model about the whole video, each segment, or each frame."""

READINGS = ("text", "list", "yes")
"""What an answer is read as: itself, a list of texts, or yes and no."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Questions of one kind.

    Attributes:
      name: of what is found; a place ``{name}`` in later prompts.
      prompt: with places: ``{question}``, names of earlier steps, ``{item}``.
      asked: one of ``ASKED``.
      read: one of ``READINGS``; of frames ``yes`` gives a probability for each.
      each: an earlier list, of which every entry is asked about alone, as ``{item}``; empty: one question.
      when: an earlier result without which the step is left out, and finds nothing; empty: always asked.
      otherwise: the prompt in place of ``prompt`` where the step named by ``when`` has found nothing.
      segments: how many there are, of ``asked=segment``.
      line: how an answer stands in later prompts: ``{text}``, ``{start}`` and ``{stop}`` in seconds.
      joined: between answers.
      longest: tokens of an answer at most.
      most: entries of a list at most, the first ones.
    """

    name: str
    prompt: str
    asked: Annotated[str, OneOf(*ASKED)] = "text"
    read: Annotated[str, OneOf(*READINGS)] = "text"
    each: str = ""
    when: str = ""
    otherwise: str = ""
    segments: Count = 2
    line: str = "{text}"
    joined: str = " "
    longest: Count = 64
    most: Count = 16

    def __post_init__(self):
        building.check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Steps in their order, and the prompt that ends them.

    Attributes:
      steps: each may use what earlier ones found.
      final: the last prompt, about the whole video, with places as in ``Step.prompt``.
      needs: the step that must have found something; else the last prompt is the question alone. Empty: none.
      weights: the step whose probabilities of frames the last prompt is asked with; empty: none.
      longest: tokens of the last answer at most.

    Raises:
      UserError: a prompt has a place, or names a step, that is not known there.
    """

    steps: Sequence[Step] = ()
    final: str = "{question}"
    needs: str = ""
    weights: str = ""
    longest: Count = 16

    def __post_init__(self):
        known = ["question"]
        for step in self.steps:
            if step.name in (*known, "item"):
                raise UserError(f"two results of a program are called {step.name!r}; rename one")
            own = [*known, "item"] if step.each else known
            _check_places(step.prompt, own)
            _check_places(step.otherwise, own)
            _check_places(step.line, ("text",) if step.asked == "text" else ("text", "start", "stop"))
            _check_names((step.each, step.when), known)
            known.append(step.name)
        _check_places(self.final, known)
        _check_names((self.needs, self.weights), known)


def _check_places(prompt: str, known: Sequence[str]) -> None:
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise UserError(f"a prompt is no text with places ({error}); write {{{{ for a brace: {shown(prompt)}") from None
    for _, place, layout, conversion in parts:
        if place is not None and (place not in known or layout or conversion):
            raise UserError(f"a prompt has the place {{{place}}}, which is not known there{near_matches(place, known)}")


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in filter(None, names):
        if name not in known:
            raise UserError(f"a program names the step {name!r}, which is not one before{near_matches(name, known)}")


DECOMPOSE = (
    "Break this question about a video into simpler questions about what changes over time. Answer with a JSON list of "
    "texts.\nQuestion: {question}"
)
NEEDED = "Does one have to see physical objects to answer this question? Answer yes or no.\nQuestion: {question}"
OBJECTS = "Which objects does one have to see to answer this question? Answer with a JSON list.\nQuestion: {question}"
CONCRETE = "Leave out of this list what is no physical object. Answer with a JSON list.\nList: {named}"
SHOWS = "Does the image contain any object of {objects}? A. yes, B. no"
SUFFICES = (
    "Does the image contain sufficient information to answer the given question? A. yes, B. no\nQuestion: {question}"
)


def plain() -> Program:
    """The question alone."""
    return Program()


def decompose(*, most: Count = 8, longest: Count = 64) -> Program:
    """Sub-questions about what changes, answered on the same frames; the answers stand before the question (D-CoDe).

    Args:
      most: sub-questions.
      longest: tokens of the answer to one.
    """
    return Program(
        steps=(
            Step(name="parts", prompt=DECOMPOSE, read="list", most=most),
            Step(name="answers", prompt="{item}", asked="video", each="parts", longest=longest),
        ),
        final="{answers} {question}",
        needs="answers",
    )


def decouple(*, shows: str = SHOWS, suffices: str = SUFFICES) -> Program:
    """Weights of frames: the probability that a frame shows what the question asks for (QuoTA).

    Args:
      shows: what is asked about a frame, with the place ``{objects}``.
      suffices: the same where a question asks for no object; empty: nothing, and all frames count the same.
    """
    return Program(
        steps=(
            Step(name="needed", prompt=NEEDED, read="yes"),
            Step(name="named", prompt=OBJECTS, read="list", when="needed"),
            Step(name="objects", prompt=CONCRETE, read="list", when="named"),
            Step(
                name="helps",
                prompt=shows,
                otherwise=suffices,
                when="objects",
                asked="frame",
                read="yes",
                longest=1,
            ),
        ),
        weights="helps",
    )


def progressive(*, segments: Count = 2, longest: Count = 64) -> Program:
    """What each segment says that helps, in order, before the question (TDC's LVCoT).

    Args:
      segments: of equal length.
      longest: tokens of what is said of one.
    """
    return Program(
        steps=(
            Step(
                name="summaries",
                prompt="Summarise the key information of this segment to help answer: {question}",
                asked="segment",
                segments=segments,
                line="From {start} s to {stop} s: {text}",
                joined="\n",
                longest=longest,
            ),
        ),
        final="{summaries}\n{question}",
        needs="summaries",
    )


PROGRAMS: dict[str, Callable[..., Program]] = {
    "plain": plain,
    "decompose": decompose,
    "decouple": decouple,
    "progressive": progressive,
}
"""Name -> what makes the program."""


def build_program(config: Mapping[str, Any]) -> Program:
    """A program from its section ``{name, …}``."""
    return building.build(PROGRAMS, config, "program")
