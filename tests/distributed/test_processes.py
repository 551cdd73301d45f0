"""Two processes train one model: interrupted, killed, and resumed as other numbers of processes and devices."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import REPOSITORY, TOKENIZER, environment

TINY = [
    *TOKENIZER,
    "--config.data.batch_size=8",
    "--config.data.image_batch_size=4",
    "--config.parallel.mesh.data=2",
    "--config.parallel.mesh.fsdp=-1",
    "--config.eval_every=100000",
    "--config.checkpoint_every=4",
    # Not the number of steps, which differs between the starts below.
    "--config.optimizer.tokenizer.horizon=1000",
]
PATIENCE = 1200
"""Seconds; far beyond what a quiet machine takes."""


class Job:
    """The processes of one start of a run."""

    def __init__(self, workdir: Path, processes: int, devices: int, steps: int, *more: str):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.workdir, self.processes = workdir, []
        for index in range(processes):
            flags = [f"--coordinator_address=127.0.0.1:{port}", f"--process_count={processes}"]
            flags += [f"--process_index={index}", f"--config.steps={steps}", f"--workdir={workdir}"]
            command = [sys.executable, "-m", "videogen.train", *TINY, *more, *(flags if processes > 1 else flags[3:])]
            settings = {"cwd": REPOSITORY, "env": environment(devices), "stderr": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, **settings))

    def wait_for(self, step: int) -> None:
        """Returns once the record of ``step`` is written."""
        deadline = time.monotonic() + PATIENCE
        while step not in losses(self.workdir):
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                for process in self.processes:
                    process.kill()
                raise AssertionError([errors for _, errors in self.end()])
            time.sleep(0.02)

    def end(self) -> list[tuple[int, str]]:
        """Exit code and stderr of every process."""
        ended = []
        for process in self.processes:
            _, errors = process.communicate(timeout=PATIENCE)
            ended.append((process.returncode, errors))
        return ended

    def finish(self) -> None:
        for code, errors in self.end():
            assert code == 0, errors


def losses(workdir: Path) -> dict[int, float]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {record["step"]: record["train/loss"] for record in records if "train/loss" in record}


def saved(workdir: Path) -> int:
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, int]:
    """2 processes × 2 devices; the second one alone gets SIGTERM. The directory, and the step both saved."""
    workdir = tmp_path_factory.mktemp("interrupted") / "run"
    job = Job(workdir, 2, 2, steps=100_000)
    job.wait_for(3)
    job.processes[1].send_signal(signal.SIGTERM)
    for code, errors in job.end():
        assert code == 0 and "the state is saved" in errors, errors
    return workdir, saved(workdir)


@pytest.fixture(scope="module")
def killed(interrupted, tmp_path_factory) -> tuple[Path, int, int, str, float]:
    """The same job again, its second process killed: directory, last saved step, and how the first one ended."""
    workdir = Path(shutil.copytree(interrupted[0], tmp_path_factory.mktemp("killed") / "run"))
    job = Job(workdir, 2, 2, steps=100_000)
    job.wait_for(interrupted[1] + 6)
    job.processes[1].send_signal(signal.SIGKILL)
    since = time.monotonic()
    code, errors = job.end()[0]
    return workdir, saved(workdir), code, errors, time.monotonic() - since


@pytest.fixture(scope="module")
def straight(killed, tmp_path_factory) -> dict[int, float]:
    """The losses of one process with 4 devices that nothing happens to."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    Job(workdir, 1, 4, steps=killed[1] + 6).finish()
    return losses(workdir)


@pytest.mark.slow
def test_a_notice_to_one_process_saves_and_stops_both_at_one_step(interrupted):
    workdir, step = interrupted
    assert step >= 3 and max(losses(workdir)) == step


@pytest.mark.slow
def test_a_killed_process_ends_the_other_within_a_minute_by_name(killed):
    _, _, code, errors, seconds = killed
    assert code == 1 and seconds < 60
    assert f"error: process 1 ({socket.gethostname()}) died" in errors


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 1)])
def test_any_number_of_processes_and_devices_goes_on_with_the_same_data(killed, straight, tmp_path, processes, devices):
    workdir = Path(shutil.copytree(killed[0], tmp_path / "run"))
    Job(workdir, processes, devices, steps=killed[1] + 6).finish()
    resumed = losses(workdir)
    assert resumed.keys() == straight.keys()
    steps = sorted(straight)
    values = np.array([straight[step] for step in steps])
    # Another batch would change the loss far more than another order of summation does.
    assert np.median(np.abs(np.diff(values))) > 1e-3
    np.testing.assert_allclose([resumed[step] for step in steps], values, rtol=1e-4)


@pytest.mark.slow
def test_processes_that_share_examples_read_the_same(straight, tmp_path):
    """Each process holds one half of every frame, and all examples."""
    mesh = {"data": 1, "fsdp": 1, "context": 2}
    flags = [f"--config.parallel.mesh.{axis}={size}" for axis, size in mesh.items()]
    Job(tmp_path / "run", 2, 1, 4, *flags).finish()
    shared = losses(tmp_path / "run")
    assert sorted(shared) == [1, 2, 3, 4]
    np.testing.assert_allclose(list(shared.values()), [straight[step] for step in shared], rtol=1e-4)
