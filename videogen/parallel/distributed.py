"""Joining the processes of a job: from flags, the environment, SLURM or a TPU's metadata.

A job of several processes is recognised, in this order, by

* the flags ``--coordinator_address=HOST:PORT --process_count=N --process_index=I``;
* ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``; under a Kubernetes JobSet or indexed Job
  ``JOB_COMPLETION_INDEX``, which Kubernetes sets itself, stands in for the last (``launch/gke``);
* SLURM: ``SLURM_JOB_ID``, ``SLURM_STEP_NODELIST``, ``SLURM_NTASKS`` > 1, ``SLURM_PROCID`` and ``SLURM_LOCALID``, as
  srun sets them; every process takes all accelerators it sees: start one per node, or bind them with --gpus-per-task;
* a TPU virtual machine: ``TPU_WORKER_HOSTNAMES``, ``TPU_WORKER_ID`` and, for several slices, ``MEGASCALE_NUM_SLICES``,
  ``MEGASCALE_SLICE_ID``, ``MEGASCALE_COORDINATOR_ADDRESS`` (GKE sets them), or the metadata server (Google Compute
  Engine).

Without any of these, or with ``--process_count=1``, the process is alone and nothing is started. CPU processes talk
through gloo.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import socket
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from absl import logging
from jax._src import distributed as runtime  # the key-value store has no public name
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped

from videogen.environment import tpu_chips
from videogen.errors import UserError
from videogen.parallel.peers import LastWords, Peers
from videogen.parallel.rendezvous import meet

TIMEOUT = 300
"""Seconds within which all processes of a job must have arrived."""

PATIENCE = 3600
"""Seconds a process waits for the others; whether they live is another question, which ``Peers`` answers."""

_peers: Peers | None = None

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Job:
    """Where this process belongs; what is ``None`` is found out by JAX from ``cluster``.

    Attributes:
      source: what told so, for messages.
      address: ``host:port`` of process 0.
      count: number of processes.
      index: this process.
      cluster: JAX's name of the environment that knows the rest.
    """

    source: str
    address: str | None = None
    count: int | None = None
    index: int | None = None
    cluster: str | None = None


def find_job(
    environment: Mapping[str, str], address: str | None = None, count: int | None = None, index: int | None = None
) -> Job | None:
    """The job this process belongs to, ``None`` when it is alone.

    Args:
      environment: the environment variables.
      address: ``--coordinator_address``.
      count: ``--process_count``.
      index: ``--process_index``.

    Raises:
      UserError: a job that is described in part, or wrongly.
    """
    if count == 1:
        return None
    if (address, count, index) != (None, None, None):
        return _checked("the flags --coordinator_address, --process_count and --process_index", address, count, index)
    if "JAX_COORDINATOR_ADDRESS" in environment:
        count = _number(environment, "JAX_NUM_PROCESSES")
        place = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
        index = _number(environment, place)
        source = "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or JOB_COMPLETION_INDEX)"
        return None if count == 1 else _checked(source, environment["JAX_COORDINATOR_ADDRESS"], count, index)
    if all(name in environment for name in SLURM) and _number(environment, "SLURM_NTASKS") != 1:
        return Job("SLURM", cluster="slurm")
    if _has_tpu(environment):
        if "TPU_WORKER_HOSTNAMES" in environment or "TPU_PROCESS_ADDRESSES" in environment:
            return Job("TPU_WORKER_HOSTNAMES", cluster="gketpu")
        if "TPU_SKIP_MDS_QUERY" not in environment:
            return Job("the TPU's metadata server", cluster="gcetpu")
    return None


def _checked(source: str, address: str | None, count: int | None, index: int | None) -> Job:
    if None in (address, count, index):
        raise UserError(f"a job of several processes needs all of {source}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"the coordinator address must be HOST:PORT, got {address!r}")
    if not 0 <= index < count:
        raise UserError(f"process {index} of {count}: the process index must lie in 0 … {count - 1}")
    return Job(source, address, count, index)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    try:
        return int(environment[name]) if name in environment else None
    except ValueError as error:
        raise UserError(f"{name} must be a whole number, got {environment[name]!r}") from error


def _has_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this machine has TPU chips that JAX may use."""
    if "tpu" not in (environment.get("JAX_PLATFORMS") or "tpu"):
        return False
    return bool(tpu_chips()) and importlib.util.find_spec("libtpu") is not None


def initialize(job: Job | None, timeout: int = TIMEOUT) -> Peers | None:
    """Joins a job; to be called before anything asks JAX for devices.

    Args:
      job: what ``find_job`` found.
      timeout: seconds within which all processes must have arrived.

    Returns:
      The other processes, whose end ends this one; ``None`` when this process is alone.

    Raises:
      UserError: JAX is in use already, the job cannot be found out, or its processes disagree or do not come together.
        Where JAX finds the address itself, a job that does not come together within the timeout ends the process with
        one line: the runtime leaves no choice.
    """
    global _peers
    if job is None:
        return None
    if job.address is not None:
        meet(job.address, job.count, job.index, timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    last_words = LastWords(
        f"not all processes of the job arrived at {job.address or 'process 0'} within {timeout} s (found from "
        f"{job.source}); start every process, and see that the address can be reached from each"
    )
    detection = {"cluster_detection_method": job.cluster or "deactivate"}
    if job.cluster == "slurm":
        detection["local_device_ids"] = []  # otherwise one device per process, whatever the node has
    try:
        jax.distributed.initialize(job.address, job.count, job.index, initialization_timeout=timeout, **detection)
    except Exception as error:
        raise UserError(f"cannot join the job found from {job.source}: {error}") from error
    state = runtime.global_state
    if state.num_processes == 1:
        return None
    client, index = state.client, state.process_id
    client.key_value_set(f"videogen/host/{index}", socket.gethostname(), allow_overwrite=True)
    client.wait_at_barrier("videogen/hosts", timeout * 1000)
    hosts = {int(key.rpartition("/")[2]): host for key, host in client.key_value_dir_get("videogen/host/")}
    _peers = Peers(client, index, hosts)
    last_words.know(_peers, state.coordinator_address)
    logging.info("process %d of %d on %s, coordinator %s", index, len(hosts), hosts[index], state.coordinator_address)
    return _peers


def current_peers() -> Peers | None:
    """The other processes of the job this process has joined with ``initialize``."""
    return _peers


def on_host(array: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."]:
    """The whole of an array in this process's memory, wherever its parts are; every process must ask for it."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


_meetings = itertools.count()
"""Numbers the places where processes meet: all pass them in the same order, and each name serves once."""


def wait_for_all() -> None:
    """Returns once every process of the job is here; collectives alone would give up on one that is still compiling."""
    if jax.process_count() > 1:
        runtime.global_state.client.wait_at_barrier(f"videogen/meeting/{next(_meetings)}", PATIENCE * 1000)


def from_process_zero(value: str) -> str:
    """The ``value`` that process 0 has, in every process."""
    if jax.process_count() == 1:
        return value
    key = f"videogen/message/{next(_meetings)}"
    if jax.process_index() == 0:
        runtime.global_state.client.key_value_set(key, value)
        return value
    return runtime.global_state.client.blocking_key_value_get(key, PATIENCE * 1000)


@contextlib.contextmanager
def process_zero_first() -> Iterator[None]:
    """Process 0 runs the body before the others do: what it writes to the shared directory they find there."""
    if jax.process_index() > 0:
        wait_for_all()
    yield
    if jax.process_index() == 0:
        wait_for_all()
