"""The shell launchers: what they would run, what they refuse, and how they go on after an interruption."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
POD = ["launch/tpu_pod.sh", "--name=run1", "--zone=us-east5-a", "--type=v5p-128", "--version=v2-alpha-tpuv5"]
TPUS = ["launch/gke/submit.sh", "--name=run1", "--image=registry/videogen", "--accelerator=tpu-v5p-slice"]
TPUS += ["--topology=4x4x4", "--hosts=16", "--chips=4"]
GPUS = ["launch/gke/submit.sh", "--name=run1", "--image=registry/videogen", "--accelerator=nvidia-h100-80gb"]
GPUS += ["--hosts=8", "--chips=8"]
TRAIN = ["--config=phenaki:stage=tokenizer,size=small", "--workdir=gs://bucket/run1"]
SLURM = ["launch/slurm.sbatch"]


@pytest.fixture
def path(tmp_path):
    """Fake commands come first here, and note how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def fake(name: str, body: str = "") -> None:
        (folder / name).write_text(f'#!/usr/bin/env bash\necho {name} "$@" >> {tmp_path}/calls\n{body}\n')
        (folder / name).chmod(0o755)

    for name in ("gcloud", "kubectl", "xpk", "srun", "scontrol"):
        fake(name)
    return tmp_path, {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}, fake


def run(path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *command], cwd=REPOSITORY, env=path[1], capture_output=True, text=True, timeout=60)


def calls(path) -> list[str]:
    file = path[0] / "calls"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("command", [[*POD, "--dry_run", "--"], [*TPUS, "--dry_run", "--"], [*SLURM, "--dry_run"]])
def test_a_dry_run_shows_the_training_command_and_runs_nothing(path, command):
    done = run(path, *command, *TRAIN)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.replace("\\", "")
    assert "videogen.train" in shown and all(argument in shown for argument in TRAIN)
    assert calls(path) == []


def test_a_dry_run_of_slurm_may_be_asked_for_anywhere(path):
    first, last = (run(path, *SLURM, *command) for command in (["--dry_run", *TRAIN], [*TRAIN, "--dry_run"]))
    assert first.stdout == last.stdout != "" and "dry_run" not in first.stdout and calls(path) == []


