"""Marks of checkpoints: the last evaluation up to a step holds for it."""

import json
import logging
from contextlib import nullcontext
from types import SimpleNamespace

from absl import logging as absl_logging
from ml_collections import ConfigDict

from videogen.metrics.collapse import collapsed
from videogen.runs.marks import MARKS, mark, marks_at
from videogen.training.loop import _measure


def test_the_last_evaluation_up_to_a_step_holds(tmp_path):
    assert marks_at(tmp_path, 10) == []
    mark(tmp_path, 10, ["the motion is 0.10 of the teacher's"])
    mark(tmp_path, 20, [])
    mark(tmp_path, 9, ["earlier"])
    assert [marks_at(tmp_path, step) for step in (5, 9, 10, 15, 20, 99)] == [
        [],
        ["earlier"],
        *[["the motion is 0.10 of the teacher's"]] * 2,
        [],
        [],
    ]
    mark(tmp_path, 10, [])
    assert marks_at(tmp_path, 15) == []
    for content in ("{", "[1]", '{"a": ["b"]}', '{"3": 4}'):
        (tmp_path / MARKS).write_text(content)
        assert marks_at(tmp_path, 99) == []


def test_an_evaluation_that_finds_a_collapse_warns_marks_and_offers_no_best(tmp_path, caplog):
    best = {"metric": "collapse", "mode": "min"}
    written, scored = [], []
    values = {"loss": 0.1, "motion_ratio": 0.2, "saturation_ratio": 1.0, "seed_distance_ratio": 1.0, "collapse": 2.3}
    run = SimpleNamespace(
        config=ConfigDict({"seed": 0, "checkpoint": {"keep_best": best}, "data": {"clip": {"fps": 8.0}}}),
        workdir=tmp_path,
        task=SimpleNamespace(evaluate=lambda *_: dict(values), concerns=collapsed, pictures=lambda *_: []),
        modules=dict,
        writer=SimpleNamespace(write=lambda step, found: written.append(found)),
        checkpoints=SimpleNamespace(score=lambda *entry: scored.append(entry)),
        waiting=lambda *_: nullcontext(),
    )
    absl_logging.get_absl_logger().propagate = True
    with caplog.at_level(logging.WARNING):
        _measure(run, 800, [{}])
    said = "the motion is 0.20 of the teacher's"
    assert f"step 800: {said}; its checkpoint is marked" in caplog.text
    assert json.loads((tmp_path / MARKS).read_text()) == {"800": [said]} and not scored
    assert written[0]["eval/motion_ratio"] == 0.2
    values["motion_ratio"] = 1.0
    _measure(run, 1600, [{}])
    assert scored == [(1600, 2.3)] and marks_at(tmp_path, 1600) == [] and marks_at(tmp_path, 1599) == [said]
