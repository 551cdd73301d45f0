"""Every mistake of the design's list gives one line that names it and the remedy, and leaves the disk alone."""

import pytest

TOKENIZER = "--config=phenaki:stage=tokenizer,size=debug"
FEW = ["--config.steps=1", "--config.data.batch_size=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([TOKENIZER, "--config.stepz=3"], ["stepz"]),
        ([TOKENIZER, "--unknown_flag=3"], ["unknown_flag"]),
        (["--config=phenaki:stage=tokeniser"], ["tokeniser", "did you mean 'tokenizer'"]),
        (["--config=phenaki:size=hugo"], ["unknown size 'hugo'", "debug"]),
        (["--config=phenaky"], ["no config 'phenaky'", "did you mean 'phenaki'"]),
        ([TOKENIZER, "--config.data.clip.frames=8"], ["1 + 2·k frames", "use 7 or 9"]),
        ([TOKENIZER, "--config.data.clip.height=30"], ["height 30", "use 28 or 32"]),
        ([TOKENIZER, "--config.data.source.name=shape"], ["unknown source 'shape'", "did you mean 'shapes'"]),
        ([TOKENIZER, "--config.data.source.name=video_folder", "--config.data.source.path={tmp}/none"], ["none"]),
        ([TOKENIZER, "--config.data.source.name=video_folder", "--config.data.source.path={tmp}/empty"], ["empty"]),
        ([TOKENIZER, "--config.data.source.name=video_folder", "--config.data.source.path={tmp}/bad"], ["clip.mp4"]),
        ([TOKENIZER, "--config.parallel.mesh.data=3"], ["needs 3 devices", "parallel.mesh"]),
        ([TOKENIZER, "--config.parallel.mesh.fsdp=0"], ["mesh sizes must be positive"]),
        ([TOKENIZER, "--config.model.quantizer.name=vqq"], ["unknown quantizer 'vqq'"]),
        ([TOKENIZER, "--config.parallel.frozen=hole"], ["parallel.frozen 'hole'", "did you mean 'whole'"]),
        ([TOKENIZER, "--config.accumulate=3"], ["does not divide by accumulate"]),
        (["--config=phenaki:stage=generator"], ["tokenizer.checkpoint"]),
    ],
)
def test_train_names_the_mistake(run_command, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "clip.mp4").write_text("no video")
    workdir = tmp_path / "run"
    few = FEW if arguments[0] == TOKENIZER and "accumulate" not in arguments[-1] else []
    done = run_command("train", *(a.format(tmp=tmp_path) for a in arguments + few), f"--workdir={workdir}")
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not (workdir / "checkpoints").exists() or not list((workdir / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sample", "evaluate", "export", "tokenize"])
def test_other_commands_name_a_missing_checkpoint(run_command, tmp_path, command):
    extra = {"sample": ["--prompt=a"], "evaluate": ["--protocol=reconstruction"]}.get(command, [])
    done = run_command(command, f"--checkpoint={tmp_path}/none", f"--out={tmp_path}/out", *extra)
    assert done.returncode == 2, done.stderr
    assert "none is no run or export directory" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_required_flags_are_named(run_command):
    done = run_command("train", TOKENIZER)
    assert done.returncode == 2 and "workdir" in done.stderr and "Traceback" not in done.stderr


def test_help_teaches(run_command):
    done = run_command("sample", "--help")
    assert done.returncode == 0 and "--story" in done.stdout and "animates a picture" in done.stdout
