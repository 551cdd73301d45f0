"""Preferring right answers to wrong ones, and what data and settings of questions are refused for."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.tasks.test_understanding import batch, built, loss, scored, tiny
from videogen import data, tasks
from videogen.data.inputs import held_out
from videogen.data.text import ByteTokenizer
from videogen.errors import UserError


def preferring(**changes):
    config = tiny(**changes)
    config.losses.preference = {"name": "preference", "beta": 0.5, "weight": 1.0}
    config.losses.answers.weight = 0.0
    config.parts.reference = {"checkpoint": "", "model": config.model.to_dict(), "hash": ""}
    return tasks.build(config)


@pytest.mark.slow
def test_preference_is_ln_2_at_the_reference_and_flips_with_the_answers():
    """O10: p = p0 gives ln 2, p0 gets no gradient, exchanging both answers flips the margin."""
    task, (_, modules) = preferring(), built()
    examples = batch()
    same = {**modules, "reference": modules["language"]}
    value, metrics = loss(task, same, examples)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert abs(float(metrics["margin"])) < 1e-6
    state = nnx.state(modules["language"])
    moved = nnx.merge(nnx.graphdef(modules["language"]), jax.tree.map(lambda x: 1.1 * x, state))
    both = {"language": moved, "reference": modules["language"]}
    value, metrics = loss(task, both, examples)
    exchanged = dict(examples)
    for kind in ("ids", "mask"):
        exchanged[f"answer_{kind}"], exchanged[f"wrong_{kind}"] = examples[f"wrong_{kind}"], examples[f"answer_{kind}"]
    _, flipped = loss(task, both, exchanged)
    np.testing.assert_allclose(flipped["margin"], -metrics["margin"], rtol=1e-4)
    # Written out from the likelihoods of both answers by both models.
    plain, _ = built()
    logs = []
    for model in (moved, modules["language"]):
        for name in ("answer", "wrong"):
            own = {**examples, "answer_ids": examples[f"{name}_ids"], "answer_mask": examples[f"{name}_mask"]}
            _, nats, counted, _ = scored(plain, {"language": model}, own)
            logs.append(-np.where(counted, nats, 0).sum(1))
    margin = (logs[0] - logs[2]) - (logs[1] - logs[3])
    np.testing.assert_allclose(metrics["margin"], margin.mean(), rtol=1e-4)
    np.testing.assert_allclose(value, np.log1p(np.exp(-0.5 * margin)).mean(), rtol=1e-4)
    _, gradient = loss(task, both, examples, gradient=True, group="reference")
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_preference_needs_a_reference_and_rows_of_one_sample():
    config = tiny()
    config.losses.preference = {"name": "preference", "beta": 0.5, "weight": 1.0}
    assert tasks.class_of(config).parts_of(config) == {"reference": "trained"}
    assert tasks.class_of(tiny()).parts_of(tiny()) == {}
    with pytest.raises(UserError, match="set model.packed=1"):
        preferring(**{"model.packed": 2})


def test_a_source_without_end_whose_questions_are_all_too_long_is_one_line():
    settings = {"name": "shapes_questions", "kinds": ("colour",)}
    source = data.build(settings, clip=data.Clip(2, 8, 8), seed=0, split="eval")
    with pytest.raises(UserError, match="the first is .*: its question has more tokens than text"):
        held_out(source, 4, ByteTokenizer(3))


def test_a_missing_section_is_one_line():
    for missing in ({"losses": None}, {"losses.answers": ""}, {"model.vision": 3}):
        config = tiny()
        with config.unlocked(), config.ignore_type():
            config.update_from_flattened_dict(missing)
        with pytest.raises(UserError, match="must be a section with keys"):
            tasks.class_of(config).parts_of(config)
