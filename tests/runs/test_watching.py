"""What watches over a run: signals that save, stalls that end it, and pauses that do not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import REPOSITORY, environment
from videogen.runs.faults import Termination

WATCHED = """
import ctypes, sys, time
from videogen.runs.faults import Watchdog
watchdog = Watchdog(float(sys.argv[2]))
watchdog.beat(3, "input")
print("begun", flush=True)
if sys.argv[1] == "native":
    ctypes.PyDLL(None).sleep(60)
elif sys.argv[1] == "python":
    time.sleep(60)
for step in range(20):
    time.sleep(0.2)
    watchdog.beat(step, "step")
watchdog.close()
"""


def watched(kind: str, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", WATCHED, kind, str(seconds)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), **pipes)
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_loop_that_stands_still_ends_with_its_stack_and_last_step():
    process = watched("python", 2.0)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "while input, last finished step 3" in errors and "in <module>" in errors


@pytest.mark.slow
def test_native_code_that_holds_the_interpreter_is_ended_from_outside():
    process = watched("native", 2.0)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == -signal.SIGABRT
    assert "lets none of its threads run" in errors and "in <module>" in errors


@pytest.mark.slow
def test_a_stopped_process_is_no_stall():
    process = watched("none", 2.0)
    time.sleep(0.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(7)  # the guard's patience is 5 s
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "no progress" not in errors


@pytest.fixture
def termination():
    # A test run in the background is told to ignore some of them.
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    begun = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    kept = {number: signal.getsignal(number) for number in numbers}
    yield Termination
    for number, handler in kept.items():
        assert signal.getsignal(number) == handler
        signal.signal(number, begun[number])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_every_wish_to_end_saves_between_two_steps(termination, number):
    notice = termination()
    assert not notice.due(1)
    os.kill(os.getpid(), number)
    assert notice.due(1) and notice.signal == number.name
    notice.restore()


def test_a_hang_up_under_nohup_is_no_wish_to_end():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        notice = Termination()
        os.kill(os.getpid(), signal.SIGHUP)
        assert not notice.due(1)
        notice.restore()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_ends_at_once():
    code = """
import os, signal, time
from videogen.runs.faults import Termination
signal.signal(signal.SIGINT, signal.default_int_handler)
notice = Termination()
os.kill(os.getpid(), signal.SIGINT)
assert notice.due(1)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(30)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 130 and "what came after the last checkpoint is lost" in done.stderr
