"""What a process says before JAX starts."""

import os
import subprocess
import sys

import pytest

from tests import processes
from videogen import environment

SAID = (*environment.COMPILING_FOR_TPUS, "JAX_PLATFORMS")


@pytest.fixture
def nothing_said(monkeypatch):
    for name in (*SAID, "PJRT_NAMES_AND_LIBRARY_PATHS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def only_cpus(nothing_said):
    """A machine without TPU, GPU and plugins of JAX."""
    nothing_said.setattr(environment.glob, "glob", lambda pattern: [])
    nothing_said.setattr(environment.os.path, "exists", lambda path: False)
    nothing_said.setattr(environment.importlib.metadata, "entry_points", lambda group: ())
    nothing_said.setattr(environment.importlib.util, "find_spec", lambda name: None)
    return nothing_said


def test_where_there_are_no_tpus_an_installed_libtpu_looks_for_none(nothing_said, tmp_path):
    nothing_said.setattr(environment.glob, "glob", lambda pattern: [])
    nothing_said.setenv("TPU_WORKER_HOSTNAMES", "given")
    environment.expect_no_tpu()
    said = {name: environment.os.environ[name] for name in environment.COMPILING_FOR_TPUS}
    assert said == {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "given", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@pytest.mark.parametrize("file", ["/dev/accel0", "/dev/vfio/0"])
def test_a_machine_with_tpus_is_left_as_it_is(nothing_said, file):
    nothing_said.setattr(environment.glob, "glob", lambda pattern: [file] if file.startswith(pattern[:9]) else [])
    assert environment.tpu_chips() == [file]
    environment.expect_no_tpu()
    assert not set(SAID) & set(os.environ)


def test_where_there_are_only_cpus_jax_looks_for_nothing_else(only_cpus):
    environment.expect_no_tpu()
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_what_the_user_says_of_platforms_holds(only_cpus):
    only_cpus.setenv("JAX_PLATFORMS", "")
    environment.expect_no_tpu()
    assert os.environ["JAX_PLATFORMS"] == ""


def test_where_there_may_be_other_devices_jax_looks_for_them(only_cpus):
    def look() -> str | None:
        environment.expect_no_tpu()
        return os.environ.pop("JAX_PLATFORMS", None)

    with only_cpus.context() as patch:
        patch.setattr(environment.os.path, "exists", lambda path: path == "/dev/nvidia0")
        assert look() is None
    with only_cpus.context() as patch:
        patch.setattr(environment.importlib.metadata, "entry_points", lambda group: ("xla_cuda12",))
        assert look() is None
    with only_cpus.context() as patch:
        patch.setattr(environment.importlib.util, "find_spec", lambda name: "jax_plugins")
        assert look() is None
    with only_cpus.context() as patch:
        patch.setenv("PJRT_NAMES_AND_LIBRARY_PATHS", "mine:/mine.so")
        assert look() is None
    assert look() == "cpu"


def test_a_command_on_a_machine_of_cpus_says_nothing_of_tpus():
    if environment.tpu_chips() or environment.may_have_other_devices():
        pytest.skip("needs a machine without accelerators")
    code = """
from videogen import app
def main():
    import jax
    print(jax.devices()[0].platform)
app.run(main)
"""
    variables = {name: value for name, value in processes.environment().items() if name not in SAID}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")
