"""Benchmarks start, with large pages that they ask for themselves, and name a peer that is missing."""

import os
import subprocess
import sys

import pytest

from benchmarks.common import peer_packages
from tests.processes import REPOSITORY, environment

BENCHMARKS = sorted(
    path.name for path in (REPOSITORY / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()
)


def test_a_script_starts_once_more_with_large_pages_unless_told_otherwise():
    script = (
        "import os, sys\n"
        "from videogen.environment import use_large_pages\n"
        "use_large_pages()\n"
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:])\n"
    )
    plain = {name: value for name, value in environment().items() if name != "GLIBC_TUNABLES"}
    for extra, expected in (({}, "glibc.malloc.hugetlb=1"), ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},) * 2):
        done = subprocess.run(
            [sys.executable, "-c", script, "--a=b c"], env=plain | extra, capture_output=True, text=True, timeout=60
        )
        wanted = expected if isinstance(expected, str) else expected["GLIBC_TUNABLES"]
        assert done.stdout == f"{wanted} ['--a=b c']\n", done.stderr


def test_measurements_of_time_ask_for_large_pages():
    for name in BENCHMARKS:
        text = (REPOSITORY / "benchmarks" / name).read_text()
        assert "perf_counter" not in text or "    use_large_pages()\n" in text, name


def test_a_peer_that_is_missing_is_one_line():
    with pytest.raises(SystemExit) as stop, peer_packages("torch nosuch==1.0"):
        import nosuch  # noqa: F401
    assert stop.value.code == "error: nosuch is missing here: pip install torch nosuch==1.0"


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_can_be_started(name):
    """One imported what was gone."""
    env = environment() | {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")}
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}", "--help"], cwd=REPOSITORY, env=env, capture_output=True, text=True
    )
    assert done.returncode in (0, 1) and "flags:" in done.stdout, done.stderr
