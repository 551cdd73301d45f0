"""A run that was killed, terminated or poisoned goes on as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.processes import REPOSITORY, TOKENIZER, environment
from videogen.runs.checkpoints import Checkpoints
from videogen.training.loading import load

TINY = [
    *TOKENIZER,
    "--config.steps=12",
    "--config.eval_every=6",
    "--config.checkpoint_every=4",
    "--config.optimizer.tokenizer.warmup=2",
]


def start(workdir: Path, *extra: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "videogen.train", *TINY, f"--workdir={workdir}", *extra]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=300)
    return errors


def losses(workdir: Path) -> dict[int, dict[str, float]]:
    """Step -> everything but times, of a run's record."""
    records: dict[int, dict[str, float]] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kept = {k: v for k, v in record.items() if not k.startswith(("speed/", "goodput/"))}
        records.setdefault(record["step"], {}).update(kept)
    return records


def weights(workdir: Path) -> list[np.ndarray]:
    loaded = load(workdir)
    return [np.asarray(x) for x in jax.tree.leaves(nnx.to_pure_dict(nnx.state(loaded.modules["tokenizer"])))]


def wait_for(workdir: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and any(f'"step": {step},' in line for line in path.read_text().splitlines()):
            return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ("--config.data.workers=2", "--config.data.buckets=((5,16,16,8,2),(3,16,24,4,1))"),
        ("--config.accumulate=2", "--config.ema.decay=0.9", "--config.data.image_batch_size=2"),
    ],
    ids=["workers_buckets", "accumulation_ema_images"],
)
def test_killed_run_resumes_to_the_same_bits(tmp_path, extra):
    straight = start(tmp_path / "straight", *extra)
    message = finish(straight)
    assert straight.returncode == 0, message
    killed = start(tmp_path / "killed", *extra)
    wait_for(tmp_path / "killed", random.Random(os.getpid()).randint(5, 11), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    resumed = start(tmp_path / "killed", *extra)
    message = finish(resumed)
    assert resumed.returncode == 0, message
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    for a, b in zip(weights(tmp_path / "killed"), weights(tmp_path / "straight"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_sigterm_saves_and_exits_0(tmp_path):
    process = start(tmp_path, "--config.steps=100000", "--config.checkpoint_every=100000")
    wait_for(tmp_path, 3, process)
    process.send_signal(signal.SIGTERM)
    message = finish(process)
    assert process.returncode == 0, message
    assert "SIGTERM" in message
    saved = Checkpoints(tmp_path)
    assert saved.latest is not None and saved.latest >= 3
    saved.close()


@pytest.mark.slow
def test_nan_stops_with_the_last_finite_state_saved(tmp_path):
    process = start(
        tmp_path, "--config.optimizer.tokenizer.learning_rate=1e38", "--config.optimizer.tokenizer.clip=0.0"
    )
    message = finish(process)
    assert process.returncode == 1, message
    assert "not finite" in message and "Traceback" not in message
    assert all(np.isfinite(w).all() for w in weights(tmp_path))


@pytest.mark.slow  # in one process: test_start.py
def test_a_run_with_other_settings_is_refused(tmp_path):
    finish(start(tmp_path, "--config.steps=1"))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    process = start(tmp_path, "--config.steps=1", "--config.model.width=64")
    message = finish(process)
    assert process.returncode == 2
    assert "error:" in message and "model.width" in message
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
