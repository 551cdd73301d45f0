"""launch/local.py: the commands it starts, what it collects, and how it stops."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from launch import children as processes
from launch import local, local_report
from tests.processes import environment
from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.locks import locked

REPOSITORY = Path(__file__).parents[2]
CONFIG = "phenaki:size=debug"


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
    "generator": {"prompt_fidelity": shares(0.75), "frechet.shapes_stand_in": 4.321},
}
BESIDE = {
    "words": "Fréchet distance on a stand-in classifier; not FVD",
    "sides": "clips of the split 'eval' and samples",
    "network": "shapes_classifier",
    "network_hash": "0123456789",
    "counts": {"real": 128, "generated": 127},
    "clip": [5, 32, 24],
    "covariance": "divided by N - 1",
}
"""The protocol of a distance beside a generator's other numbers."""


class FakeChildren:
    """Writes what the real commands write, at once; ``codes`` are exit codes by command, or command and stage."""

    codes: dict[str, int] = {}
    ran: list[list[str]] = []
    stopped = False
    held_out = True

    def run(self, command: list[str]) -> int:
        self.ran.append(command)
        name = command[2].removeprefix("videogen.")
        given = dict(part.removeprefix("--").split("=", 1) for part in command[3:])
        stage = Path(given.get("workdir") or given["checkpoint"]).name
        if code := self.codes.get(name) or self.codes.get(f"{name} {stage}"):
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
        protocol["held_out"] = self.held_out
        if stage == "generator":
            protocol["beside"] = {"frechet.shapes_stand_in": BESIDE}
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
        for name in ("set", "data", "clip"):
            flags.FLAGS[name].unparse()
        # Commands that other tests imported into this process require flags of their own.
        monkeypatch.setattr(flags.FlagValues, "validate_all_flags", lambda self: None)
        flags.FLAGS(argv)
        local.main()
        return tmp_path / "run", FakeChildren.ran

    return run


def test_stages_run_in_order_and_later_ones_get_the_tokenizer(start):
    workdir, ran = start("--set=generator.steps=20", "--set=tokenizer.steps=10")
    assert ran == [
        ["python", "-m", "videogen.train", "--config=phenaki:stage=tokenizer,size=debug"]
        + ["--config.steps=10", f"--workdir={workdir}/tokenizer"],
        ["python", "-m", "videogen.evaluate", f"--checkpoint={workdir}/tokenizer"]
        + ["--protocol=reconstruction", f"--out={workdir}/tokenizer/evaluation.json"]
        + [f"--pictures={workdir}/tokenizer/pictures"],
        ["python", "-m", "videogen.train", "--config=phenaki:stage=generator,size=debug"]
        + ["--config.steps=20", f"--config.parts.tokenizer.checkpoint={workdir}/tokenizer"]
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
    assert "python launch/local.py --config=phenaki:size=debug" in commands
    assert all(" ".join(command) in commands for command in ran)
    assert page.count("<video") == 4


def test_the_report_shows_the_distance_of_samples_with_its_protocol(start):
    page = (start()[0] / "report.html").read_text(encoding="utf-8")
    assert "Fréchet distance (generator)" in page and "4.32" in page
    assert "Fréchet distance on a stand-in classifier; not FVD: 127 clips against 128; lower is better" in page
    protocol = (
        "stand-in classifier; not FVD; 128 against 127, clips of the split &#x27;eval&#x27; and samples, 5×32×24; "
    )
    assert f"{protocol}shapes_classifier (hash 01234567), covariance divided by N - 1" in page


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


def test_the_page_is_there_after_every_stage(start, tmp_path):
    with pytest.raises(SystemExit):
        start(codes={"train generator": 9})
    assert "dB" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["protocol"]) == {"tokenizer"} and metrics["tokenizer"] == METRICS["tokenizer"]


def test_stages_begin_with_the_weights_of_the_stage_their_config_names(tmp_path):
    stages = local.plan("configs/omnitokenizer.py:size=debug", tmp_path, ["kl.steps=5"])
    assert [stage.name for stage in stages] == ["image", "tokenizer", "kl", "autoregressive", "diffusion"]
    origins = [[part for part in stage.train if "start_from" in part] for stage in stages]
    assert origins == [[], *([f"--config.start_from.run={tmp_path / name}"] for name in ("image", "tokenizer")), [], []]
    assert stages[2].config.start_from.run == str(tmp_path / "tokenizer") and stages[2].config.steps == 5
    given = [[part for part in stage.train if "tokenizer.checkpoint" in part] for stage in stages]
    of = [f"--config.parts.tokenizer.checkpoint={tmp_path / name}" for name in ("tokenizer", "kl")]
    assert given == [[], [], [], of[:1], of[1:]]


