"""What is wrong is said before anything is written, and a directory holds one run at a time."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from etils import epath

from tests.processes import REPOSITORY, environment
from tests.training_configs import tiny
from videogen.configs import magvit2, phenaki
from videogen.errors import UserError
from videogen.locks import LOCK, locked
from videogen.training import checks
from videogen.training.checks import building, check_config
from videogen.training.loading import load
from videogen.training.loop import train
from videogen.training.start import prepare
from videogen.training.workdir import say_changed_data


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


REFUSED = [
    ({"data.clip.frames": 16}, "1 \\+ 2·k frames"),
    ({"data.clip.height": 30}, "height 30"),
    ({"model.heads": 3}, "heads"),
    ({"model.width": 15}, "width"),
    ({"parallel.dtype": "float23"}, "config.parallel.dtype 'float23'; did you mean 'float32'"),
    ({"parallel.remat": "nothing"}, "config.parallel.remat 'nothing'"),
    ({"model.quantizer.name": "vqq"}, "did you mean 'vq'"),
    ({"optimizer.tokenizer.name": "adam"}, "did you mean 'adamw'"),
    ({"optimizer.tokenizer.schedule": "cosin"}, "did you mean 'cosine'"),
    ({"losses.perceptual.weight": 1.0, "losses.perceptual.name": "lpips"}, "path"),
    ({"steps": 0}, "config.steps must be a whole number of at least 1, got 0"),
    ({"seed": -1}, "config.seed must be a whole number of at least 0 and at most 4294967294, got -1"),
    ({"data.workers": -1}, "config.data.workers must be"),
    ({"ema.decay": 1.0}, "config.ema.decay must be a number of at least 0 and below 1, got 1.0"),
    ({"optimizer.tokenizer.b2": 1.0}, "config.optimizer.tokenizer.b2 must be"),
    (
        {"optimizer.tokenizer.learning_rate": float("nan")},
        "config.optimizer.tokenizer.learning_rate must be a number of at least 0, got nan",
    ),
    ({"model.width": 2**26}, "GiB on each device"),
    ({"classes": 3}, "config.classes is 3, and the source has 24"),
    ({"data.source.name": "video_folder", "data.source.path": "/nowhere"}, "nowhere"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[",".join(changes) for changes, _ in REFUSED])
def test_a_refused_start_leaves_nothing_behind(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as refusal:
        train(tiny(**changes), tmp_path / "run")
    assert "\n" not in str(refusal.value)
    assert files(tmp_path) == []


def test_both_splits_are_checked_and_the_message_names_the_setting(tmp_path):
    data = {"data.source.name": "video_folder", "data.source.path": str(tmp_path / "videos")}
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "videos" / name).write_bytes(b"x")
    before = files(tmp_path)
    with pytest.raises(UserError, match="data.source.holdout"):
        prepare(tiny(**data, **{"data.source.holdout": 0.01}), epath.Path(tmp_path / "run"))
    assert files(tmp_path) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("start") / "run"
    train(tiny(), workdir)
    return workdir


@pytest.mark.slow
def test_a_run_without_a_checkpoint_takes_a_corrected_config(finished, tmp_path, caplog):
    workdir = epath.Path(tmp_path)
    (workdir / "config.json").write_text((finished / "config.json").read_text())
    with caplog.at_level(logging.INFO, logger="absl"):
        start = prepare(tiny(**{"model.mlp_width": 32}), workdir)
    assert "holds no checkpoint yet" in caplog.text
    with start.claimed():
        assert json.loads((workdir / "config.json").read_text())["model"]["mlp_width"] == 32


def test_a_run_with_a_checkpoint_refuses_other_settings_and_says_what_helps(finished):
    before = files(finished)
    with pytest.raises(UserError, match=rf"'model.mlp_width' differs; .*--config.start_from.run={finished}"):
        prepare(tiny(**{"model.mlp_width": 32}), epath.Path(finished))
    assert files(finished) == before


def test_other_steps_move_the_learning_rate_which_is_said_with_the_horizon(finished, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        prepare(tiny(steps=41), epath.Path(finished))
    # The peak is 1.5e-3; a schedule of one step has ended at 2 % of it.
    assert "the learning rate of tokenizer goes from 3e-05 to 0.0015 at step 1" in caplog.text
    assert "its schedule now ends at step 41, not 1 (--config.optimizer.tokenizer.horizon=1 keeps it)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="absl"):
        prepare(tiny(**{"steps": 41, "optimizer.tokenizer.horizon": 1}), epath.Path(finished))
    assert "learning rate" not in caplog.text


@pytest.mark.slow
def test_what_an_evaluation_finds_wrong_costs_no_state(tmp_path):
    with pytest.raises(
        UserError, match="keep_best.metric='psn' is not evaluated; did you mean 'psnr'.*saved at step 2"
    ):
        train(
            tiny(**{"steps": 3, "eval_every": 2, "checkpoint_every": 3, "checkpoint.keep_best.metric": "psn"}), tmp_path
        )
    assert load(tmp_path).step == 2
    run = train(tiny(**{"steps": 3, "eval_every": 2, "checkpoint_every": 3}), tmp_path)
    assert int(run.state["step"]) == 3


@pytest.mark.slow
def test_a_crash_in_an_evaluation_costs_no_state_and_is_evaluated_again(tmp_path, monkeypatch):
    from videogen.tasks import TokenizerTask

    settings = {"steps": 2, "eval_every": 1, "checkpoint_every": 2}
    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTask, "pictures", lambda *_: 1 / 0)
        patch.setattr(TokenizerTask, "evaluate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny(**settings), tmp_path)
    assert load(tmp_path).step == 1
    train(tiny(**settings), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "eval/psnr" in r] == [1, 2]


@pytest.mark.slow
def test_a_metric_that_is_not_finite_ends_the_run_with_its_state(tmp_path, monkeypatch):
    from videogen.runs.stops import NotFinite
    from videogen.tasks import TokenizerTask

    monkeypatch.setattr(TokenizerTask, "evaluate", lambda *_: {"psnr": float("nan")})
    with pytest.raises(NotFinite, match="psnr is not finite in the evaluation after step 1"):
        train(tiny(), tmp_path)
    assert load(tmp_path).step == 1


def test_a_second_run_in_a_directory_is_one_line_and_a_left_lock_is_taken_over(tmp_path, caplog):
    holder = f"""
