"""Configs are found from anywhere, and a key that is not there is named whole with its near matches."""

import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict, config_dict

from tests.processes import REPOSITORY, environment
from videogen.configs import magvit, nbp, phenaki, videodit
from videogen.configuration import check_writable, find_config, flatten, short_config, take_data
from videogen.errors import UserError

PHENAKI = str(REPOSITORY / "videogen" / "configs" / "phenaki.py")


@pytest.mark.parametrize("name", ["phenaki", "phenaki.py", "configs/phenaki.py", PHENAKI])
def test_a_config_is_found_by_name_and_by_path_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_config(f"{name}:stage=tokenizer,size=debug") == f"{PHENAKI}:stage=tokenizer,size=debug"
    assert find_config(name) == PHENAKI


def test_a_file_of_the_user_comes_first_and_another_folder_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phenaki.py").write_text("")
    assert find_config("phenaki.py:size=debug") == "phenaki.py:size=debug"
    for name in ("other/phenaki.py", "phenakii", "/nowhere/phenaki.py"):
        with pytest.raises(UserError, match="no config .*did you mean 'phenaki'"):
            find_config(name)


@pytest.mark.parametrize("name", ["phenaki", "configs/phenaki.py", PHENAKI])
def test_a_config_of_the_package_is_shown_by_its_name(name):
    assert short_config(f"{name}:size=debug") == "phenaki:size=debug"


def test_a_config_of_the_user_is_shown_by_its_path(tmp_path):
    (tmp_path / "phenaki.py").write_text("")
    assert short_config(f"{tmp_path}/phenaki.py:size=debug") == f"{tmp_path}/phenaki.py:size=debug"


def command(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """A command that shows a flag and a setting."""
    code = """
from absl import flags
from ml_collections import config_flags
from videogen import app
CONFIG = config_flags.DEFINE_config_file("config", None, "a config")
OUT = flags.DEFINE_string("out", None, "a path")
app.run(lambda: print("shown", OUT.value, CONFIG.value.data.source.path, CONFIG.value.steps))
"""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60
    )


def test_commands_read_configs_and_home_directories_from_anywhere(tmp_path):
    arguments = ["--config=phenaki:stage=tokenizer,size=debug", "--config.data.source.path=~/videos", "--out=~/out"]
    done = command(*arguments, "--config.steps=3", cwd=tmp_path)
    home = os.path.expanduser("~")
    assert done.stdout == f"shown {home}/out {home}/videos 3\n", done.stderr


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.stepz=1", "error: the config has no setting 'stepz'; did you mean 'steps'?"),
        (
            "--config.data.sourc.path=x",
            "error: the config has no setting 'data.sourc.path'; did you mean 'data.source.path'",
        ),
        ("--config.steps=abc", "error: flag --config.steps=abc: invalid literal for int() with base 10: 'abc'"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_whole_key(argument, words):
    done = command("--config=phenaki:stage=tokenizer,size=debug", argument)
    assert done.returncode == 2 and done.stderr.startswith(words) and done.stderr.count("\n") == 1


def test_places_that_cannot_be_written_are_named_before_the_work(tmp_path):
    check_writable(tmp_path / "a" / "b.json", "--out")
    assert [path.name for path in (tmp_path / "a").iterdir()] == []
    check_writable(tmp_path / "c", "--pictures", directory=True)
    assert (tmp_path / "c").is_dir()
    with pytest.raises(UserError, match="^--out: cannot write to /proc/none: .*; name another place$"):
        check_writable("/proc/none/b.json", "--out")
    with pytest.raises(UserError, match="is a directory, and a file is to be written"):
        check_writable(tmp_path / "c", "--out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out: cannot write to .*file"):
        check_writable(tmp_path / "file" / "b.json", "--out")


def test_no_key_of_a_config_is_called_like_a_method():
    """``config.update`` would be the method, and ``--config.….update=`` no setting."""
    import importlib

    from ml_collections import ConfigDict

    def keys(section):
        for key, value in section.items():
            yield key
            if isinstance(value, ConfigDict):
                yield from keys(value)

    for path in (REPOSITORY / "videogen" / "configs").glob("[!_]*.py"):
        module = importlib.import_module(f"videogen.configs.{path.stem}")
        for stage in getattr(module, "STAGES", ()):
            for size in ("debug", "small", "paper"):
                found = keys(module.get_config(f"stage={stage},size={size}"))
                assert not {key for key in found if key in dir(ConfigDict)}, path.stem


def stage(**changes) -> ConfigDict:
    """The data of a stage, shapes of 5×24×24 unless changed."""
    config = ConfigDict({"data": {"source": {"name": "shapes", "path": "", "holdout": config_dict.placeholder(float)}}})
    config.data.clip = {"frames": 5, "height": 24, "width": 24, "fps": 8.0}
    config.data.own = ()
    config.update_from_flattened_dict({f"data.{key}": value for key, value in changes.items()})
    return config.lock()


MINE = {"source.name": "video_folder", "source.path": "mine", "clip.frames": 9, "clip.height": 64, "clip.width": 64}


@pytest.mark.parametrize(
    "changes, given, expected",
    [
        ({}, [], MINE),
        ({"clip.frames": 17}, ["data.clip.frames"], MINE | {"clip.frames": 17}),
        # Another source has settings of its own.
        (
            {"source.name": "tokens", "source.path": "cache"},
            ["data.source.name", "data.source.path"],
            MINE | {"source.name": "tokens", "source.path": "cache"},
        ),
        ({"source.path": "others"}, ["data.source.path"], MINE | {"source.path": "others"}),
        ({"own": ("clip",)}, [], {"source.name": "video_folder", "clip.frames": 5, "clip.height": 24}),
    ],
)
def test_data_of_the_tokenizer_where_the_command_gives_no_others(changes, given, expected):
    """The second stage trained on shapes after a tokenizer of own videos, and did not say so."""
    config = stage(**changes)
    taken = take_data(config, stage(**MINE), given)
    values = flatten(config)
    assert {key: values[f"data.{key}"] for key in expected} == expected
    assert not {entry.partition("=")[0] for entry in taken} & {key.removeprefix("data.") for key in given}
    assert take_data(config, stage(**MINE), given) == []


def test_published_generators_keep_their_data_beside_their_published_tokenizers():
    for system in (magvit, nbp, phenaki, videodit):
        tokenizer, generator = (system.get_config(f"stage={name},size=paper") for name in ("tokenizer", "generator"))
        assert take_data(generator, tokenizer, []) == []