def test_every_value_is_quoted_in_the_jobset(path):
    argument = "--config.x=\"a\\b\"\n\t: @HOSTS@ 'c' # {d}"
    image = 'registry/video"gen:1'
    command = [*TPUS, f"--image={image}", "--hosts=016", "--restarts=09", "--dry_run", "--", *TRAIN, argument]
    spec = yaml.safe_load(run(path, *command).stdout)["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 9
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["parallelism"] == 16 and container["image"] == image and container["args"][2] == argument


def test_tpu_jobset(path):
    manifest = yaml.safe_load(run(path, *TPUS, "--slices=2", "--dry_run", "--", *TRAIN, '--config.x="a b"').stdout)
    assert manifest["kind"] == "JobSet" and manifest["metadata"]["name"] == "run1"
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 16
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    (container,) = pod["containers"]
    assert container["args"] == [*TRAIN, '--config.x="a b"', "--interrupted_exit_code=75"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_gpu_jobset_tells_the_processes_their_job(path):
    from videogen.parallel.distributed import find_job

    manifest = yaml.safe_load(run(path, *GPUS, "--dry_run", "--", *TRAIN).stdout)
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    job = find_job({**environment, "JOB_COMPLETION_INDEX": "5"})
    assert (job.address, job.count, job.index) == ("run1-node-0-0.run1:8476", 8, 5)


def test_the_jobset_is_applied(path):
    done = run(path, *GPUS, "--", *TRAIN)
    assert done.returncode == 0 and calls(path) == ["kubectl apply -f -"]
    assert run(path, *TPUS, "--with=xpk", "--", *TRAIN).returncode == 0
    assert calls(path)[1].startswith("xpk workload create --workload=run1")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*POD[:-1], "--", *TRAIN], "--version is missing"),
        ([*POD, "--spott", "--", *TRAIN], "unknown option --spott"),
        ([*POD, "--", TRAIN[0]], "--workdir=gs://BUCKET/RUN is missing"),
        ([*POD, "--", TRAIN[0], "--workdir=runs/here"], "all hosts must share it"),
        ([*TPUS[:3], "--", *TRAIN], "--accelerator is missing"),
        ([*TPUS, "--hosts=many", "--", *TRAIN], "--hosts must be a whole number"),
        ([*TPUS, "--name=Run_1", "--", *TRAIN], "--name must be lower-case"),
        ([*GPUS, "--slices=2", "--", *TRAIN], "--slices is for TPUs"),
        ([*GPUS, "--with=xpk", "--", *TRAIN], "--with must be kubectl"),
        ([*SLURM, TRAIN[1]], "--config is missing"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(path, command, message):
    done = run(path, *command)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert calls(path) == []


GCLOUD = """
case "$*" in
  *describe*) cat {folder}/state ;;
  *" create "*) echo READY > {folder}/state ;;
  *" delete "*) : > {folder}/state ;;
  *videogen.train*)
    # Preempted the first time.
    if [[ ! -e {folder}/once ]]; then touch {folder}/once; echo PREEMPTED > {folder}/state; exit 1; fi ;;
esac
"""


def test_a_preempted_slice_is_made_anew_and_training_goes_on(path):
    folder, _, fake = path
    (folder / "state").write_text("")
    fake("gcloud", GCLOUD.format(folder=folder))
    path[1]["VIDEOGEN_RESTART_SECONDS"] = "0"
    done = run(path, *POD, "--spot", "--delete", "--", *TRAIN)
    assert done.returncode == 0 and "goes on from the last checkpoint" in done.stderr, done.stderr
    verbs = [call.split()[4] for call in calls(path) if "describe" not in call]
    once = ["create", "scp", "ssh", "ssh"]
    assert verbs == [*once, "delete", *once, "delete"]


@pytest.mark.parametrize("how", ["exit 75", "echo videogen.train was interrupted; exit 1"])
def test_an_interrupted_run_goes_on_although_the_slice_still_says_ready(path, how):
    folder, environment, fake = path
    environment["VIDEOGEN_RESTART_SECONDS"] = "0"
    (folder / "state").write_text("READY")
    body = f'[[ "$*" != *videogen.train* || -e {folder}/once ]] || {{ touch {folder}/once; {how}; }}'
    fake("gcloud", f'[[ "$*" != *describe* ]] || cat {folder}/state\n{body}')
    done = run(path, *POD, "--restarts=09", "--", *TRAIN)
    assert done.returncode == 0 and "interrupted, and saved its state" in done.stderr, done.stderr
    assert sum("videogen.train" in call for call in calls(path)) == 2
    assert not any(" create " in call or " delete " in call for call in calls(path))


def test_a_slice_that_cannot_be_made_is_asked_for_again(path):
    folder, environment, fake = path
    environment["VIDEOGEN_RESTART_SECONDS"] = "0"
    (folder / "state").write_text("")
    create = f"if [[ ! -e {folder}/once ]]; then touch {folder}/once; exit 1; fi; echo READY > {folder}/state"
    fake("gcloud", f'case "$*" in *describe*) cat {folder}/state ;; *" create "*) {create} ;; esac')
    done = run(path, *POD, "--", *TRAIN)
    assert done.returncode == 0 and "could not be made ready" in done.stderr, done.stderr
    assert sum(" create " in call for call in calls(path)) == 2
    fake("gcloud", '[[ "$*" != *" create "* ]]')
    (folder / "calls").unlink()
    done = run(path, *POD, "--restarts=2", "--", *TRAIN)
    assert done.returncode == 1 and done.stderr.endswith("error: no end after 2 restarts\n")
    assert sum(" create " in call for call in calls(path)) == 3


def test_a_failed_training_is_not_started_again(path):
    folder, _, fake = path
    (folder / "state").write_text("READY")
    fake("gcloud", f'[[ "$*" == *describe* ]] && cat {folder}/state; [[ "$*" != *videogen.train* ]]')
    done = run(path, *POD, "--", *TRAIN)
    assert done.returncode == 1 and done.stderr.endswith("error: training failed; see above\n")
    assert sum("videogen.train" in call for call in calls(path)) == 1


def test_slurm_saves_and_requeues_before_the_time_limit(path):
    folder, environment, fake = path
    fake(
        "srun", f"trap 'echo saved >> {folder}/calls; exit 0' TERM\ntouch {folder}/started\nwhile :; do sleep 0.1; done"
    )
    command = ["bash", *SLURM, *TRAIN]
    job = subprocess.Popen(command, cwd=REPOSITORY, env={**environment, "SLURM_JOB_ID": "17"})
    deadline = time.monotonic() + 30
    while not (folder / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 0
    assert calls(path)[1:] == ["saved", "scontrol requeue 17"]


@pytest.mark.parametrize("code", [0, 3])
def test_slurm_hands_on_the_exit_code(path, code):
    path[2]("srun", f"exit {code}")
    assert run(path, *SLURM, *TRAIN).returncode == code
    assert not any("requeue" in call for call in calls(path))
