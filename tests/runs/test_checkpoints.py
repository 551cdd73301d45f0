"""Whatever happens to a checkpoint, what is restored is a state that was saved, to the bit, or a clear refusal."""

import resource
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.runs.checkpoints import DAMAGED, SIZES, Checkpoints, KeepLastAndBest, checksum
from videogen.runs.stops import NotWritten


def state(step: int, size: int = 3000) -> dict:
    return {
        "step": jnp.asarray(step),
        "params": {
            "kernel": jax.random.normal(jax.random.key(step), (size, 7)),
            "bias": jnp.full(5, step, jnp.bfloat16),
        },
    }


def abstract(size: int = 3000) -> dict:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state(0, size))


def save(workdir, *steps: int) -> None:
    checkpoints = Checkpoints(workdir, KeepLastAndBest(3))
    for step in steps:
        checkpoints.save(step, state(step), {"position": 8 * step})
    checkpoints.close()


def restore(workdir, read_only: bool = False) -> int:
    """Restores, checks that it is exactly what was saved at some step, and returns the step."""
    checkpoints = Checkpoints(workdir, KeepLastAndBest(3), read_only)
    try:
        restored, position = checkpoints.restore(abstract())
    finally:
        checkpoints.close()
    step = int(restored["step"])
    jax.tree.map(np.testing.assert_array_equal, restored, state(step))
    assert position == {"position": 8 * step}
    return step


def files(directory) -> list:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_truncating_any_file_costs_at_most_this_checkpoint(tmp_path, caplog):
    save(tmp_path, 1, 2, 3)
    newest, lost = tmp_path / "checkpoints" / "3", 0
    for path in files(newest):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        step = restore(tmp_path, read_only=True)
        assert step == 2 and "step 3 is damaged and passed over" in caplog.text or step == 3 and path.name == SIZES
        lost += step == 2
        path.write_bytes(whole)
        caplog.clear()
    assert lost > 5
    assert restore(tmp_path) == 3


