"""How well a model of streams does, from what it predicts of turns whose truth is known (VideoLLM-online, O11)."""

from collections.abc import Mapping

import numpy as np

from videogen.data.streams_source import KINDS, NOT_YET, TOLD
from videogen.metrics.turns import Turn, mean_of_turns, spoken_events

WITHIN = 2
"""Frames behind an event within which it counts as spoken about."""

Predicted = Mapping[str, np.ndarray]
"""Of every stream, ``[streams, predictions]``: ``silence``, the probability of silence; ``right``, whether the target
is the likeliest id, and its ``nats``; where the target is silence, ``silent``, and where what is said, ``speaks``. The
predictions are those behind every frame; then, for every turn, that behind its question, behind ``answer`` and behind
every word. ``turn_frame`` and ``turn_kind`` ``[streams, turns]`` are those of ``data.streams_source``."""


def judged(found: Predicted, frames: int, fps: float, threshold: float) -> dict[str, float]:
    """Metrics of streams.

    ``loss`` is in nats per labelled place. ``perplexity``, ``time_difference`` (seconds), ``correctness`` and
    ``fluency`` are means over the events that are told (``metrics.turns``): a turn begins behind the event before it,
    and is looked at until the next event. ``spoken`` is the share of events that the model speaks about within
    ``WITHIN`` frames, ``false_per_minute`` how often it says something where nothing happens. ``right/KIND`` is the
    share of questions of a kind that are answered when they are due, every word the likeliest one; ``not_yet`` that of
    questions about the future at which the model is silent while it is too early.

    Args:
      found: what was predicted.
      frames: of a stream.
      fps: frames per second.
      threshold: the model is silent while silence is at least so probable.
    """
    labelled = found["silent"] | found["speaks"]
    turns: list[Turn] = []
    answers: dict[str, list[bool]] = {}
    spoken = false = events = 0
    for row in range(len(labelled)):
        stream = {name: array[row] for name, array in found.items()}
        told = _of_kind(stream, KINDS.index(TOLD))
        turns += _turns(stream, told, frames, fps, threshold)
        speaks = np.flatnonzero(stream["silence"][:frames] < threshold).tolist()
        hits, wrong = spoken_events(speaks, [int(stream["turn_frame"][i]) for i in told], WITHIN)
        spoken, false, events = spoken + hits, false + wrong, events + len(told)
        for number, kind in enumerate(KINDS):
            for i in _of_kind(stream, number) if kind != TOLD else ():
                name = "not_yet" if kind == NOT_YET else f"right/{kind}"
                answers.setdefault(name, []).append(_answered(stream, i, frames, kind, threshold))
    metrics = {"loss": float(found["nats"][labelled].sum() / max(labelled.sum(), 1)), **mean_of_turns(turns)}
    minutes = len(labelled) * frames / fps / 60
    metrics |= {"spoken": spoken / max(events, 1), "false_per_minute": false / minutes}
    return metrics | {name: float(np.mean(each)) for name, each in sorted(answers.items())}


def _of_kind(stream: Predicted, number: int) -> list[int]:
    """The turns of a kind that are there, in the order of their frames."""
    frame = stream["turn_frame"]
    return [int(i) for i in np.argsort(frame, kind="stable") if frame[i] >= 0 and stream["turn_kind"][i] == number]


def _behind(stream: Predicted, name: str, i: int, frames: int) -> np.ndarray:
    """Predictions of turn ``i``: behind its question, behind ``answer``, behind every word."""
    return stream[name][frames:].reshape(len(stream["turn_frame"]), -1)[i]


def _turns(stream: Predicted, told: list[int], frames: int, fps: float, threshold: float) -> list[Turn]:
    """What was predicted of every event: ``answer`` behind its frame, then its words and their end."""
    found, begin = [], 0
    ends = [*(int(stream["turn_frame"][i]) for i in told[1:]), frames]
    for i, end in zip(told, ends, strict=True):
        frame, said = int(stream["turn_frame"][i]), _behind(stream, "speaks", i, frames)
        right, nats = (
            np.append(stream[name][frame], _behind(stream, name, i, frames)[said]) for name in ("right", "nats")
        )
        found.append(Turn(stream["silence"][begin:end], frame - begin, right, -nats, fps, threshold))
        begin = frame + 1
    return found


def _answered(stream: Predicted, i: int, frames: int, kind: str, threshold: float) -> bool:
    """Whether a question is answered rightly, or not answered while it is too early."""
    speaks = bool(_behind(stream, "silence", i, frames)[0] < threshold)
    if kind == NOT_YET:
        return not speaks
    said = _behind(stream, "speaks", i, frames)[1:]
    return speaks and bool(_behind(stream, "right", i, frames)[1:][said].all())
