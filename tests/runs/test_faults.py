"""However a run is cut short, one line says why, and at most the steps since the last checkpoint are done again."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import TOKENIZER

TINY = [
    *TOKENIZER,
    "--config.eval_every=6",
    "--config.checkpoint_every=4",
    "--config.optimizer.tokenizer.warmup=2",
]


def losses(workdir: Path) -> dict[int, float]:
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["train/loss"] for record in records if "train/loss" in record}


def tree(workdir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def error_line(done: subprocess.CompletedProcess) -> str:
    """The one line a failing command ends with."""
    assert "Traceback" not in done.stderr, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def finished(run_command, tmp_path_factory):
    """A run of 12 steps with the checkpoints of steps 8 and 12."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = run_command("train", *TINY, "--config.steps=12", "--profile=3:2", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_its_steps_are_done_again_alike(run_command, workdir, finished):
    newest = workdir / "checkpoints" / "12"
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    done = run_command("train", *TINY, "--config.steps=12", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 12 is damaged and passed over" in done.stderr
    assert "restored step 8" in done.stderr
    assert losses(workdir) == losses(finished)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"8", "12"}


@pytest.mark.slow
def test_an_unreadable_config_is_one_line(run_command, workdir):
    content = (workdir / "config.json").read_bytes()
    (workdir / "config.json").write_bytes(content[: len(content) // 2])
    before = tree(workdir)
    done = run_command("train", *TINY, "--config.steps=12", f"--workdir={workdir}")
    assert done.returncode == 2 and "config.json cannot be read" in error_line(done)
    assert tree(workdir) == before


@pytest.fixture
def disk(finished, tmp_path):
    """A copy of the run on a file system of its own with little room left."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount")
    shutil.copytree(finished, directory / "run", ignore=shutil.ignore_patterns("plugins", "samples"))
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_room_is_all_it_takes_to_go_on(run_command, disk, finished):
    free = shutil.disk_usage(disk).free
    (disk / "other").write_bytes(bytes(free - 100_000))
    more = [*TINY, "--config.steps=20", f"--workdir={disk / 'run'}"]
    done = run_command("train", *more)
    assert done.returncode == 1
    line = error_line(done)
    assert "no space left on the device" in line and "make room there and start the same command again" in line
    (disk / "other").unlink()
    done = run_command("train", *more)
    assert done.returncode == 0 and "restored step 12" in done.stderr, done.stderr
    assert losses(disk / "run").keys() == set(range(1, 21))


@pytest.mark.slow
def test_a_read_only_directory_is_one_line(run_command, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = run_command("train", *TINY, "--config.steps=20", f"--workdir={disk / 'run'}")
    assert done.returncode == 2
    assert "cannot be written: the file system is read-only; choose another --workdir" in error_line(done)


STALLED = """
import sys, time
from absl import flags
from videogen import train
from videogen.data import Pipeline

read, count = Pipeline.__next__, 0

def stall(pipeline):
    global count
    count += 1
    if count == 9:
        time.sleep(1000)
    return read(pipeline)

Pipeline.__next__ = stall
train.app.run(train.main, distributed=True)
"""


@pytest.mark.slow
def test_a_stalled_loader_is_stopped_with_its_stack_and_the_last_step(run_python, tmp_path):
    script = tmp_path / "stalled.py"
    script.write_text(STALLED)
    workdir = tmp_path / "run"
    # Held-out batches are read by a pipeline of their own.
    arguments = [*TINY, "--config.steps=12", "--config.stall_seconds=40", f"--workdir={workdir}"]
    done = run_python([script, *arguments], devices=1)
    assert done.returncode == 1
    assert "no progress for" in done.stderr and "while input, last finished step" in done.stderr
    assert "in stall" in done.stderr  # the function that hangs is in the stacks
    assert max(losses(workdir)) >= 5
    assert "4" in {path.name for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.slow
def test_goodput_of_a_run_adds_up_and_is_in_its_report(finished):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    shares = [{k: v for k, v in record.items() if k.startswith("goodput/")} for record in records]
    for share in filter(None, shares):
        assert sum(share.values()) == pytest.approx(100) and min(share.values()) >= 0
    assert shares[-1]["goodput/checkpoint"] > 0 and shares[-1]["goodput/evaluation"] > 0
    assert all(r["speed/tokens_per_second"] > r["speed/videos_per_second"] > 0 for r in records if "train/loss" in r)
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Where the time went" in page and page.count("<video") == 4 and "eval/psnr" in page


@pytest.mark.slow
def test_the_profile_holds_the_steps_asked_for(finished):
    import jax

    (path,) = (finished / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    assert sum(event.name == "train" for plane in planes for line in plane.lines for event in line.events) == 2
