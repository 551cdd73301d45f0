"""What a process says before JAX starts."""

import pytest

from videogen import environment


@pytest.fixture
def nothing_said(monkeypatch):
    for name in environment.COMPILING_FOR_TPUS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


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
    assert not set(environment.COMPILING_FOR_TPUS) & set(environment.os.environ)
