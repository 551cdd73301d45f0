"""When a model of streams speaks, what it says, and how it answers at any time."""

from typing import Any

import numpy as np

from videogen.data.streams_source import KINDS, NOT_YET, TOLD, TURNS
from videogen.inference.streaming import Session, Settings, open_session
from videogen.metrics.streams import WITHIN
from videogen.metrics.turns import spoken_events

SESSIONS, SHOWN = 32, 12
"""Streams that are watched frame by frame, and streams of the report."""

Said = dict[str, np.ndarray]
"""Of one stream: the frames behind which something was said unasked, ``frame``, and the ``text``; the frame behind
which the question about the future was answered, ``answered`` (-1: never), and the ``answer``."""


def streams(evaluation: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Turns of held-out streams, and what is said in sessions of the first ``SESSIONS`` of them.

    Of all streams, the truth before each word given, what ``metrics.streams.judged`` says. Of sessions, in which
    nothing is given: ``told_right``, the share of events spoken about within ``WITHIN`` frames in exactly the true
    words, and ``awaited_right``, the share of questions about the future, asked when they are too early, whose first
    answer is the true one and comes within ``WITHIN`` frames of the event.

    Args:
      evaluation: ``protocols.Evaluation`` of a model of streams.
    """
    loaded, clips = evaluation.loaded, evaluation.clips
    batches = clips.batches(min(evaluation.batch_size, len(clips.samples)), loaded.text)
    found: dict[str, Any] = loaded.task.evaluate(loaded.modules, batches, evaluation.seed, evaluation.keep)
    session, watched = open_session(loaded, Settings()), clips.samples[:SESSIONS]
    said = []
    for i, sample in enumerate(watched):
        said.append(evaluation.keep(f"session_{i}", lambda sample=sample: _watched(session.fresh(), sample)))
    found |= _of_sessions(watched, said)
    found |= {"threshold": session.threshold, "sessions": len(watched), "forgets": session.eye.watcher.evict}
    pictures = {
        "videos": evaluation.videos[:SHOWN],
        "prompts": np.array([_lines(_told(sample)) for sample in watched[:SHOWN]]),
        "readings": np.array([_lines(zip(one["frame"], one["text"], strict=True)) for one in said[:SHOWN]]),
    }
    return {"streams": found, "clips": len(clips.samples)}, pictures


def _turns(sample: dict[str, Any], kind: str) -> list[tuple[int, str, str]]:
    """Frame, question and answer of the turns of a kind, by their frames."""
    own = [i for i in range(TURNS) if sample["turn_frame"][i] >= 0 and sample["turn_kind"][i] == KINDS.index(kind)]
    return sorted((int(sample["turn_frame"][i]), sample[f"asked_{i}"], sample[f"said_{i}"]) for i in own)


def _told(sample: dict[str, Any]) -> list[tuple[int, str]]:
    """Frame and words of what is to be told."""
    return [(frame, text) for frame, _, text in _turns(sample, TOLD)]


def _watched(session: Session, sample: dict[str, Any]) -> Said:
    """What is said of a stream, frame by frame."""
    asked = {frame: question for frame, question, _ in _turns(sample, NOT_YET)}
    frames: list[int] = []
    texts: list[str] = []
    answered, answer = -1, ""
    for number, (frame, second) in enumerate(zip(sample["video"], sample["times"], strict=True)):
        for one in session.push(frame, float(second)):
            if one.question:
                answered, answer = number, one.text
            else:
                frames, texts = [*frames, number], [*texts, one.text]
        if number in asked and (one := session.ask(asked[number])):
            answered, answer = number, one.text
    return {
        "frame": np.array(frames, np.int32),
        "text": np.array(texts, np.str_),
        "answered": np.array(answered),
        "answer": np.array(answer, np.str_),
    }


def _of_sessions(samples: list[dict[str, Any]], said: list[Said]) -> dict[str, float]:
    """Shares of what was said rightly and in time."""
    right = events = 0
    awaited: list[bool] = []
    for sample, one in zip(samples, said, strict=True):
        told = _told(sample)
        for frame, text in told:
            own = [int(f) for f, t in zip(one["frame"], one["text"], strict=True) if t == text]
            right += spoken_events(own, [frame], WITHIN)[0]
        events += len(told)
        if _turns(sample, NOT_YET):
            ((event, _, text),) = _turns(sample, "future")
            in_time = event <= int(one["answered"]) <= event + WITHIN
            awaited.append(in_time and str(one["answer"]) == text)
    found = {"told_right": right / max(events, 1)}
    return found | ({"awaited_right": float(np.mean(awaited))} if awaited else {})


def _lines(told: Any) -> str:
    return "; ".join(f"{frame}: {text}" for frame, text in told) or "(nothing)"
