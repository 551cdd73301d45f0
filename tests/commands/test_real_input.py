"""Real clips and broken files through the whole of training and evaluation."""

import json
import math
import re
from pathlib import Path

import pytest

MUST_SKIP = (
    "empty.mp4",
    "text_renamed.mp4",
    "truncated_index_at_end.mp4",
    "audio_only.mp4",
    "huge_size_in_stream.mp4",
    "huge_size_budget.mp4",
)


@pytest.mark.slow
def test_bad_files_are_skipped_with_a_reason_and_the_run_finishes(run_command, shared, tmp_path):
    run = tmp_path / "run"
    done = run_command(
        "train",
        "--config=phenaki:stage=tokenizer,size=debug",
        f"--workdir={run}",
        "--config.data.source.name=video_folder",
        f"--config.data.source.path={shared}/data/clips,{shared}/data/broken",
        "--config.data.source.holdout=0",
        "--config.data.clip.frames=5",
        "--config.data.workers=2",
        "--config.data.batch_size=16",
        "--config.steps=10",
        "--config.log_every=5",
    )
    assert done.returncode == 0, done.stderr
    skipped = {Path(path).name for path in re.findall(r"skipped (\S+): ", done.stderr)}
    assert set(MUST_SKIP) <= skipped, done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [r for r in records if "train/loss" in r]
    assert trained[-1]["step"] == 10 and trained[-1]["data/skipped"] >= len(MUST_SKIP)
    assert all(math.isfinite(r["train/loss"]) for r in trained)
    pictures = tmp_path / "pictures"
    done = run_command(
        "evaluate",
        f"--checkpoint={run}",
        "--protocol=reconstruction",
        "--count=4",
        f"--out={tmp_path}/evaluation.json",
        f"--pictures={pictures}",
    )
    assert done.returncode == 0, done.stderr
    assert len(list(pictures.glob("reconstruction_*.mp4"))) == 4
    assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["psnr"] > 5
