"""launch/local.py of models that read clips: what its report says of them."""

import json

import numpy as np
import pytest

from launch.local import collect, make_stage, plan
from launch.local_report import flatten, generator_sections, headline, reading_sections, sections_of, tokenizer_sections

HOW = {"name": "", "count": 2, "source": {"name": "shapes"}, "step": 1, "held_out": True}
PLACES = {"recall_at_1": 25.0, "queries": 8, "note": "words", "not_finite_queries": [1]}
METRICS = {
    "retrieval": {"retrieval": {"text_to_video": PLACES, "video_to_text": PLACES}, "clips": 8},
    "recognition": {"recognition": {"top_1": 50.0, "top_5": 75.0, "chance": 100 / 96}, "clips": 8},
    "answers": {"answers": {"chosen": 0.8, "chance": 0.01, "written": 0.7, "kinds": {}}, "clips": 8},
}


GUESSES = {"retrieval": "12.5 %", "recognition": "1.0 %", "answers": "1%"}


def stage_of(tmp_path, name: str, config: str):
    stage = make_stage(name, [f"--config={config}"], tmp_path / name)
    (tmp_path / name / "pictures").mkdir(parents=True)
    (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/loss": 1.0}) + "\n")
    if stage.evaluate:
        words = np.array(["red circle", "blue square"])
        arrays = {"videos": np.zeros((2, 4, 24, 24, 3), np.uint8), "prompts": words, "readings": words[::-1]}
        np.savez(stage.clips, correct=np.array([[True], [False]]), **arrays)
    return stage


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("retrieval", "vidla:size=debug", [("text to video", "25.0 %"), ("video to text", "25.0 %")]),
        ("recognition", "recognition:stage=of_ids,size=debug", [("recognition", "50.0 %")]),
        ("answers", "understanding:size=debug", [("right answers", "80%")]),
    ],
)
def test_the_report_of_a_model_that_reads(tmp_path, name, config, said):
    stage = stage_of(tmp_path, name, config)
    assert f"--protocol={name}" in stage.evaluate and sections_of(stage.config) is reading_sections
    learning, shown = reading_sections(stage, 8.0)
    assert set(stage.config.losses) < set(learning.blocks[0].keys)
    assert list(shown.blocks[0].captions) == ["red circle (blue square)", "blue square (red circle)"]
    assert [checks for _, checks in shown.blocks[0].verdicts] == [{"right": True}, {"right": False}]
    metrics = {name: METRICS[name], "seconds": {"total": 60.0}, "hardware": "2 cores", "protocol": {name: HOW}}
    found = headline([stage], metrics).blocks[0].items
    assert [item[:2] for item in found[:-1]] == said
    assert f"guessing gives {GUESSES[name]}" in found[0][2]


def test_a_stage_without_a_protocol_shows_its_curves(tmp_path):
    stage = stage_of(tmp_path, "ids", "recognition:stage=ids,size=debug")
    assert stage.evaluate is None and sections_of(stage.config) is reading_sections
    (learning,) = reading_sections(stage, 8.0)
    assert learning.blocks[0].keys == ("loss", "codes")


def test_what_is_collected_of_stages_without_a_protocol(tmp_path):
    stage = stage_of(tmp_path, "ids", "recognition:stage=ids,size=debug")
    found = collect([stage], {"total": 3.0})
    assert (found["seed"], found["seconds"], found["protocol"]) == (stage.config.seed, {"total": 3.0}, {})
    assert found["hardware"] and found["commit"]


def test_others_are_as_before_and_words_are_no_numbers(tmp_path):
    stages = {stage.name: stage for stage in plan("phenaki:size=debug", tmp_path, [])}
    assert sections_of(stages["tokenizer"].config) is tokenizer_sections
    assert sections_of(stages["generator"].config) is generator_sections
    assert flatten({"a": PLACES, "b": 2}) == {"a / recall_at_1": 25.0, "a / queries": 8, "b": 2}


def test_four_rows_of_recognition_in_one_run(tmp_path):
    stages = {stage.name: stage for stage in plan("recognition:size=debug", tmp_path, [])}
    assert [s.name for s in stages.values() if s.evaluate and "--protocol=recognition" in s.evaluate] == [
        *("of_ids", "of_inputs", "of_pixels", "of_nothing")
    ]
    begun = {name: f"--config.start_from.run={tmp_path / origin}" for name, origin in BEGUN.items()}
    for name, stage in stages.items():
        runs = [part for part in stage.train if part.startswith("--config.start_from")]
        assert runs == ([begun[name]] if name in begun else [])
        parts = [part for part in stage.train if part.startswith("--config.parts")]
        made = [f"--config.parts.tokenizer.checkpoint={tmp_path / 'tokenizer'}"]
        assert parts == (made if name in ("ids", "of_inputs") else [])
        # Pictures are those of the tokenizer alone.
        assert stage.config.data.clip.frames == (1 if name == "tokenizer" else 4)


BEGUN = {"of_ids": "ids", "of_pixels": "pixels"}
