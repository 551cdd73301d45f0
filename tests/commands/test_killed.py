"""Commands that are killed in the middle, and started again."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import REPOSITORY, environment
from tests.training_configs import tiny
from tests.untrained import save_untrained


@pytest.mark.slow
def test_an_evaluation_goes_on_and_gives_the_numbers_of_one_that_was_not_killed(tmp_path):
    run, out = save_untrained(tiny(), tmp_path / "run"), tmp_path / "x.json"
    command = [sys.executable, "-m", "videogen.evaluate", f"--checkpoint={run}", "--protocol=reconstruction"]
    settings = {"cwd": REPOSITORY, "env": environment(), "stderr": subprocess.PIPE, "text": True}
    command += ["--count=64", f"--out={out}"]
    process = subprocess.Popen(command, **settings)
    while not (out.parent / "x.json.parts" / "scores_3.npz").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    records = []
    for finished in (True, False):
        done = subprocess.run(command, **settings)
        assert done.returncode == 0, done.stderr
        assert ("batches were finished by an earlier start" in done.stderr) == finished
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.json"]
        records.append(json.loads(out.read_text()))
    assert records[0] == records[1]
