"""Configs of older formats read as those of the present one."""

import json

import pytest

from videogen.configs import larp, magvit2, phenaki, videodit
from videogen.configuration import load_config, save_config
from videogen.errors import UserError
from videogen.formats import FORMAT, to_present

OLD = {
    "l2": 5.0,
    "l1": 0.0,
    "perceptual": {"name": "untrained", "weight": 0.0, "path": ""},
    "schedule": [["entropy", 3.0, 1.0, 2000]],
    "adversarial": {
        **{"name": "nonsaturating", "weight": 0.1, "start": 0, "adaptive": False, "every": 1, "r1_every": 20},
        **{"rest_below": 0.0, "r1": 20.0, "lecam": 0.001, "discriminator": "clip", "channel_multiplier": 1.0},
        "multipliers": [2, 4, 4, 4, 4],
    },
}


def without_defaults(losses: dict) -> dict:
    """A section ``losses`` less the settings that are what they are without being said."""
    terms = {label: dict(term) for label, term in losses.items()}
    for name, value in {"label_smoothing": 0.0, "lecam": 0.0}.items():
        if terms["adversarial"].get(name) == value:
            del terms["adversarial"][name]
    return terms


def test_losses_of_format_1_are_those_of_today():
    present = magvit2.get_config("stage=tokenizer,size=paper").losses.to_dict()
    assert without_defaults(to_present({"losses": OLD}, "here")["losses"]) == without_defaults(
        json.loads(json.dumps(present))
    )


def test_every_kind_of_discriminator_and_the_prior_are_converted():
    frame = {"name": "nonsaturating", "weight": 0.0, "r1": 10.0, "channel_multiplier": 1.0}
    new = to_present({"losses": {"adversarial": frame}}, "here")["losses"]["adversarial"]
    today = phenaki.get_config("stage=tokenizer,size=debug").losses.adversarial
    assert new == {key: today[key].to_dict() if key == "discriminator" else today[key] for key in new}
    transformer = larp.get_config("stage=tokenizer,size=paper").losses.to_dict()
    old = {"name": "nonsaturating", "weight": 0.3, "discriminator": "transformer"}
    old["transformer"] = {k: v for k, v in transformer["adversarial"]["discriminator"].items() if k != "name"}
    prior = {k: v for k, v in transformer["prior"].items() if k != "name"}
    new = to_present({"losses": {"adversarial": old, "prior": prior}}, "here")["losses"]
    assert new["adversarial"]["discriminator"] == transformer["adversarial"]["discriminator"]
    assert new["prior"] == transformer["prior"]


def test_a_saved_config_says_its_format_and_reads_back(tmp_path):
    config = magvit2.get_config("stage=tokenizer,size=debug")
    save_config(tmp_path / "config.json", config)
    assert json.loads((tmp_path / "config.json").read_text())["format"] == FORMAT
    again = load_config(tmp_path / "config.json")
    assert json.loads(again.to_json()) == json.loads(config.to_json())


@pytest.mark.parametrize("found", [FORMAT + 1, "2", True, 0, None])
def test_other_formats_are_one_line(tmp_path, found):
    (tmp_path / "config.json").write_text(json.dumps({"format": found, "losses": {}}))
    with pytest.raises(UserError, match=f"reads up to {FORMAT}"):
        load_config(tmp_path / "config.json")


def test_a_damaged_config_of_format_1_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"losses": {"adversarial": 3}}))
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "config.json")


# The transformers at paper have settings that format 2 could not say.
@pytest.mark.parametrize("size", ["debug", "small"])
def test_a_flow_generator_of_format_2_is_that_of_today(size):
    today = json.loads(videodit.get_config(f"stage=generator,size={size}").to_json())
    model = dict(today["model"])
    old = {**model, **model.pop("transformer"), **model.pop("noise")}
    old = {key: value for key, value in old.items() if key not in ("transformer", "noise")}
    old["law"] = old.pop("time_distribution")
    assert {"width", "layers", "process", "law", "shift"} <= old.keys()
    before = {key: value for key, value in today.items() if key != "parts"}
    before |= {"format": 2, "model": old, "tokenizer": today["parts"]["tokenizer"]}
    assert to_present(before, "here") == today
    tokenizer = {"format": 2, "model": {"name": "cvivit", "width": 8}}
    assert to_present(tokenizer, "here") == {"model": {"name": "cvivit", "width": 8}, "parts": {}}


def test_the_frozen_text_encoder_of_format_2_is_a_part():
    tokenizer = {"checkpoint": "runs/a", "model": {"name": "cvivit"}, "hash": "a"}
    architecture = {"width": 8, "layers": 1, "heads": 2}
    encoder = {"name": "t5", "path": "t5-small", "width": 8, "architecture": architecture}
    old = {"format": 2, "text": {"encoder": encoder, "tokenizer": {"name": "bytes"}}, "tokenizer": tokenizer}
    new = to_present(old, "here")
    part = {"checkpoint": "t5-small", "model": {"name": "t5", **architecture}, "hash": ""}
    assert new["parts"] == {"tokenizer": tokenizer, "text_encoder": part}
    assert new["text"] == {"encoder": {"name": "t5"}, "tokenizer": {"name": "bytes"}}
    trained = {"text": {"encoder": {"name": "transformer", "width": 8}}, "parts": {}}
    assert to_present({"format": 2, **trained}, "here") == trained


def test_a_student_of_format_2_has_its_teacher_among_its_parts():
    teacher = {"checkpoint": "runs/x", "steps": 16, "solver": {"name": "unipc"}}
    tokenizer = {"checkpoint": "", "model": {"name": "cvivit"}, "hash": "a"}
    new = to_present({"format": 2, "tokenizer": tokenizer, "teacher": teacher}, "here")
    assert new["parts"] == {"tokenizer": tokenizer, "teacher": {"checkpoint": "runs/x", "model": {}, "hash": ""}}
    assert new["distillation"] == {"steps": 16, "solver": {"name": "unipc"}} and "teacher" not in new


@pytest.mark.parametrize("name", ["masked", "next_block"])
@pytest.mark.parametrize("found", [1, 2])
def test_older_generators_of_codes_are_refused_with_the_reason(name, found):
    with pytest.raises(UserError, match="here is of an older format, .* commit da65c3c"):
        to_present({"format": found, "model": {"name": name, "width": 8}}, "here")


def test_larps_tokenizer_of_format_3_is_a_setting_of_one_d():
    old = {"name": "larp", "clip": [4, 24, 24], "patch": [2, 4, 4], "queries": 96, "width": 128, "heads": 4}
    old |= {"mlp_width": 256, "encoder_layers": 2, "decoder_layers": 2, "query_scale": 1.0}
    old |= {"quantizer": {"name": "stochastic", "size": 192, "width": 16, "temperature": 0.03}}
    today = json.loads(json.dumps(larp.larp("debug").to_dict()))
    assert to_present({"format": 3, "model": old}, "here") == {"model": today}
    part = {"checkpoint": "x", "hash": "", "model": {"name": "normalised", "tokenizer": old}}
    new = to_present({"format": 3, "parts": {"tokenizer": part}}, "here")["parts"]["tokenizer"]
    assert new == part | {"model": {"name": "normalised", "tokenizer": today}}
    # A stage of that name that is no tokenizer stays.
    assert to_present({"format": 3, "a": {"name": "larp"}}, "here") == {"a": {"name": "larp"}}