import time
from etils import epath
from videogen.locks import locked
with locked(epath.Path({str(tmp_path)!r})):
    print("locked", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", holder], cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(UserError, match=f"in use by process {process.pid} on .* since"), locked(epath.Path(tmp_path)):
        pass
    process.kill()
    process.wait()
    with caplog.at_level(logging.INFO, logger="absl"), locked(epath.Path(tmp_path)):
        assert f"was left without a word by process {process.pid}" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="absl"), locked(epath.Path(tmp_path)):
        assert caplog.text == "" and json.loads((tmp_path / LOCK).read_text())["pid"]
    assert (tmp_path / LOCK).read_text() == ""


def test_processes_of_a_job_must_have_the_same_settings(monkeypatch):
    other = tiny(steps=7)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checks, "from_process_zero", lambda _: json.dumps(checks.flatten(other)))
    with pytest.raises(UserError, match="config.steps is 1 in process 0 and 7 in process 0"):
        checks.check_same_everywhere(tiny())
    checks.check_same_everywhere(other)


def test_a_raw_error_of_a_part_becomes_one_line():
    message = r"^the model cannot be built from these settings \(ValueError: a b\); --verbosity=1 shows where$"
    with pytest.raises(UserError, match=message), building("the model"):
        raise ValueError("a\nb")
    with pytest.raises(UserError, match="^known$"), building("the model"):
        raise UserError("known")


def test_sections_are_no_values():
    config = tiny().to_dict()
    config["data"]["clip"] = 3
    from ml_collections import ConfigDict

    with pytest.raises(UserError, match="config.data.clip must be a section with keys of its own, got 3"):
        check_config(ConfigDict(config))


def test_published_and_other_configs_pass():
    for size in ("debug", "small", "paper"):
        check_config(phenaki.get_config(f"stage=generator,size={size}"))
        check_config(magvit2.get_config(f"stage=tokenizer,size={size}"))


@pytest.mark.slow
def test_what_small_clips_cannot_be_measured_by_is_left_out_with_a_word(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        run = train(tiny(**{"data.clip.height": 8, "data.clip.width": 12}), tmp_path)
    assert "clips of 8x12 pixels are too small for ssim: left out" in caplog.text
    (record,) = [r for r in map(json.loads, (tmp_path / "metrics.jsonl").open()) if "eval/psnr" in r]
    assert "eval/ssim" not in record and "eval/gradient_sharpness" in record
    assert int(run.state["step"]) == 1


def test_changed_data_are_said(tmp_path, caplog):
    from videogen.data.inputs import clip_of
    from videogen.data.video_folder import VideoFolderSource

    videos, run = tmp_path / "videos", epath.Path(tmp_path / "run")
    videos.mkdir()
    run.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (videos / name).write_bytes(b"1")

    def start() -> str:
        caplog.clear()
        source = VideoFolderSource(clip=clip_of(tiny()), seed=0, split="train", path=str(videos), holdout=0.0)
        say_changed_data(run, source.contents(), len(source))
        return caplog.text

    assert start() == start() == ""
    (videos / "b.mp4").write_bytes(b"22")
    assert "have changed since the last start (2 samples then, 2 now)" in start()
    (videos / "c.mp4").write_bytes(b"3")
    assert "(2 samples then, 3 now)" in start()
    assert start() == ""
    (run / "data.json").write_text("[")
    assert start() == ""
