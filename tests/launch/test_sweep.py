"""launch/sweep.py: the commands it starts, what it resumes, and how it ranks."""

import json
from pathlib import Path

import pytest
from absl import flags

from launch import local, sweep
from videogen.errors import UserError
from videogen.locks import locked

REPOSITORY = Path(__file__).parents[2]
CONFIG = "phenaki:stage=tokenizer,size=debug"
NAME = "tokenizer_learning_rate"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


class FakeChildren:
    """Writes what training writes, at once; variants listed in ``fail`` write nothing."""

    ran: list[list[str]] = []
    fail: set[float] = set()
    stopped = False

    def run(self, command: list[str]) -> int:
        self.ran.append(command)
        given = dict(part.removeprefix("--").split("=", 1) for part in command[3:])
        rate = float(given["config.optimizer.tokenizer.learning_rate"])
        if rate in self.fail:
            return 1
        directory = Path(given["workdir"])
        directory.mkdir(parents=True)
        # The best rate is the middle one.
        records = [{"step": s, "eval/psnr": s * (1 - abs(rate - 1.5e-3) * 100), "eval/ssim": 0.5} for s in (10, 20)]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (directory / "report.html").write_text("")
        return 0


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Runs a sweep with fake training; returns the work directory and the commands."""

    def run(*arguments: str, fail: set[float] = frozenset()):
        argv = ["launch/sweep.py", f"--config={CONFIG}", f"--sweep={NAME}", f"--workdir={tmp_path / 'sweep'}"]
        argv += ["--set=steps=20", *arguments]
        monkeypatch.setattr(FakeChildren, "ran", [])
        monkeypatch.setattr(FakeChildren, "fail", fail)
        monkeypatch.setattr(local, "Children", FakeChildren)
        flags.FLAGS["set"].unparse()
        flags.FLAGS["dry_run"].unparse()
        # Commands that other tests imported into this process require flags of their own.
        monkeypatch.setattr(flags.FlagValues, "validate_all_flags", lambda self: None)
        flags.FLAGS(argv)
        sweep.main()
        return tmp_path / "sweep", FakeChildren.ran

    return run


def test_a_dry_run_prints_every_command_and_starts_none(start, capsys):
    workdir, ran = start("--dry_run")
    lines = capsys.readouterr().out.splitlines()
    assert ran == [] and not workdir.exists() and len(lines) == 3
    assert all(line.startswith("python -m videogen.train --config=phenaki") for line in lines)
    assert "--config.steps=20 --config.optimizer.tokenizer.learning_rate=0.0005" in lines[0]
    assert len({line.rpartition("--workdir=")[2] for line in lines}) == 3


def test_the_summary_ranks_the_variants(start):
    workdir, ran = start()
    assert len(ran) == 3
    summary = json.loads((workdir / "summary.json").read_text())
    rates = [v["settings"]["optimizer.tokenizer.learning_rate"] for v in summary["variants"]]
    assert summary["metric"] == "eval/psnr" and rates[0] == 1.5e-3 and len(rates) == 3
    lines = (workdir / "summary.md").read_text().splitlines()
    assert lines[0] == "| settings | eval/psnr | eval/ssim | finished |"
    assert lines[2] == "| optimizer.tokenizer.learning_rate=0.0015 | 20 | 0.5 | yes |"
    assert (workdir / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_variant_is_told_and_only_it_runs_again(start, capsys):
    with pytest.raises(SystemExit) as stop:
        start(fail={5e-3})
    assert stop.value.code == 1 and len(FakeChildren.ran) == 3
    assert "error: 1 of 3 variants failed: optimizer.tokenizer.learning_rate=0.005" in capsys.readouterr().err
    workdir, ran = start()
    assert len(ran) == 1 and "--config.optimizer.tokenizer.learning_rate=0.005" in ran[0]
    assert len(json.loads((workdir / "summary.json").read_text())["variants"]) == 3


def test_more_steps_make_variants_unfinished(start):
    start()
    variants = sweep.plan(CONFIG, NAME, Path(flags.FLAGS.workdir), ["steps=20"])
    assert all(variant.finished() for variant in variants)
    variants = sweep.plan(CONFIG, NAME, Path(flags.FLAGS.workdir), ["steps=30"])
    assert not any(variant.finished() for variant in variants)


@pytest.mark.parametrize(
    ("config", "name", "settings", "message"),
    [
        (CONFIG, "tokenizer_learning_rat", [], f"did you mean '{NAME}'"),
        ("configs/phenaki.py:stage=generator", NAME, [], "tokenizer"),
        (CONFIG, NAME, ["stepz=3"], "stepz"),
        ("configs/none.py", NAME, [], "no config 'configs/none.py'"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(tmp_path, config, name, settings, message):
    with pytest.raises(UserError, match=message):
        sweep.plan(config, name, tmp_path / "sweep", settings)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_the_command(run_python, tmp_path):
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}/run"]
    done = run_python(["launch/sweep.py", *arguments, f"--sweep={NAME}", "--dry_run"], devices=1)
    assert done.returncode == 0 and done.stdout.count("videogen.train") == 3, done.stderr
    done = run_python(["launch/sweep.py", *arguments], devices=1)
    assert done.returncode == 2 and done.stderr.startswith("error: --sweep is missing")


def test_settings_may_name_the_stage_as_for_local_runs(tmp_path):
    for setting in ("steps=30", "tokenizer.steps=30"):
        assert {variant.steps for variant in sweep.plan(CONFIG, NAME, tmp_path, [setting])} == {30}


@pytest.mark.slow
def test_help_lists_the_flags(run_python):
    done = run_python(["launch/sweep.py", "--help"], devices=1)
    for name in ("config", "workdir", "set", "sweep", "metric"):
        assert f"--{name}:" in done.stdout, done.stdout


def test_the_same_sweep_started_twice_is_one_line(start, tmp_path):
    with locked(tmp_path / "sweep"), pytest.raises(UserError, match="is in use by process"):
        start()
    assert FakeChildren.ran == []


def test_a_key_with_a_colon_is_an_argument_of_the_config(tmp_path):
    variants = sweep.plan("one_vae:stage=tokenizer,size=debug", "codes", tmp_path, ["steps=7"])
    assert [variant.directory.name for variant in variants] == ["codes=fsq", "codes=vq", "codes=lfq"]
    assert variants[1].command[3:] == [
        "--config=one_vae:stage=tokenizer,size=debug,codes=vq",
        "--config.steps=7",
        f"--workdir={tmp_path / 'codes=vq'}",
    ]
    assert sweep.plan("one_vae", "codes", tmp_path, [])[2].command[3] == "--config=one_vae:codes=lfq"
