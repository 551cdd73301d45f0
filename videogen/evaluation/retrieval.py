"""How often the right clip is found for a caption, and the right caption for a clip."""

from typing import Any

import numpy as np

from videogen.metrics.retrieval import DUAL_SOFTMAX, Places, dual_softmax
from videogen.tasks.ranking import Said

SHOWN = 12
"""Clips of the report, and queries that are named."""


def retrieval(evaluation: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recall over the held-out clips, both ways.

    Of several captions of a clip each asks (caption rule ``all``), and any of them is right for it.

    Clips are ranked by the cosines of two towers, or by the scores of matching of a model of clips and words.

    ``dual_softmax`` beside them are the same numbers after re-ranking with all queries, at the trained scale.

    Args:
      evaluation: ``protocols.Evaluation`` of a run that ``retrieves``.
    """
    loaded, clips = evaluation.loaded, evaluation.clips
    batches = clips.batches(min(evaluation.batch_size, len(clips.samples)), loaded.text)
    texts = [sample.get("captions", (sample["caption"],)) for sample in clips.samples]
    said = None
    if any(len(own) > 1 for own in texts):
        owners = np.repeat(np.arange(len(texts)), [len(own) for own in texts])
        said = Said(*loaded.text.encode([text for own in texts for text in own]), owners)
    ranking = loaded.task.ranked(loaded.modules, batches, evaluation.keep, said)
    found: dict[str, Any] = {}
    for way, (own, answers) in ranking.ways().items():
        places = Places.of(own, answers)
        found[way] = places.measured()
        if places.broken:
            found[way]["not_finite_queries"] = places.broken[:SHOWN]
        found[f"{way}_dual_softmax"] = {
            **Places.of(dual_softmax(own, ranking.scale), answers).measured(),
            "note": DUAL_SOFTMAX,
        }
    captions = [text for own in texts for text in own]
    best = ranking.scores.argmax(0)[:SHOWN]
    pictures = {
        "videos": evaluation.videos[:SHOWN],
        "prompts": np.array([captions[i] for i in best]),
        "readings": np.array([f"true: {own[0]}" for own in texts[:SHOWN]]),
        "correct": np.array([[bool(ranking.right[i, j])] for j, i in enumerate(best)]),
    }
    return {"retrieval": found, "clips": len(texts), "captions_asked": len(captions)}, pictures
