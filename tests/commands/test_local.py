"""launch/local.py: the commands it starts, what it collects, and how it stops."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from launch import local
from videogen.errors import UserError

REPOSITORY = Path(__file__).parents[2]
CONFIG = "configs/phenaki.py:size=debug"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def shares(value: float) -> dict[str, float]:
    return {"colour": value, "form": value, "direction": value, "count": value}


METRICS = {
    "tokenizer": {
        "psnr": 21.7,
        "ssim": 0.8,
        "codebook_usage": 0.5,
        "bits_per_pixel": 0.3,
        "judge_on_reconstructions": shares(0.9),
    },
    "generator": {"prompt_fidelity": shares(0.75)},
}


class FakeChildren:
    """Writes what the real commands write, at once; ``codes`` are exit codes by command name."""

    codes: dict[str, int] = {}
    ran: list[list[str]] = []
    stopped = False

    def run(self, command: list[str]) -> int:
        self.ran.append(command)
        name = command[2].removeprefix("videogen.")
        given = dict(part.removeprefix("--").split("=", 1) for part in command[3:])
        if code := self.codes.get(name, 0):
            return code
        if name == "train":
            directory = Path(given["workdir"])
            directory.mkdir(parents=True, exist_ok=True)
            record = {"step": 1, "train/loss": 1.0, "eval/psnr": 20.0}
            (directory / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        else:
            self.evaluate(Path(given["checkpoint"]).name, given)
        return 0

    def evaluate(self, stage: str, given: dict[str, str]) -> None:
        protocol = {"name": given["protocol"], "count": 2, "source": {"name": "shapes"}, "step": 1}
        record = {"protocol": protocol, "seed": 3, "commit": "abc", "hardware": "2 cores"}
        Path(given["out"]).write_text(json.dumps({**record, "metrics": METRICS[stage]}))
        clips = np.zeros((2, 5, 32, 32, 3), np.uint8)
        words = np.array(["a small red circle", "a large blue square"])
        if stage == "tokenizer":
            arrays = {"originals": clips, "reconstructions": clips, "captions": words}
        else:
            correct = np.array([[True, True, True], [True, False, True]])
            arrays = {"videos": clips, "prompts": words, "readings": words, "correct": correct}
        Path(given["pictures"]).mkdir(parents=True, exist_ok=True)
        np.savez(Path(given["pictures"]) / "clips.npz", **arrays)


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Runs the recipe with fake commands; returns the work directory and the commands."""

    def run(*arguments: str, codes: dict[str, int] | None = None):
        argv = ["launch/local.py", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(FakeChildren, "codes", codes or {})
        monkeypatch.setattr(FakeChildren, "ran", [])
        monkeypatch.setattr(local, "Children", FakeChildren)
        flags.FLAGS["set"].unparse()
        flags.FLAGS(argv)
        local.main()
        return tmp_path / "run", FakeChildren.ran

    return run


def test_stages_run_in_order_and_later_ones_get_the_tokenizer(start):
    workdir, ran = start("--set=generator.steps=20", "--set=tokenizer.steps=10")
    assert ran == [
        ["python", "-m", "videogen.train", "--config=configs/phenaki.py:stage=tokenizer,size=debug"]
        + ["--config.steps=10", f"--workdir={workdir}/tokenizer"],
        ["python", "-m", "videogen.evaluate", f"--checkpoint={workdir}/tokenizer"]
        + ["--protocol=reconstruction", f"--out={workdir}/tokenizer/evaluation.json"]
        + [f"--pictures={workdir}/tokenizer/pictures"],
        ["python", "-m", "videogen.train", "--config=configs/phenaki.py:stage=generator,size=debug"]
        + ["--config.steps=20", f"--config.tokenizer.checkpoint={workdir}/tokenizer"]
        + [f"--workdir={workdir}/generator"],
        ["python", "-m", "videogen.evaluate", f"--checkpoint={workdir}/generator"]
        + ["--protocol=prompt_fidelity", f"--out={workdir}/generator/evaluation.json"]
        + [f"--pictures={workdir}/generator/pictures"],
    ]


def test_metrics_hold_every_stage_with_protocol_seconds_seed_and_commit(start):
    workdir, _ = start()
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert {name: metrics[name] for name in METRICS} == METRICS
    seconds = metrics["seconds"]
    assert set(seconds) == {"tokenizer", "generator", "total"}
    assert seconds["total"] == pytest.approx(seconds["tokenizer"] + seconds["generator"])
    assert metrics["protocol"]["generator"]["name"] == "prompt_fidelity"
    assert (metrics["seed"], metrics["commit"], metrics["hardware"]) == (3, "abc", "2 cores")


def test_report_shows_numbers_clips_verdicts_and_the_exact_commands(start):
    workdir, ran = start("--set=tokenizer.steps=10")
    page = (workdir / "report.html").read_text(encoding="utf-8")
    verdicts = "✓ colour", "✗ form"
    for shown in ("21.7 dB", "75%", "a small red circle", *verdicts, "0.9"):
        assert shown in page
    commands = page[page.index("<pre>") :]
    assert "python launch/local.py --config=configs/phenaki.py:size=debug" in commands
    assert all(" ".join(command) in commands for command in ran)
    assert page.count("<video") == 4


def test_seconds_add_up_over_restarts(start, capsys):
    workdir, _ = start()
    (workdir / "seconds.json").write_text(json.dumps({"tokenizer": 100.0, "generator": 50.0}))
    start()
    seconds = json.loads((workdir / "metrics.json").read_text())["seconds"]
    assert 100 < seconds["tokenizer"] < 110 and 150 < seconds["total"] < 170
    assert "2 min 3" in capsys.readouterr().out


def test_a_failing_stage_stops_with_its_exit_code_and_one_line(start, capsys):
    with pytest.raises(SystemExit) as stop:
        start(codes={"evaluate": 7})
    assert stop.value.code == 7 and len(FakeChildren.ran) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: stage tokenizer failed with exit code 7: python -m videogen.evaluate")
    assert "\n" not in error


def test_stages_begin_with_the_weights_of_the_stage_their_config_names(tmp_path):
    stages = local.plan("configs/omnitokenizer.py:size=debug", tmp_path, ["kl.steps=5"])
    assert [stage.name for stage in stages] == ["image", "tokenizer", "kl"]
    origins = [[part for part in stage.train if "start_from" in part] for stage in stages]
    assert origins == [[], *([f"--config.start_from.run={tmp_path / name}"] for name in ("image", "tokenizer"))]
    assert stages[2].config.start_from.run == str(tmp_path / "tokenizer") and stages[2].config.steps == 5
    assert not any("tokenizer.checkpoint" in part for stage in stages for part in stage.train)


def test_a_student_begins_with_and_learns_from_the_stage_its_config_names(tmp_path):
    *_, generator, student = local.plan("configs/videodit.py:size=debug", tmp_path, [])
    assert (generator.name, student.name) == ("generator", "distill")
    assert student.config.start_from.run == "" and student.config.teacher.checkpoint == str(tmp_path / "generator")
    assert "--protocol=prompt_fidelity" in student.evaluate


def test_a_stage_decodes_the_codes_of_the_stage_its_config_names(tmp_path):
    stages = local.plan("configs/cdt.py:size=debug", tmp_path, [])
    assert [stage.name for stage in stages] == ["tokenizer", "fsq", "detokenizer"]
    given = [[part for part in stage.train if "tokenizer.checkpoint" in part] for stage in stages]
    assert given == [[], [], [f"--config.tokenizer.checkpoint={tmp_path / 'fsq'}"]]
    assert all("--protocol=reconstruction" in stage.evaluate for stage in stages)


def test_a_de_tokenizer_is_shown_beside_the_decoder_it_replaces(tmp_path):
    stage = local.plan("configs/cdt.py:size=debug", tmp_path, [])[2]
    stage.clips.parent.mkdir(parents=True)
    clips = {name: np.zeros((2, 5, 8, 8, 3), np.uint8) for name in ("originals", "deterministic", "reconstructions")}
    np.savez(stage.clips, **clips, captions=np.array(["a", "b"]))
    (stage.directory / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    learning, shown = local.tokenizer_sections(stage, 8.0)
    page = shown.render()
    assert page.index("original<") < page.index("frozen decoder<") < page.index("de-tokenizer<")
    assert page.count("<video") == 2 and "new decoder" in learning.text


def test_real_videos_are_not_judged_by_prompts(tmp_path):
    source = "data.source.name=video_folder"
    stages = local.plan(CONFIG, tmp_path, [f"tokenizer.{source}", f"generator.{source}"])
    assert stages[0].evaluate and stages[1].evaluate is None


@pytest.mark.parametrize(
    "config, setting, message",
    [
        ("configs/phenaky.py", None, "no config file configs/phenaky.py"),
        ("configs/common.py", None, "has no STAGES"),
        ("configs/phenaki.py:size=debugg", None, "did you mean 'debug'"),
        ("configs/phenaki.py:stage=tokenizer", None, "leave stage= out"),
        (CONFIG, "tokeniser.steps=1", "did you mean 'tokenizer'"),
        (CONFIG, "tokenizer.stepss=1", "'stepss'"),
        (CONFIG, "tokenizer.steps=many", "many"),
        (CONFIG, "tokenizer.steps", "STAGE.KEY=VALUE"),
        (CONFIG, "tokenizer", "STAGE.KEY=VALUE"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(tmp_path, config, setting, message):
    with pytest.raises(UserError, match=message):
        local.plan(config, tmp_path / "run", [setting] if setting else [])
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_line_and_exit_code_2(run_python, tmp_path):
    arguments = ["--config=configs/phenaki.py:size=huge", f"--workdir={tmp_path}/run"]
    done = run_python(["launch/local.py", *arguments], devices=1)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown size 'huge'")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_sigterm_is_handed_on_and_nothing_follows(capfd):
    before = signal.getsignal(signal.SIGTERM)
    try:
        children = local.Children()
        code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
        assert children.run(["python", "-c", code]) == -signal.SIGTERM
        assert children.stopped
    finally:
        signal.signal(signal.SIGTERM, before)
    train = ["python", "-c", "print('tra' + 'ined')"]
    stage = local.Stage("tokenizer", None, Path(), train, None)
    with pytest.raises(SystemExit) as stop:
        local.run_stage(stage, children)
    assert stop.value.code == 0 and "trained" not in capfd.readouterr().out
