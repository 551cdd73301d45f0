"""What the environment of a process says before JAX starts: large pages, and no search for TPUs that are not there."""

import glob
import importlib.metadata
import importlib.util
import os
import sys

LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Large pages for what XLA allocates in every step: on two CPU cores an eighth of a training's time. The C library
reads this when the process starts."""

COMPILING_FOR_TPUS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""For a libtpu that only compiles: it looks for no chip, and several processes may use it side by side."""

GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files of GPUs: NVIDIA's, on Linux, in containers and under Windows, and AMD's."""


def use_large_pages() -> None:
    """Starts this script once more with ``LARGE_PAGES``, unless its environment says anything about them."""
    if any(name not in os.environ for name in LARGE_PAGES):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], LARGE_PAGES | dict(os.environ))


def tpu_chips() -> list[str]:
    """The device files of this machine's TPU chips."""
    return glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")


def may_have_other_devices() -> bool:
    """Whether this machine has a GPU, or JAX has a plugin for devices that are neither CPUs nor TPUs."""
    plugins = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("jax_plugins")
    return bool(plugins) or "PJRT_NAMES_AND_LIBRARY_PATHS" in os.environ or any(map(os.path.exists, GPU_FILES))


def expect_no_tpu() -> None:
    """Where there are no TPU chips, an installed libtpu is for compiling alone: it asks no metadata server for them.

    Where there is no other device either, JAX is told to take the CPU; else it would load libtpu to look for chips.
    To be called before JAX is imported.
    """
    if tpu_chips():
        return
    for name, value in COMPILING_FOR_TPUS.items():
        os.environ.setdefault(name, value)
    if not may_have_other_devices():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
