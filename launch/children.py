"""The processes that a launcher starts: one at a time, told of every signal once, and gone when the launcher is."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from typing import Any

from videogen.environment import LARGE_PAGES

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Children:
    """Runs commands one after another and hands Ctrl-C, SIGTERM and the end of the terminal on to the one that runs.

    Children have a session of their own: the terminal does not reach them, so each signal comes once. Where the system
    allows it (Linux) a child gets SIGTERM when the launcher is killed, and saves.

    Attributes:
      stopped: whether a signal came; nothing is started after it.
    """

    def __init__(self):
        self.stopped = False
        self._child: subprocess.Popen | None = None
        for number in HANDED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, _: Any) -> None:
        self.stopped = True
        if self._child is not None:
            self._child.send_signal(number)

    def run(self, command: list[str]) -> int:
        """Runs a command in this terminal and returns its exit code; after a signal nothing is started."""
        if self.stopped:
            return 0
        print(f"\n$ {shlex.join(command)}", flush=True)
        parent = os.getpid()

        def follow() -> None:
            if hasattr(_LIBC, "prctl"):
                _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
                if os.getppid() != parent:
                    os.kill(os.getpid(), signal.SIGTERM)

        self._child = subprocess.Popen(
            [sys.executable, *command[1:]], env=LARGE_PAGES | os.environ, start_new_session=True, preexec_fn=follow
        )
        if self.stopped:  # between the question above and the start
            self._child.send_signal(signal.SIGTERM)
        code = self._child.wait()
        self._child = None
        return code