def test_a_flipped_bit_is_noticed(tmp_path, caplog):
    save(tmp_path, 1, 2)
    largest = max(files(tmp_path / "checkpoints" / "2"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    assert restore(tmp_path, read_only=True) == 1
    assert "step 2 is damaged" in caplog.text


def test_weights_are_read_without_the_rest_and_a_flipped_bit_is_noticed(tmp_path, caplog):
    whole = {
        name: {"optimizer": {"a": jnp.full(3000, name)}, "ema": {"a": jnp.ones(3)}, **state(name)} for name in (1, 2)
    }
    checkpoints = Checkpoints(tmp_path, KeepLastAndBest(3))
    for step, tree in whole.items():
        checkpoints.save(step, tree, {"position": 0})
    checkpoints.wait()
    goal = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), whole[1])
    read = checkpoints.restore_weights(goal)
    jax.tree.map(np.testing.assert_array_equal, read, {k: v for k, v in whole[2].items() if k != "optimizer"})
    largest = max(files(tmp_path / "checkpoints" / "2"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    assert int(checkpoints.restore_weights(goal)["step"]) == 1
    assert "step 2 is damaged" in caplog.text
    checkpoints.close()


def test_a_run_moves_damaged_checkpoints_aside_and_saves_their_steps_again(tmp_path):
    save(tmp_path, 1, 2, 3)
    for step in (2, 3):
        largest = max(files(tmp_path / "checkpoints" / str(step)), key=lambda path: path.stat().st_size)
        largest.write_bytes(b"")
    assert restore(tmp_path, read_only=True) == 1
    assert not (tmp_path / DAMAGED).exists()
    assert restore(tmp_path) == 1
    assert sorted(path.name for path in (tmp_path / DAMAGED).iterdir()) == ["2", "3"]
    save(tmp_path, 2)
    assert restore(tmp_path) == 2


def test_when_all_are_damaged_one_line_says_so_and_nothing_is_moved(tmp_path):
    save(tmp_path, 1, 2)
    for path in files(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    before = files(tmp_path)
    with pytest.raises(UserError, match="no checkpoint .* can be read; that of step 2"):
        restore(tmp_path)
    assert files(tmp_path) == before


KILLED = """
import os, signal, sys, threading
from pathlib import Path
import jax.numpy as jnp
from videogen.runs.checkpoints import Checkpoints, KeepLastAndBest

directory = Path(sys.argv[1], "checkpoints")
checkpoints = Checkpoints(sys.argv[1], KeepLastAndBest(3))

def strike():
    while not any("checkpoint-tmp" in path.name for path in directory.iterdir()):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=strike, daemon=True).start()
checkpoints.save(2, {"kernel": jnp.ones((5_000, 5_000))}, {"position": 16})
checkpoints.close()
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_a_write(tmp_path, run_python):
    save(tmp_path, 1)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    assert run_python([script, tmp_path], devices=1).returncode == -9
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert "2" not in left and any("checkpoint-tmp" in name for name in left)
    assert restore(tmp_path, read_only=True) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == left  # a reader leaves a writer's work alone
    assert restore(tmp_path) == 1
    save(tmp_path, 2)
    assert restore(tmp_path) == 2


@pytest.fixture
def disk(tmp_path):
    """A file system of its own with room for few checkpoints."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_stays(disk):
    (disk / "other").write_bytes(bytes(150_000))
    checkpoints = Checkpoints(disk, KeepLastAndBest(100))
    message = "no space left on the device; the last good checkpoint is that of step"
    with pytest.raises(NotWritten, match=message) as stop:
        for step in range(1, 20):
            checkpoints.save(step, state(step), {"position": 8 * step})
    assert "\n" not in str(stop.value)
    good = checkpoints.latest
    checkpoints.close()
    assert restore(disk, read_only=True) == good
    (disk / "other").unlink()
    assert restore(disk) == good
    save(disk, good + 1)
    assert restore(disk) == good + 1


def test_a_failed_save_is_told_without_waiting_for_the_next_one(disk):
    checkpoints = Checkpoints(disk, KeepLastAndBest(3))
    checkpoints.save(1, state(1, 100_000), {"position": 8})
    with pytest.raises(NotWritten, match="no checkpoint was saved"):
        for _ in range(2000):
            checkpoints.wait(timeout=0)
            time.sleep(0.01)
    checkpoints.close()


def test_a_read_only_directory_is_refused_for_runs_and_good_for_readers(disk):
    save(disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert restore(disk, read_only=True) == 1
    with pytest.raises(UserError, match="cannot be written: the file system is read-only"):
        Checkpoints(disk / "new")


def test_a_write_beyond_the_limit_of_file_sizes_is_one_line(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        checkpoints = Checkpoints(tmp_path)
        with pytest.raises(NotWritten, match="a file may not grow"):
            checkpoints.save(1, state(1), {"position": 8})
            checkpoints.wait()
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize(("mode", "kept"), [("max", ["3", "5", "6"]), ("min", ["2", "5", "6"])])
def test_the_last_and_the_best_are_kept_also_after_a_restart(tmp_path, mode, kept):
    scores = {1: 5.0, 2: 1.0, 3: 9.0, 4: 7.0, 6: 2.0}
    for start in (range(1, 4), range(4, 7)):
        checkpoints = Checkpoints(tmp_path, KeepLastAndBest(2, mode))
        for step in range(1, start[0]):
            checkpoints.score(step, scores[step])
        for step in start:
            if step in scores:
                checkpoints.score(step, scores[step])
            checkpoints.save(step, state(step), {"position": step})
        checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept


def test_nothing_is_made_where_a_reader_finds_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        checkpoints.restore(abstract())
    checkpoints.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_the_checksum_sees_one_changed_value_and_exchanged_leaves(dtype):
    a = jnp.zeros(7, dtype)
    b = a.at[3].set(1)
    sums = [int(checksum(tree)) for tree in ({"a": a, "b": a}, {"a": b, "b": a}, {"a": a, "b": b})]
    assert len(set(sums)) == 3


def test_a_removed_directory_is_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, state(1), {"position": 8})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(NotWritten, match="run/checkpoints was removed while the run was going on") as stop:
        checkpoints.save(2, state(2), {"position": 16})
    assert "\n" not in str(stop.value)
    checkpoints.close()


def test_starting_again_and_again_after_a_fault_pushes_no_good_checkpoint_out(tmp_path):
    save(tmp_path, 1, 2)
    for step in (3, 4, 5):  # each start goes on for a step and ends by a NaN
        checkpoints = Checkpoints(tmp_path, KeepLastAndBest(2))
        checkpoints.save(step, state(step), {"position": 8 * step}, planned=False)
        checkpoints.close()
        left = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
        assert left == {1, 2, step}
    # A run that goes on by plan forgets them.
    checkpoints = Checkpoints(tmp_path, KeepLastAndBest(2))
    for step in (6, 7):
        checkpoints.save(step, state(step), {"position": 8 * step})
    checkpoints.close()
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {6, 7}


CLOCK = """
import sys, time
real, offset = time.time, [0.0]
time.time = lambda: real() + offset[0]
import jax.numpy as jnp
from etils import epath
from videogen.runs.checkpoints import Checkpoints, KeepLastAndBest
from videogen.runs.records import MetricsWriter

workdir, months = epath.Path(sys.argv[1]), 30 * 86400.0 * int(sys.argv[2])
workdir.mkdir()
writer, checkpoints = MetricsWriter(workdir, 0), Checkpoints(workdir, KeepLastAndBest(9))
for step in range(1, 6):
    writer.write(step, {"train/loss": 1.0})
    checkpoints.save(step, {"kernel": jnp.full((500, 500), step)}, {"position": step})
    offset[0] += months * (step % 2)
    checkpoints.wait()
checkpoints.close()
writer.close()
assert {2, 4} <= set(Checkpoints(workdir, read_only=True).steps)
"""


@pytest.mark.slow
@pytest.mark.parametrize("months", [-3, 3])
def test_a_clock_that_jumps_by_months_costs_at_most_the_save_under_way(tmp_path, run_python, months):
    script = tmp_path / "clock.py"
    script.write_text(CLOCK)
    done = run_python([script, tmp_path / "run", str(months)], devices=1, timeout=60)
    assert done.returncode == 0, done.stderr
