"""Which job a process belongs to, and that processes find each other."""

import json
import socket
import subprocess
import sys

import pytest

from tests.processes import environment
from videogen.errors import UserError
from videogen.parallel import distributed
from videogen.parallel.distributed import Job, find_job, initialize

SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
JOBSET = {"JAX_COORDINATOR_ADDRESS": "run-0:1234", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}


@pytest.fixture
def no_tpu(monkeypatch):
    monkeypatch.setattr(distributed, "tpu_chips", lambda: [])


@pytest.fixture
def tpu(monkeypatch):
    monkeypatch.setattr(distributed, "tpu_chips", lambda: ["/dev/accel0"])
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**SLURM, "SLURM_NTASKS": "1"},
        {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2"},  # inside sbatch, but not started by srun
        {**JOBSET, "JAX_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},  # a planner without chips
    ],
)
def test_alone(no_tpu, environment):
    assert find_job(environment) is None


def test_flags_come_first_and_one_process_switches_everything_off(no_tpu):
    job = find_job({**SLURM, **JOBSET}, "host:99", 8, 0)
    assert (job.address, job.count, job.index) == ("host:99", 8, 0)
    assert find_job({**SLURM, **JOBSET}, count=1) is None


def test_jobset_takes_the_index_kubernetes_gives(no_tpu):
    job = find_job(JOBSET)
    assert (job.address, job.count, job.index) == ("run-0:1234", 4, 3)
    assert find_job({**JOBSET, "JAX_PROCESS_ID": "2"}).index == 2


def test_slurm(no_tpu):
    assert find_job(SLURM) == Job("SLURM", cluster="slurm")


def test_tpu(tpu):
    assert find_job({}).cluster == "gcetpu"
    assert find_job({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_SKIP_MDS_QUERY": "true"}).cluster == "gketpu"
    assert find_job({"TPU_SKIP_MDS_QUERY": "true"}) is None
    assert find_job({"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, ("host:1", 2, None), "needs all of the flags"),
        ({}, ("host", 2, 0), "HOST:PORT"),
        ({}, ("host:1", 2, 2), "0 … 1"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, (None, None, None), "JAX_NUM_PROCESSES"),
        ({**JOBSET, "JAX_NUM_PROCESSES": "two"}, (None, None, None), "JAX_NUM_PROCESSES must be a whole number"),
    ],
)
def test_half_a_description_is_refused(no_tpu, environment, flags, message):
    with pytest.raises(UserError, match=message):
        find_job(environment, *flags)


MEET = """
import json, os, jax
from videogen.parallel import distributed

peers = distributed.initialize(distributed.find_job(os.environ), timeout=60)
with distributed.process_zero_first():
    pass
word = distributed.from_process_zero(f"said by {jax.process_index()}")
record = {"index": jax.process_index(), "count": jax.process_count(), "devices": len(jax.devices()), "word": word}
print(json.dumps(record), flush=True)
peers.close()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slurm", "jobset"])
def test_two_processes_meet(kind):
    processes = []
    job, port = {**SLURM, "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": "1"}, free_port()
    for index in range(2):
        if kind == "slurm":
            extra = {**job, "SLURM_PROCID": str(index), "JAX_COORDINATOR_PORT": str(port)}
        else:
            extra = {**JOBSET, "JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
            extra["JOB_COMPLETION_INDEX"] = str(index)
        command = [sys.executable, "-c", MEET]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment(2) | extra, stdout=pipe, stderr=pipe, text=True))
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for index, (out, _) in enumerate(outputs):
        expected = {"index": index, "count": 2, "devices": 4, "word": "said by 0"}
        assert json.loads(out.splitlines()[-1]) == expected


@pytest.mark.parametrize("index", [0, 1])
def test_a_job_that_does_not_come_together_is_one_line(index):
    port = free_port()
    message = {0: "not all processes of the job arrived .*; 1 of 2 processes have not arrived: 1", 1: "does not answer"}
    with pytest.raises(UserError, match=message[index]):
        initialize(Job("the flags", f"127.0.0.1:{port}", 2, index), timeout=1)
