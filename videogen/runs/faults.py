"""What watches over a run: that it saves when it is told to end, and does not stand still unnoticed."""

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from videogen.exits import STOPPED, exit_at_once
from videogen.parallel.distributed import current_peers
from videogen.parallel.peers import say


class Termination:
    """Notices SIGTERM, Ctrl-C, the end of the terminal or a preemption notice, to any process of the job.

    The loop then saves between two steps. A second Ctrl-C ends the process at once. A hang-up that the process was told
    to ignore (nohup) stays ignored.

    Attributes:
      signal: the name of what was noticed.
    """

    def __init__(self):
        self.signal = "a preemption notice"
        self._received = False
        self._previous: dict[signal.Signals, Any] = {}
        caught = [signal.SIGINT, signal.SIGHUP]
        if jax.process_count() == 1:
            caught.append(signal.SIGTERM)
        for number in caught:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, _: Any) -> None:
        if self._received and number == signal.SIGINT:
            say("stopped at once, by the second Ctrl-C; what came after the last checkpoint is lost")
            exit_at_once(128 + number)
        self._received = True
        self.signal = signal.Signals(number).name
        if jax.process_count() > 1:
            # In a job of several, JAX's runtime has its own handler of SIGTERM, which tells the other processes.
            os.kill(os.getpid(), signal.SIGTERM)

    def due(self, step: int) -> bool:
        """Whether to save and stop now; to be asked once after every step, true at the same step in all processes."""
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)

    def restore(self) -> None:
        """Gives the signals back their earlier meaning."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


_GUARD = """
import os, select, signal, sys
parent, patience, silent = int(sys.argv[1]), float(sys.argv[2]), 0.0
while silent <= patience:
    if select.select([0], [], [], 1.0)[0]:
        if not os.read(0, 1024):
            sys.exit()
        silent = 0.0
    elif open(f"/proc/{parent}/stat").read().rpartition(")")[2].split()[0] not in "Tt":
        silent += 1.0
os.write(2, b"\\nerror: the process lets none of its threads run; the stack of every thread follows\\n")
os.kill(parent, signal.SIGABRT)
"""


def start_guard(seconds: float) -> subprocess.Popen:
    """A process that aborts this one, with its stacks in the log, when it writes nothing to it for so many seconds.

    The seconds are those in which this process is not stopped (SIGSTOP). It ends when its input is closed. Where there
    is no ``/proc`` it ends at once.
    """
    faulthandler.enable(file=2)
    command = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), str(seconds)]
    quiet = {} if os.path.exists("/proc/self/stat") else {"stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True, **quiet)


class Watchdog:
    """Ends the process when the loop makes no progress, after logging the stack of every thread and the last step.

    The other processes of the job are told, and log their own stacks.

    Args:
      seconds: how long the loop may take from one ``beat`` to the next; compiling is part of it.
    """

    def __init__(self, seconds: float):
        self._seconds, self._period = seconds, min(seconds / 4, 10.0)
        # Should no thread get a turn, because native code holds the interpreter, another process takes over.
        self._guard = start_guard(seconds + 6 * self._period)
        self._peers = current_peers()
        self._step, self._since, self._doing = None, time.monotonic(), "starting"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int, doing: str) -> None:
        """Progress was made: ``step`` steps are finished, and the loop is now ``doing`` something."""
        self._step, self._since, self._doing = step, time.monotonic(), doing
        if self._peers is not None:
            self._peers.step = step

    def close(self) -> None:
        """Ends the watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        period, looked = self._period, time.monotonic()
        while not self._closed.wait(period):
            with contextlib.suppress(OSError):
                self._guard.stdin.write(b".")
            now = time.monotonic()
            if now - looked > 2 * period:
                # This thread stood still, too: the process was stopped (SIGSTOP, a sleeping machine) and not the loop.
                self._since += now - looked - period
            looked = now
            silent = time.monotonic() - self._since
            if silent > self._seconds:
                self._end(f"no progress for {silent:.0f} s while {self._doing}, last finished step {self._step}")
        self._guard.stdin.close()
        self._guard.wait()

    def _end(self, reason: str) -> None:
        where = f"{self._peers.name(self._peers.index)}: " if self._peers else ""
        say(f"{where}{reason}; the stack of every thread follows (stall_seconds sets the patience)", stacks=True)
        if self._peers is not None:
            self._peers.leave(reason, stacks=True)
        exit_at_once(STOPPED)
