"""What every test gets: the CPU, a compilation cache shared between runs, and helpers that start processes.

The settings are environment variables so that processes started by tests have them too.
"""

import collections
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.processes import REPOSITORY, environment
from videogen.environment import expect_no_tpu

os.environ.setdefault("JAX_PLATFORMS", "cpu")
expect_no_tpu()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
# Small programs are kept too: both workers, and the processes that tests start, compile many of the same.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# What tests compile runs for moments: compiled without optimisation, and not in parts, it takes a quarter of the
# processor time.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA stops at a flag it does not know, or no longer
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", QUICK)

from tests import compiled  # noqa: E402  (JAX reads the settings above when it is imported)

compiled.compile_methods()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that put something into the place of a method see the methods as they are."""
    compiled.set_for(item)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first, so that no worker is left alone with one of them at the end."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go():
    """Every compiled program holds memory maps, of which a Linux process may have 65,530; the suite needs more."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
        sys.modules["jax"].clear_caches()


def _run(arguments: Sequence[str], devices: int, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in a process of its own with virtual CPU devices; the caller checks ``returncode``.

    ``run_python(code)`` runs source text, ``run_python([script, argument, …])`` a script.
    """

    def run(code_or_arguments: str | Sequence[str], devices: int = 8, timeout: float = 300):
        code = isinstance(code_or_arguments, str)
        return _run(["-c", code_or_arguments] if code else code_or_arguments, devices, timeout)

    return run


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run_command("train", "--config=…")`` runs ``python -m videogen.train --config=…``."""

    def run(module: str, *arguments: str, devices: int = 1, timeout: float = 600):
        return _run(["-m", f"videogen.{module}", *arguments], devices, timeout)

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the checkout (real clips, broken clips); skips the test when absent."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("no folder 'shared' beside the checkout")
    return path
