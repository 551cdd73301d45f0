"""How a process ends: the exit codes, and the way out that no library can spoil."""

import contextlib
import multiprocessing
import os
import sys
from typing import NoReturn

STOPPED = 1
"""Exit code after a fault: the input was right, but something else went wrong."""

BAD_INPUT = 2
"""Exit code after a mistake in the input."""

INTERRUPTED = 130
"""Exit code after a Ctrl-C that found nothing to save."""


def exit_at_once(code: int) -> NoReturn:
    """Ends this process without tearing the interpreter down.

    Tearing it down waits for the other processes of a job, and races with the threads of XLA and TensorStore: one that
    lets go of a Python object too late aborts the process after its work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, RuntimeError):
            stream.flush()
    # Nothing else ends the data workers now.
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
