"""What a run writes down besides its checkpoints, also where files cannot grow."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from ml_collections import ConfigDict

from videogen.configuration import load_config, save_config
from videogen.data.video_io import write_video
from videogen.reporting.run_page import write_run_report
from videogen.runs import records as metrics
from videogen.runs.records import MetricsWriter, Progress, last_result, read_metrics
from videogen.tasks import Picture


@pytest.fixture
def bucket(monkeypatch):
    """``gs://bucket/run`` in this process's memory."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: memory)
    return epath.Path("gs://bucket/run")


def test_torn_doubled_and_odd_lines_are_cut_off_on_resume(tmp_path):
    good = [{"step": 1, "train/loss": 1.0}, {"step": 1, "eval/psnr": 9.0}, {"step": 2, "train/loss": 0.5}]
    lines = [json.dumps(record).encode() for record in good]
    again = json.dumps({"step": 1, "eval/psnr": 9.5}).encode()
    torn = [lines[2][:9] + lines[2], b"", b"\xff\xfe\x00", b"[1]", b'{"loss": 1}', b'{"step": "2"}', lines[2][:-4]]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, again, *torn]))
    writer = MetricsWriter(epath.Path(tmp_path), 2)
    kept = [good[0], {"step": 1, "eval/psnr": 9.5}, good[2]]
    assert writer.records == kept
    writer.write(3, {"train/loss": 0.25})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [*kept, {"step": 3, "train/loss": 0.25}]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("remote", [False, True])
def test_records_of_lost_work_are_dropped_and_others_stay(tmp_path, bucket, remote):
    workdir = bucket if remote else epath.Path(tmp_path)
    workdir.mkdir(parents=True, exist_ok=True)
    writer = MetricsWriter(workdir, 0)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": 1 / step})
    writer.close()
    writer = MetricsWriter(workdir, 2)
    assert [record["step"] for record in writer.records] == [1, 2]
    writer.write(3, {"train/loss": 0.1})
    writer.flush()
    records = read_metrics(workdir / "metrics.jsonl")
    assert [record["train/loss"] for record in records] == [1, 0.5, 0.1]
    writer.close()
    assert list((workdir / "tensorboard").iterdir())


def test_a_run_directory_in_a_bucket(bucket):
    bucket.mkdir(parents=True, exist_ok=True)
    config = ConfigDict({"task": "tokenizer", "steps": 3, "data": {"clip": {"fps": 8.0}}})
    save_config(bucket / "config.json", config)
    assert load_config(bucket / "config.json") == config
    writer = MetricsWriter(bucket, 0)
    writer.write(3, {"train/loss": 1.0})
    writer.close()
    clip = np.zeros((3, 16, 16, 3), np.uint8)
    write_video(bucket / "clip.mp4", clip, 8)
    assert b"ftyp" in (bucket / "clip.mp4").read_bytes()[:16]
    write_run_report(bucket, config, [Picture("samples", [(clip,)], ["a clip"])])
    assert "a clip" in (bucket / "report.html").read_text()


def test_a_line_cut_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "train/loss": 1.0}) + '\n{"step": 2, "tra')
    assert read_metrics(path) == [{"step": 1, "train/loss": 1.0}]


def test_speeds_follow_from_steps_and_hold_when_two_records_come_at_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("videogen.runs.records.time.monotonic", lambda: now[0])
    progress = Progress(10, 0, enabled=False)
    progress.peak = 12e12
    for videos, flops in ((2, 2e12), (4, 3e12), (6, 4e12)) * 2:
        progress.update(videos, 50 * videos, flops)
    now[0] += 3
    expected = {
        "speed/videos_per_second": 8,
        "speed/tokens_per_second": 400,
        "speed/tflops_per_second": 6,
        "speed/mfu": 0.5,
    }
    assert progress.speeds() == pytest.approx(expected)
    assert progress.speeds() == pytest.approx(expected)
    progress.close()


@pytest.mark.parametrize(
    ("seconds", "steps", "expected"),
    [(0.1, 1000, "0.1 s a step: 989 more steps take about 1 min 38 s"), (40.0, 90, "88 more steps take about 58 min")],
)
def test_how_long_a_run_will_take_is_said_once_from_its_first_steps(monkeypatch, caplog, seconds, steps, expected):
    clock = iter(1000.0 + seconds * i for i in range(10_000))
    progress = Progress(steps, 0)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level(logging.INFO, logger="absl"):
        for _ in range(50):
            progress.update(1, 1, 0.0)
    progress.close()
    lines = [record.getMessage() for record in caplog.records if "more steps" in record.getMessage()]
    assert len(lines) == 1 and expected in lines[0]


@pytest.mark.parametrize(
    ("seconds", "words"), [(7.4, "7 s"), (98.9, "1 min 38 s"), (7300, "2 h 1 min"), (200_000, "2 d 7 h")]
)
def test_durations_are_two_units(seconds, words):
    assert metrics.duration(seconds) == words


def test_the_last_line_of_a_training_says_the_metric():
    records = [{"step": 5, "eval/psnr": 20.0, "eval/loss": 1.0}, {"step": 9, "train/loss": 1.0}]
    assert last_result(records) == ", eval/psnr 20 at step 5" and last_result([]) == ""
    assert last_result([{"step": 5, "eval/loss": 0.12345}]) == ", eval/loss 0.1235 at step 5"
