"""How often a model tells the class of a clip."""

from typing import Any

import numpy as np

from videogen.errors import UserError

AT = (1, 5)
SHOWN = 12
"""Clips of the report."""


def recognition(evaluation: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``top_1`` and ``top_5`` in percent over the held-out clips, and ``chance``, that of a guess.

    A tie counts as the chance that a random order of the tied classes gives; a clip whose logits are not finite is a
    miss.

    Args:
      evaluation: ``protocols.Evaluation`` of a run that ``recognises``.
    """
    loaded, clips, names = evaluation.loaded, evaluation.clips, evaluation.source.classes
    if any("label" not in sample for sample in clips.samples):
        raise UserError("the clips have no labels: recognition needs a source with classes")
    batches = clips.batches(min(evaluation.batch_size, len(clips.samples)), loaded.text)
    logits = loaded.task.recognised(loaded.modules, batches, evaluation.keep)
    labels = np.array([sample["label"] for sample in clips.samples])
    found = {f"top_{k}": 100 * float(top(logits, labels, k).mean()) for k in AT}
    best = logits.argmax(1)[:SHOWN]
    pictures = {
        "videos": evaluation.videos[:SHOWN],
        "prompts": np.array([names[i] if i < len(names) else str(i) for i in best]),
        "readings": np.array([f"true: {names[i]}" for i in labels[:SHOWN]]),
        "correct": (best == labels[:SHOWN])[:, None],
    }
    found |= {"chance": 100 / logits.shape[1]}
    return {"recognition": found, "clips": len(labels)}, pictures


def top(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The chance of every clip that its class is among the ``k`` likeliest."""
    logits = np.asarray(logits, np.float64)
    finite = np.isfinite(logits).all(1)
    known = np.where(finite[:, None], logits, 0.0)
    own = np.take_along_axis(known, labels[:, None], axis=1)
    greater, equal = (known > own).sum(1), (known == own).sum(1)
    return np.where(finite, np.clip((k - greater) / equal, 0, 1), 0.0)
