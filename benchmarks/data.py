"""Clips per second of the input pipeline, per core and over numbers of worker processes.

    python benchmarks/data.py --source=shapes --workers=0 --workers=1 --workers=2
    python benchmarks/data.py --source=video_folder --path=my_videos --frames=17 --height=128 --width=128

Prints one JSON line per number of workers: {"name", "workers", "clips_per_second", "clips_per_core_second", "clip",
"cores"}. ``clips_per_core_second`` divides by the processor time that this process and its workers took, so that it
holds on a busy machine as well. Workers and decoders start before the clock does.
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import data  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402

SOURCE = flags.DEFINE_string("source", "shapes", "Name of the data source.")
PATH = flags.DEFINE_string("path", None, "Its path.")
WORKERS = flags.DEFINE_multi_integer("workers", [0, 1, 2], "Numbers of worker processes to measure.")
FRAMES = flags.DEFINE_integer("frames", 9, "Frames per clip.")
HEIGHT = flags.DEFINE_integer("height", 64, "Pixels.")
WIDTH = flags.DEFINE_integer("width", 64, "Pixels.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips per batch.")
BATCHES = flags.DEFINE_integer("batches", 60, "Timed batches.", lower_bound=1)

WARM_UP = 5
"""Batches before the clock starts, more than the pipeline reads ahead."""


def processor_seconds() -> float:
    """Processor time so far of this process and its workers (Linux)."""
    seconds = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def measure(workers: int) -> dict[str, float]:
    """Wall and processor rates of one pipeline."""
    settings = {"name": SOURCE.value} | ({"path": PATH.value} if PATH.value else {})
    clip = data.Clip(FRAMES.value, HEIGHT.value, WIDTH.value, 8.0)
    source = data.build(settings, clip=clip, seed=0, split="train")
    pipeline = data.Pipeline(source, batch_size=BATCH_SIZE.value, seed=0, workers=workers, text=None)
    for _ in range(WARM_UP):
        next(pipeline)
    begin, before = time.perf_counter(), processor_seconds()
    for _ in range(BATCHES.value):
        next(pipeline)
    seconds, spent = time.perf_counter() - begin, processor_seconds() - before
    pipeline.close()
    clips = BATCHES.value * BATCH_SIZE.value
    return {"clips_per_second": round(clips / seconds, 2), "clips_per_core_second": round(clips / spent, 2)}


def main(_: list[str]) -> None:
    for workers in WORKERS.value:
        record = {"name": f"data/{SOURCE.value}", "workers": workers, **measure(workers)}
        record |= {"clip": [FRAMES.value, HEIGHT.value, WIDTH.value], "cores": os.cpu_count()}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
