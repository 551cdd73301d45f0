"""Every command ends with its own exit code, whatever the libraries' threads and destructors are doing by then."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY, environment

COMMAND = """
import atexit, sys
from videogen import app
from videogen.errors import UserError

class Late:
    def __del__(self):
        print("torn down")

late = Late()

def main():
    atexit.register(print, "closed")
    print("worked")
    {ending}

app.run(main)
"""

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("ending", "code", "printed"),
    [
        ("pass", 0, ["worked", "closed"]),
        ("sys.exit(3)", 3, ["worked", "closed"]),
        ("raise UserError('no')", 2, ["worked", "closed"]),
        ("app.stop(OSError('full'))", 1, ["worked"]),
        ("raise RuntimeError('a fault of ours')", 1, ["worked", "closed"]),
    ],
)
def test_a_command_ends_with_its_code_and_without_tearing_the_interpreter_down(ending, code, printed):
    command = subprocess.run(
        [sys.executable, "-c", COMMAND.format(ending=ending)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert command.returncode == code, command.stderr
    assert command.stdout.splitlines() == printed


def test_messages_stand_above_the_progress_bar_on_lines_of_their_own():
    program = """
from absl import logging
from tqdm import tqdm
from videogen import app

def main():
    with tqdm(total=2) as bar:
        logging.warning("skipped one")
        bar.update()

app.run(main)
"""
    command = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "skipped one" in command.stderr.replace("\r", "\n").split("\n")


CLOSED = """
import os, sys, logging
from tqdm import tqdm
from videogen import app
from videogen.parallel.peers import say

app.survive_closed_streams()
# A file opened now must not take the place of a closed stream.
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    for _ in tqdm(range(3), mininterval=0):
        print("a" * 10_000, flush=True)
        print("b" * 10_000, file=sys.stderr, flush=True)
        logging.getLogger().warning("c")
        say("d", stacks=True)
    file.write("done")
"""


@pytest.mark.parametrize(
    "streams",
    ["<&- >&- 2>&-", *(pytest.param(s, marks=SLOW) for s in (">/dev/full 2>/dev/full", "2>&1 | head -c 1 >/dev/null"))],
)
def test_closed_and_full_streams_end_no_run(tmp_path, streams):
    (tmp_path / "closed.py").write_text(CLOSED)
    command = f"{sys.executable} {tmp_path}/closed.py {tmp_path}/written {streams}"
    subprocess.run(["bash", "-c", command], cwd=REPOSITORY, env=environment(), timeout=60)
    assert (tmp_path / "written").read_text() == "done"