def test_a_student_begins_with_and_learns_from_the_stage_its_config_names(tmp_path):
    *_, generator, student = local.plan("configs/videodit.py:size=debug", tmp_path, [])
    assert (generator.name, student.name) == ("generator", "distill")
    assert student.config.start_from.run == "" and student.config.parts.teacher.checkpoint == str(
        tmp_path / "generator"
    )
    assert "--protocol=prompt_fidelity" in student.evaluate


def test_a_stage_decodes_the_codes_of_the_stage_its_config_names(tmp_path):
    stages = local.plan("configs/cdt.py:size=debug", tmp_path, [])
    assert [stage.name for stage in stages] == ["tokenizer", "fsq", "detokenizer", "generator"]
    given = [[part for part in stage.train if "tokenizer.checkpoint" in part] for stage in stages]
    of = [f"--config.parts.tokenizer.checkpoint={tmp_path / name}" for name in ("fsq", "tokenizer")]
    assert given == [[], [], of[:1], of[1:]]
    assert all("--protocol=reconstruction" in stage.evaluate for stage in stages[:3])


def test_a_de_tokenizer_is_shown_beside_the_decoder_it_replaces(tmp_path):
    stage = local.plan("configs/cdt.py:size=debug", tmp_path, [])[2]
    stage.clips.parent.mkdir(parents=True)
    clips = {name: np.zeros((2, 5, 8, 8, 3), np.uint8) for name in ("originals", "deterministic", "reconstructions")}
    np.savez(stage.clips, **clips, captions=np.array(["a", "b"]))
    (stage.directory / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    learning, shown = local_report.tokenizer_sections(stage, 8.0)
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
        ("configs/phenaky.py", None, "no config 'configs/phenaky.py'.* did you mean 'phenaki'"),
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
    arguments = ["--config=phenaki:size=huge", f"--workdir={tmp_path}/run"]
    done = run_python(["launch/local.py", *arguments], devices=1)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown size 'huge'")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.fixture
def handlers():
    # A test run in the background is told to ignore some of them.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in processes.HANDED_ON}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_are_handed_on_once_and_nothing_follows(capfd, handlers, number):
    """Ctrl-C came twice, from the terminal and with the end of the launcher, and SIGHUP not at all."""
    children = local.Children()
    code = f"""
import os, signal, time
caught = []
signal.signal({int(number)}, lambda *_: caught.append(1))
assert os.getsid(0) == os.getpid()
os.kill(os.getppid(), {int(number)})
time.sleep(0.5)
print("caught", len(caught))
"""
    assert children.run(["python", "-c", code]) == 0
    assert children.stopped and "caught 1" in capfd.readouterr().out
    train = ["python", "-c", "print('tra' + 'ined')"]
    stage = local.Stage("tokenizer", None, Path(), train, None)
    with pytest.raises(SystemExit) as stop:
        local.run_stage(stage, children)
    assert stop.value.code == 0 and "trained" not in capfd.readouterr().out


def test_a_child_is_told_when_its_launcher_is_killed(tmp_path):
    """It went on training, and kept the directory from the next start."""
    child = f"""
import pathlib, signal, sys, time
def told(*_):
    pathlib.Path({str(tmp_path / "told")!r}).write_text("")
    sys.exit()
signal.signal(signal.SIGTERM, told)
pathlib.Path({str(tmp_path / "began")!r}).write_text("")
time.sleep(60)
"""
    launcher = f"from launch.children import Children; Children().run(['python', '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", launcher], cwd=REPOSITORY, env=environment())

    def wait(name: str) -> None:
        for _ in range(200):
            if (tmp_path / name).exists():
                return
            time.sleep(0.05)
        raise AssertionError(f"no {name}")

    wait("began")
    process.kill()
    process.wait()
    wait("told")


def test_a_cut_seconds_file_costs_nothing(start, capsys):
    workdir, _ = start()
    (workdir / "seconds.json").write_text('{"tokenizer": 1')
    start()
    assert "seconds.json is damaged: the time of earlier starts is not counted" in capsys.readouterr().out
    assert set(json.loads((workdir / "seconds.json").read_text())) == {"tokenizer", "generator"}


