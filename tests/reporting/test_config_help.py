"""Every key of every config has a meaning, and every setting of a source can be given on the command line."""

import importlib
import inspect

import pytest

from launch.systems import read_config
from tests.processes import REPOSITORY
from videogen import data
from videogen.configs import phenaki, stand_ins, videodit
from videogen.defaults import base
from videogen.reporting.config_help import config_help, meaning, walk

FILES = (REPOSITORY / "videogen" / "configs").glob("[!_]*.py")
OTHERS = {"common", "data_sets", "generators", "networks", "recipes", "stand_ins", "video_text"}
SYSTEMS = sorted({path.stem for path in FILES} - OTHERS)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_key_has_a_meaning(system):
    module = importlib.import_module(f"videogen.configs.{system}")
    for stage in module.STAGES:
        for size in ("debug", "paper"):
            config = module.get_config(f"stage={stage},size={size}")
            assert [key for key, _ in walk(config) if not meaning(key, config)] == []


@pytest.mark.parametrize("stage", ["classifier", "captions"])
def test_every_key_of_a_stand_in_has_a_meaning(stage):
    config = stand_ins.get_config(f"stage={stage}")
    assert [key for key, _ in walk(config) if not meaning(key, config)] == []


def test_meanings_are_those_of_the_chosen_parts():
    config = phenaki.get_config("stage=tokenizer")
    assert meaning("model.quantizer.cosine", config) == "compare and emit unit vectors"
    assert meaning("data.source.second_shape", config).startswith("shapes: probability of a second shape")
    assert "fsq, gaussian" in meaning("model.quantizer.name", config)
    text = config_help(config)
    assert "--config.steps=900\n    training steps of the whole run\n" in text
    assert "--config.model.quantizer.size=96\n" in text and "``" not in text


INTERNAL = {"clip", "seed", "split", "tokenizer_hash"}
"""What the framework passes to a source."""


@pytest.mark.parametrize("name", sorted(data.SOURCES))
def test_every_setting_of_a_source_is_a_key_of_the_base(name):
    settings = set(inspect.signature(data.SOURCES[name]).parameters) - INTERNAL
    assert settings <= set(base("float32").data.source)


def test_parts_of_a_mixture_are_given_on_the_command_line():
    parts = '({"name":"shapes","weight":1},{"name":"shapes","turn":1.0,"weight":2})'
    arguments = ["--config.data.source.name=mixture", f"--config.data.source.parts={parts}"]
    config = read_config(["--config=phenaki:stage=tokenizer,size=debug", *arguments])
    source = data.build(config.data.source, clip=data.Clip(5, 24, 24, 8.0), seed=0, split="train")
    assert source[0]["video"].shape == (5, 24, 24, 3) and source.keeps_apart


@pytest.mark.slow
def test_help_config_prints_the_keys_and_does_nothing_else(run_command, tmp_path):
    done = run_command(
        "train", "--config=phenaki:stage=generator", "--help_config", "--config.steps=77", f"--workdir={tmp_path}/run"
    )
    assert done.returncode == 0 and "--config.steps=77\n    training steps" in done.stdout, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_rate_of_none_is_one_line_with_the_remedy(run_command, tmp_path):
    done = run_command(
        "train", "--config=phenaki:stage=tokenizer", "--config.data.clip.fps=None", f"--workdir={tmp_path}/run"
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "0 takes every frame of a file: --config.data.clip.fps=0" in done.stderr


@pytest.mark.slow
def test_a_remote_work_directory_that_cannot_be_is_one_line(run_command):
    done = run_command("train", "--config=phenaki:stage=tokenizer", "--workdir=nosuch://bucket/run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no such kind of path" in done.stderr, done.stderr


def test_settings_of_shortcuts_have_a_meaning_and_a_transformer_has_an_attention_of_its_own():
    config = videodit.get_config("stage=generator,size=debug")
    with config.unlocked():
        config.sampler.attention = {"name": "svg2", "top_p": 0.9, "warmup": 0.2}
        config.sampler.cache = {"name": "residual", "every": 2}
        config.model.transformer.attention = {"qk_norm": "width"}
    assert [key for key, _ in walk(config) if not meaning(key, config)] == []
    assert "the share of the attention" in meaning("sampler.attention.top_p", config).replace("estimated ", "")
    assert meaning("sampler.cache.every", config).startswith("n; 1 computes all calls")
