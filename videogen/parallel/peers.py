"""How the processes of a job learn that one of them has ended, which one, and why.

Every process leaves a sign of life in the key-value store of JAX's coordination service, which lives in process 0, and
looks there for notes of those that left. Process 0 also writes the note of a process that has fallen silent.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from videogen.exits import STOPPED, exit_at_once

PERIOD = 3.0
"""Seconds between two signs of life."""

SILENCE = 30.0
"""Seconds without one after which a process counts as dead."""

_BEAT, _LEFT = "videogen/beat/", "videogen/left/"


def say(message: str, stacks: bool = False) -> None:
    """Writes one line to stderr, from any thread and past all buffers.

    Args:
      message: what happened.
      stacks: whether the Python stack of every thread follows the line.
    """
    with contextlib.suppress(OSError):  # of a closed terminal
        os.write(2, f"\nerror: {message}\n".encode())
        if stacks:
            faulthandler.dump_traceback(file=2, all_threads=True)


class Peers:
    """The other processes of this job.

    Args:
      client: the client of JAX's coordination service.
      index: this process.
      hosts: host name of every process.

    Attributes:
      index: this process.
      step: the last finished training step, for messages; ``None`` before the first.
    """

    def __init__(self, client: Any, index: int, hosts: Mapping[int, str]):
        self.step: int | None = None
        self._client = client
        self.index = index
        self._hosts = dict(hosts)
        self._closed = threading.Event()
        self._seen = {other: ("", time.monotonic()) for other in self._hosts if other != index}
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()
        if index:
            # A thread of its own: calls to a process 0 that is frozen do not return.
            threading.Thread(target=self._watch_zero, name="process zero", daemon=True).start()

    def name(self, index: int) -> str:
        """``process 3 (node17)``."""
        return f"process {index} ({self._hosts[index]})"

    def here(self) -> str:
        """This process and how far it came."""
        return f"{self.name(self.index)} stops after step {self.step}"

    def leave(self, reason: str, stacks: bool = False) -> None:
        """Tells the others that this process is about to end, and why; they end too.

        Args:
          reason: what happened here.
          stacks: whether the others shall log their stacks.
        """
        note = {"reason": reason, "stacks": stacks}
        try:
            self._client.key_value_set(f"{_LEFT}{self.index}", json.dumps(note), allow_overwrite=True)
        except RuntimeError:
            return  # process 0 is gone and the others know
        self._outlive_others()

    def wait_for_cause(self) -> None:
        """Gives the watching thread time to find out who else has ended, in which case it ends this process too.

        Called when something failed here: a collective fails, or never returns, when another process is gone.
        """
        time.sleep(SILENCE + 3 * PERIOD)

    def close(self) -> None:
        """Ends the watching: from here on every process may leave."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        beats = 0
        while not self._closed.wait(PERIOD):
            beats += 1
            try:
                self._client.key_value_set(f"{_BEAT}{self.index}", str(beats), allow_overwrite=True)
                if self.index == 0:
                    self._note_silence()
                notes = self._client.key_value_dir_get(_LEFT)
            except RuntimeError:
                continue  # process 0 is gone: JAX aborts this process, and last words name it
            for key, note in notes:
                other = int(key.removeprefix(_LEFT))
                if other != self.index:
                    self._follow(other, **json.loads(note))
        try:
            self._client.key_value_set(f"{_BEAT}{self.index}", "closed", allow_overwrite=True)
        except RuntimeError:
            return

    def _watch_zero(self) -> None:
        """Ends this process when process 0, which would note the silence of others, is silent itself."""
        key, seen, since = f"{_BEAT}0", "", time.monotonic()
        while not self._closed.wait(PERIOD):
            try:
                beat = self._client.blocking_key_value_get(key, round(PERIOD * 1000))
            except Exception:  # no answer in time
                beat = seen
            if beat != seen or beat == "closed":
                seen, since = beat, time.monotonic()
            elif time.monotonic() - since > SILENCE and not self._closed.is_set():
                self._follow(0, f"no sign of life for {SILENCE:.0f} s", stacks=False)

    def _note_silence(self) -> None:
        """Writes the note of a process that has given no sign of life for too long."""
        now = time.monotonic()
        for key, beat in self._client.key_value_dir_get(_BEAT):
            other = int(key.removeprefix(_BEAT))
            if other != self.index and (beat != self._seen[other][0] or beat == "closed"):
                self._seen[other] = beat, now
        for other, (_, since) in self._seen.items():
            if now - since > SILENCE:
                note = {"reason": f"no sign of life for {SILENCE:.0f} s", "stacks": False}
                self._client.key_value_set(f"{_LEFT}{other}", json.dumps(note), allow_overwrite=True)

    def _follow(self, other: int, reason: str, stacks: bool) -> NoReturn:
        """Ends this process because another one has ended."""
        say(f"{self.name(other)} died: {reason}; {self.here()}", stacks)
        self._outlive_others()
        exit_at_once(STOPPED)

    def _outlive_others(self) -> None:
        """Process 0 carries the notes: it stays until the others have read them."""
        if self.index == 0:
            time.sleep(3 * PERIOD)


class LastWords:
    """Says in one line why JAX's runtime aborts this process: it does so when process 0 is gone.

    Args:
      joining: the line for an abort before the job has come together.
    """

    def __init__(self, joining: str):
        self._joining = joining
        self._peers: Peers | None = None
        self._coordinator = ""
        # The runtime raises SIGABRT in a thread of its own, where Python's signal handlers never run.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._speak)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)

    def know(self, peers: Peers, coordinator: str) -> None:
        """The job has come together; its process 0 listens at ``coordinator``, ``host:port``."""
        self._peers, self._coordinator = peers, coordinator
        peers.last_words = self  # the C library holds the handler's address, so this must live as long

    def _speak(self, _: int) -> None:
        if self._peers is None:
            say(self._joining)
        elif self._peers.index and not _reachable(self._coordinator):
            say(f"{self._peers.name(0)} died: {self._coordinator} no longer answers; {self._peers.here()}")
        else:
            say(f"the runtime aborted, see the lines above; {self._peers.here()}", stacks=True)
        exit_at_once(STOPPED)


def _reachable(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True