def test_the_same_run_started_twice_is_one_line(start, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(UserError, match="is in use by process"):
        start()
    assert FakeChildren.ran == []


@pytest.fixture
def videos(tmp_path):
    """A folder of three videos without captions."""
    (tmp_path / "videos").mkdir()
    for i in range(3):
        write_video(tmp_path / "videos" / f"{i}.mp4", np.zeros((4, 32, 32, 3), np.uint8), 8.0)
    return tmp_path / "videos"


def test_own_videos_and_clips_are_those_of_every_stage(tmp_path, videos, capsys):
    tokenizer, generator = local.plan(CONFIG, tmp_path, [], str(videos), "9x64x64")
    assert "no video has a caption, so this system is trained without text" in capsys.readouterr().out
    for stage in (tokenizer, generator):
        assert stage.config.data.source.name == "video_folder" and stage.config.data.source.path == str(videos)
        clip = stage.config.data.clip
        assert (clip.frames, clip.height, clip.width) == (9, 64, 64)
    assert generator.config.text.encoder.name == "none" and generator.evaluate is None
    (videos / "captions.jsonl").write_text('{"file": "%s.mp4", "caption": "x"}\n' * 3 % (0, 1, 2))
    assert local.plan(CONFIG, tmp_path, [], str(videos))[1].config.text.encoder.name == "transformer"
    # Stages of images stay stages of images; a tokenizer for clips of one size is built for these.
    image, *others = local.plan("configs/omnitokenizer.py:size=debug", tmp_path, [], None, "9x32x32")
    assert image.config.data.clip.frames == 1 and {stage.config.data.clip.frames for stage in others} == {9}
    larp = local.plan("configs/larp.py:size=debug", tmp_path, [], None, "8x32x32")[0].config
    assert tuple(larp.model.clip) == (8, 32, 32)
    with pytest.raises(UserError, match="--clip=9x64 must be FRAMESxHEIGHTxWIDTH"):
        local.plan(CONFIG, tmp_path, [], None, "9x64")
    with pytest.raises(UserError, match="no folder"):
        local.plan(CONFIG, tmp_path, [], str(tmp_path / "nowhere"))


def test_a_generator_that_is_told_nothing_is_not_asked_for_prompts(tmp_path):
    without_text = ["generator.text.encoder.name=none"]
    assert local.plan(CONFIG, tmp_path, without_text)[1].evaluate is None
    of_classes = local.plan(CONFIG, tmp_path, [*without_text, "generator.classes=7"])
    assert "--protocol=prompt_fidelity" in of_classes[1].evaluate


def test_a_generator_is_planned_for_the_data_of_its_tokenizer(tmp_path):
    stages = local.plan(CONFIG, tmp_path, ["tokenizer.data.source.name=video_folder"])
    assert stages[1].config.data.source.name == "video_folder" and stages[1].evaluate is None


def test_settings_without_a_stage_are_for_every_stage_that_has_them(tmp_path):
    settings = ["steps=7", "text.encoder.layers=2", "generator.steps=9"]
    tokenizer, generator = local.plan(CONFIG, tmp_path, settings)
    assert (tokenizer.config.steps, generator.config.steps) == (7, 9)
    assert generator.config.text.encoder.layers == 2 and not any("text.encoder" in part for part in tokenizer.train)


def test_a_report_claims_nothing_held_out_where_nothing_is(start, monkeypatch):
    page = (start()[0] / "report.html").read_text()
    assert "it has never seen" in page and "2 held-out clips of shapes" in page and "2 unseen prompts of shapes" in page
    monkeypatch.setattr(FakeChildren, "held_out", False)
    page = (start()[0] / "report.html").read_text()
    assert "never seen" not in page and "2 clips of the training set of shapes" in page
    assert "unseen" not in page and "eld-out" not in page


def test_the_last_line_says_the_results_and_where_the_report_is(start, capsys):
    workdir, _ = start()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("PSNR of reconstructions 21.7 dB, right colour 75%")
    assert last.endswith(f"in all; open {workdir}/report.html")


def test_samples_of_own_videos_are_shown_without_a_verdict(tmp_path, videos):
    stage = local.plan(CONFIG, tmp_path / "run", [], str(videos))[1]
    (stage.directory / "samples").mkdir(parents=True)
    (stage.directory / "metrics.jsonl").write_text('{"step": 2, "train/loss": 1.0}\n')
    for step in (1, 2):
        for i in range(2):
            file = stage.directory / "samples" / f"step_{step:07d}_samples_{i}.mp4"
            write_video(file, np.full((4, 32, 66, 3), 100 * step, np.uint8), 8.0)
    *_, shown = local_report.generator_sections(stage, 8.0, None)
    assert shown.render().count("<video") == 2 and shown.blocks[0].videos[0].mean() > 150


def test_a_model_of_streams_is_shown_with_what_it_says(tmp_path):
    (stage,) = local.plan("streams:size=debug", tmp_path / "run", [], None)
    assert "--protocol=streams" in stage.evaluate
    stage.clips.parent.mkdir(parents=True)
    (stage.directory / "metrics.jsonl").write_text('{"step": 2, "train/streaming": 1.0}\n')
    told, said = ["2: a red circle appears", "5: it leaves"], ["2: a red circle appears", "(nothing)"]
    videos = np.zeros((2, 4, 24, 24, 3), np.uint8)
    np.savez(stage.clips, videos=videos, prompts=np.array(told), readings=np.array(said))
    learning, shown = local_report.stream_sections(stage, 2.0, True)
    page = shown.render()
    assert page.count("<video") == 2 and "5: it leaves · said: (nothing)" in page
    assert "streaming" in learning.render()
