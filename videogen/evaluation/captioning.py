"""How often a language model says the right thing of a clip."""

import functools
from typing import Any

import numpy as np

from videogen.data.inputs import pixel_source
from videogen.errors import UserError
from videogen.metrics.judge import caption_agreement

SHOWN = 12
"""Clips of the report."""


def captions(evaluation: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a language model says of held-out clips, one text each.

    ``right`` is the share of texts that are the caption of the clip, letter by letter. Of shapes there is also what
    ``metrics.judge.caption_agreement`` gives.

    Args:
      evaluation: ``protocols.Evaluation`` of a language model.

    Raises:
      UserError: its model writes no texts.
    """
    loaded, clips = evaluation.loaded, evaluation.clips.samples
    if not loaded.task.writes:
        raise UserError(f"captions needs a model that writes texts, and {loaded.directory} draws videos alone")
    generator, said = loaded.generator(), []
    for rows, counted in evaluation.rows(len(clips)):
        videos = evaluation.videos[rows]
        draw = functools.partial(generator.captions, videos, evaluation.seed, first=int(rows[0]))
        found = evaluation.keep(f"captions_{rows[0]}", lambda draw=draw: {"texts": np.array(draw())})
        said += [str(text) for text in found["texts"][:counted]]
    true = [sample["caption"] for sample in clips]
    metrics = {"right": float(np.mean([a == b for a, b in zip(said, true, strict=True)]))}
    if pixel_source(loaded.config)["name"] == "shapes":
        metrics |= caption_agreement(said, true)
    shown = slice(0, SHOWN)
    pictures = {
        "videos": evaluation.videos[shown],
        "prompts": np.array(said[shown]),
        "readings": np.array([f"true: {text}" for text in true[shown]]),
        "correct": np.array([[a == b] for a, b in zip(said[shown], true[shown], strict=True)]),
    }
    return {"captions": metrics, "clips": len(said)}, pictures
