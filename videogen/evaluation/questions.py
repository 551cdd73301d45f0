"""How often a video-language model answers held-out questions rightly."""

import functools
from typing import Any

import numpy as np

SHOWN = 12
"""Clips of the report."""


def questions(evaluation: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``chosen``, the share of questions with options whose likeliest option is right, ``chance``, that of guessing,
    ``written``, the share of written answers that are right letter by letter, ``kinds``, the same of each kind, the
    ``loss`` in nats per id, and what an answer costs (``Answerer.costs``).

    Args:
      evaluation: ``protocols.Evaluation`` of a run that ``answers``.
    """
    loaded, clips = evaluation.loaded, evaluation.clips
    loaded.task.texts = loaded.text
    answerer = loaded.task.answering(loaded.modules)
    batches = clips.batches(min(evaluation.batch_size, len(clips.samples)), loaded.text)
    parts = [
        evaluation.keep(f"answers_{i}", functools.partial(answerer.measured, batch)) for i, batch in enumerate(batches)
    ]
    found: dict[str, Any] = {"kinds": {}}
    for name, value in answerer.summary(parts).items():
        name, _, kind = name.partition("/")
        (found["kinds"].setdefault(kind, {}) if kind else found)[name] = value
    said = np.concatenate([part["said"] for part in parts])[:SHOWN]
    right = np.concatenate([part["open"] for part in parts])[:SHOWN]
    pictures = {
        "videos": evaluation.videos[:SHOWN],
        "prompts": np.array([f"{own['question']} {answer}" for own, answer in zip(clips.samples, said, strict=False)]),
        "readings": np.array([f"true: {own['answer']}" for own in clips.samples[:SHOWN]]),
        "correct": right[:, None],
    }
    return {"answers": found | answerer.costs(), "clips": len(clips.samples)}, pictures
