"""What ``pip install`` puts where: one top-level package, with the configs, that works outside the checkout."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.processes import REPOSITORY, environment


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the package was installed into."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    # The build leaves its files beside setup.py.
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(REPOSITORY / "videogen", source / "videogen", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, f"--target={target}", str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
def test_there_is_one_top_level_package_with_every_module(installed):
    found = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert found == {"videogen"}
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "videogen").rglob("*.py")}
    assert {str(path.relative_to(installed)) for path in installed.rglob("*.py")} == modules


@pytest.mark.slow
def test_a_config_is_found_by_its_name_outside_the_checkout(installed, tmp_path):
    arguments = ["--config=phenaki:stage=tokenizer,size=debug", "--config.steps=77", "--help_config"]
    done = subprocess.run(
        [sys.executable, "-m", "videogen.train", *arguments, f"--workdir={tmp_path}/run"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "--config.steps=77\n" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("stand_in", "beside"),
    [("shapes_classifier", ()), ("shapes_captions", ("text_tokenizer/settings.json", "text_tokenizer/tokenizer.json"))],
)
def test_the_weights_of_the_stand_ins_are_installed(installed, stand_in, beside):
    """They are what a number of every machine is measured with, and what reads the captions of small generators."""
    folder = f"videogen/encoders/stand_in_weights/{stand_in}"
    for name in ("config.json", "model.safetensors", *beside):
        assert (installed / folder / name).read_bytes() == (REPOSITORY / folder / name).read_bytes()
    assert (installed / folder / "model.safetensors").stat().st_size < 400_000
