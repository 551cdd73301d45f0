"""Times saving and restoring a checkpoint, and how much an asynchronous save slows the steps it runs beside.

    python benchmarks/checkpoint.py --megabytes=400 --interval=60

Prints one JSON line per measurement: {"name", "seconds" or "share", "megabytes", "device", …}. ``checkpoint/stall`` is
the time the loop stands still per save; ``checkpoint/lost`` the share of wall time lost to saves every ``interval``
seconds, from the work done in as many seconds with and without a save, in turns: it includes what the background
threads take.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen.environment import use_large_pages  # noqa: E402
from videogen.runs.checkpoints import Checkpoints, KeepLastAndBest, abstract_state  # noqa: E402

MEGABYTES = flags.DEFINE_integer("megabytes", 400, "Size of the state (float32).", lower_bound=1)
LEAVES = flags.DEFINE_integer("leaves", 64, "Number of arrays it is made of.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Saves, of which the median is reported.", lower_bound=3)
INTERVAL = flags.DEFINE_float("interval", 60.0, "Seconds between saves that the lost share is reported for.")
DIRECTORY = flags.DEFINE_string("directory", None, "Where to write; a temporary directory by default.")


def make_state() -> dict:
    """Arrays of random numbers, as hard to compress as weights."""
    rows = MEGABYTES.value * 10**6 // LEAVES.value // 4 // 256
    keys = jax.random.split(jax.random.key(0), LEAVES.value)
    return {"params": {f"leaf_{i}": jax.random.normal(key, (rows, 256)) for i, key in enumerate(keys)}}


def report(name: str, **values: float) -> None:
    device = jax.devices()[0].device_kind
    values = {key: round(value, 5) for key, value in values.items()}
    print(json.dumps({"name": name, **values, "megabytes": MEGABYTES.value, "device": device}), flush=True)


def work_in(seconds: float, begin: float, step: jax.stages.Wrapped, x: jax.Array) -> int:
    """Steps done until ``seconds`` after ``begin``."""
    count = 0
    while time.perf_counter() - begin < seconds:
        jax.block_until_ready(step(x))
        count += 1
    return count


def measure(directory: str) -> None:
    state = jax.block_until_ready(make_state())
    here = jax.tree.map(lambda x: x.sharding, state)
    checkpoints = Checkpoints(directory, KeepLastAndBest(1))
    step, x = jax.jit(lambda x: jnp.tanh(x @ x)), jnp.ones((512, 512))
    jax.block_until_ready(step(x))
    stalls, saves, lost = [], [], []
    for i in range(ROUNDS.value + 1):
        begin = time.perf_counter()
        checkpoints.save(i, state, {"position": i})
        stall = time.perf_counter() - begin
        checkpoints.wait()
        save = time.perf_counter() - begin
        if i:  # the first one compiles the checksum
            stalls.append(stall)
            saves.append(save)
    window = max(5 * statistics.median(saves), 2.0)
    for i in range(ROUNDS.value):
        plain = work_in(window, time.perf_counter(), step, x)
        begin = time.perf_counter()
        checkpoints.save(100 + i, state, {"position": i})
        beside = work_in(window, begin, step, x)
        checkpoints.wait()
        lost.append(window * (1 - beside / plain))
    report("checkpoint/stall", seconds=statistics.median(stalls))
    report("checkpoint/save", seconds=statistics.median(saves))
    report("checkpoint/lost", share=statistics.median(lost) / INTERVAL.value, interval=INTERVAL.value)
    begin = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(abstract_state(state, here))[0])
    report("checkpoint/restore", seconds=time.perf_counter() - begin)
    checkpoints.close()


def main(_: list[str]) -> None:
    if DIRECTORY.value:
        measure(DIRECTORY.value)
    else:
        with tempfile.TemporaryDirectory() as directory:
            measure(directory)


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
