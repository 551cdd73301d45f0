"""``load`` on directories that are not what a run or export wrote: one line that names the file."""

import json
import os
import shutil

import numpy as np
import pytest

from tests.training_configs import tiny
from videogen.errors import UserError
from videogen.training.loading import CONFIG, MODEL, export_safetensors, load
from videogen.training.loop import train
from videogen.weights import read_tensors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("load") / "run"
    train(tiny(), workdir)
    return workdir


@pytest.fixture(scope="module")
def exported(run):
    export_safetensors(load(run), run.parent / "export")
    return run.parent / "export"


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def change(directory, key: str, value) -> None:
    config = json.loads((directory / CONFIG).read_text())
    *sections, last = key.split(".")
    section = config
    for name in sections:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    (directory / CONFIG).write_text(json.dumps(config))


def refusal(directory) -> str:
    with pytest.raises(UserError) as error:
        load(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", None, "config.model is missing"),
        ("model", 7, "config.model must be a section"),
        ("model.width", None, "needs the setting 'width'"),
        ("model.width", "wide", "width of tokenizer 'cvivit' must be"),
        ("model.width", 2**20, "does not fit its config"),
        ("data.clip", None, "config.data.clip is missing"),
        ("steps", -1, "config.steps must be"),
        ("exported_step", "x", "exported_step must be"),
        ("task", "tokeniser", "did you mean 'tokenizer'"),
    ],
)
def test_configs_that_were_changed(copy, key, value, words):
    change(copy, key, value)
    assert words in refusal(copy)


def test_files_that_are_no_files(copy):
    content = (copy / CONFIG).read_text()
    for text in ("[" * 100_000, "[1]", '"a"', "{", ""):
        (copy / CONFIG).write_text(text)
        assert CONFIG in refusal(copy)
    (copy / CONFIG).unlink()
    os.mkfifo(copy / CONFIG)
    assert "no plain file" in refusal(copy)
    (copy / CONFIG).unlink()
    (copy / CONFIG).mkdir()
    assert "no plain file" in refusal(copy)
    (copy / CONFIG).rmdir()
    (copy / CONFIG).write_text(content)
    (copy / MODEL).unlink()
    assert "holds no finished checkpoint" in refusal(copy)


def test_an_export_may_be_replaced_and_never_overwrites_a_run(run, exported):
    before = (run / CONFIG).read_bytes()
    with pytest.raises(UserError, match="holds a run, which an export would overwrite"):
        export_safetensors(load(run), run)
    assert (run / CONFIG).read_bytes() == before
    first = read_tensors(exported / MODEL)
    export_safetensors(load(run), exported)
    for name, value in read_tensors(exported / MODEL).items():
        np.testing.assert_array_equal(value, first[name])
    with pytest.raises(UserError, match="--out: cannot write to /proc"):
        export_safetensors(load(run), "/proc/none")


def test_a_run_is_not_trained_into_an_export(exported):
    with pytest.raises(UserError, match="holds an export"):
        train(tiny(), exported)


def test_what_a_start_reads_twice_is_said_once(run, caplog):
    with caplog.at_level("INFO", logger="absl"):
        for _ in range(2):
            load(run)
    assert caplog.text.count("restored step 1 from") <= 1
