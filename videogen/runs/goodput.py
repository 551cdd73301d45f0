"""Where the wall time of a run goes: the share of it the devices spent in training steps, and what took the rest."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

LOSSES = ("compile", "input", "checkpoint", "evaluation")
"""What the loop waits for while no step runs; what is left over is "other" (start, logging)."""


class Goodput:
    """Splits the time since it was made into steps, compilation, input wait, checkpoints, evaluation and the rest.

    A step counts from when it could start (it was dispatched and the step before was done) until it is done.
    Waiting for input, while the step before still runs, costs nothing and is not counted.

    Args:
      clock: seconds; replaced in tests.

    Attributes:
      finished: steps that are done.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._start = clock()
        self._seconds = dict.fromkeys(("step", *LOSSES), 0.0)
        self._lock = threading.Lock()
        self._running: queue.SimpleQueue = queue.SimpleQueue()
        self.finished = self._dispatched = 0
        self._current: float | None = None
        self._idle_since = self._start
        self._thread = threading.Thread(target=self._watch, name="goodput", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def lost(self, what: str) -> Iterator[None]:
        """Counts the time in the body as lost to ``what``, less the time in which a step still ran."""
        began = self._clock()
        try:
            yield
        finally:
            ended = self._clock()
            with self._lock:
                if self._dispatched == self.finished:
                    self._seconds[what] += ended - max(began, min(self._idle_since, ended))

    def step(self, function: Callable[..., tuple[Any, Any]], *arguments: Any) -> tuple[Any, Any]:
        """Calls a compiled step ``(…) -> (state, metrics)``, which returns before the devices are done."""
        began = self._clock()
        result = function(*arguments)
        with self._lock:
            self._dispatched += 1
        # Not the state: the next step is given its memory.
        self._running.put((began, result[1]))
        return result

    def shares(self) -> dict[str, float]:
        """Percent of the wall time so far, by what it was spent on; they add up to 100."""
        with self._lock:
            now = self._clock()
            seconds = dict(self._seconds)
            if self._current is not None:
                seconds["step"] += now - self._current
            total = max(now - self._start, 1e-9)
            shares = {name: 100 * value / total for name, value in seconds.items()}
        return {**shares, "other": 100 - sum(shares.values())}

    def close(self) -> None:
        """Ends the counting."""
        self._running.put(None)

    def _watch(self) -> None:
        """Waits for each step in turn, so that its end is known without holding up the loop."""
        while (item := self._running.get()) is not None:
            began, result = item
            with self._lock:
                self._current = max(began, self._idle_since)
            try:
                jax.block_until_ready(result)
            except Exception:  # the loop reads the same result and meets the same error
                return
            with self._lock:
                self._idle_since = self._clock()
                self._seconds["step"] += self._idle_since - self._current
                self._current = None
                self.finished += 1
