"""When one process of a job ends, the others end too and say which one it was."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.processes import environment

IDLE = """
import sys, time
from videogen import exits
from videogen.parallel import distributed, peers

peers.PERIOD, peers.SILENCE = 0.2, 3.0
port, index, action = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
others = distributed.initialize(distributed.Job("flags", f"127.0.0.1:{port}", 2, index), timeout=100)
others.step = 7
print("ready", flush=True)

def the_place_where_it_waits():
    time.sleep(100)

if action == "leave":
    others.leave("the cable was pulled", stacks=True)
    exits.exit_at_once(3)
elif action == "close":
    time.sleep(1)
    others.close()
    time.sleep(5)
else:
    the_place_where_it_waits()
"""


class Process:
    """One of two processes that only wait."""

    def __init__(self, port: int, index: int, action: str):
        arguments = [sys.executable, "-c", IDLE, str(port), str(index), action]
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(arguments, env=environment(), stdout=pipe, stderr=pipe, text=True)

    def ready(self) -> None:
        assert self.popen.stdout.readline() == "ready\n", self.popen.stderr.read()

    def end(self) -> tuple[int, str]:
        """Exit code and what was written to stderr."""
        _, errors = self.popen.communicate(timeout=60)
        return self.popen.returncode, errors


@pytest.fixture
def start():
    """``start(action of process 0, action of process 1)`` -> the processes, once they have met."""
    started: list[Process] = []

    def run(*actions: str) -> list[Process]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        started.extend(Process(port, index, action) for index, action in enumerate(actions))
        for process in started:
            process.ready()
        return started

    yield run
    for process in started:
        process.popen.kill()


@pytest.mark.slow
def test_a_killed_process_is_named(start):
    survivor, victim = start("wait", "wait")
    time.sleep(1)
    victim.popen.send_signal(signal.SIGKILL)
    code, errors = survivor.end()
    host = socket.gethostname()
    message = f"process 1 ({host}) died: no sign of life for 3 s; process 0 ({host}) stops after step 7"
    assert code == 1 and errors.strip().splitlines()[-1] == f"error: {message}"


@pytest.mark.slow
def test_the_death_of_process_0_is_named_although_it_carries_the_notes(start):
    victim, survivor = start("wait", "wait")
    time.sleep(1)
    victim.popen.send_signal(signal.SIGKILL)
    code, errors = survivor.end()
    assert code == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"error: process 0 ({socket.gethostname()}) died") and last.endswith("after step 7")


@pytest.mark.slow
def test_a_frozen_process_0_is_named(start):
    frozen, survivor = start("wait", "wait")
    time.sleep(1)
    frozen.popen.send_signal(signal.SIGSTOP)
    try:
        code, errors = survivor.end()
    finally:
        frozen.popen.send_signal(signal.SIGCONT)
    host = socket.gethostname()
    message = f"process 0 ({host}) died: no sign of life for 3 s; process 1 ({host}) stops after step 7"
    assert code == 1 and errors.strip().splitlines()[-1] == f"error: {message}"


@pytest.mark.slow
@pytest.mark.parametrize("leaver", [0, 1])
def test_who_leaves_says_why_and_the_other_logs_its_stack(start, leaver):
    processes = start(*("leave" if index == leaver else "wait" for index in range(2)))
    code, errors = processes[1 - leaver].end()
    assert code == 1 and f"process {leaver} ({socket.gethostname()}) died: the cable was pulled" in errors
    assert "in the_place_where_it_waits" in errors
    assert processes[leaver].end()[0] == 3


@pytest.mark.slow
def test_who_is_finished_is_not_taken_for_dead(start):
    assert [process.end()[0] for process in start("close", "close")] == [0, 0]
