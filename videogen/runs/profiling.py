"""Traces of a few training steps, for xprof or TensorBoard."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from etils import epath

from videogen.errors import UserError


def parse_window(text: str | None) -> tuple[int, int] | None:
    """Reads ``START:COUNT``.

    Raises:
      UserError: not of this form.
    """
    if text is None:
        return None
    start, colon, count = text.partition(":")
    if not (colon and start.isdigit() and count.isdigit() and int(count)):
        raise UserError(f"--profile={text} must be START:COUNT, e.g. --profile=20:5 for 5 steps after the 20th")
    return int(start), int(count)


class Profiler:
    """Traces a window of steps into ``tensorboard/plugins/profile`` of the run directory.

    Args:
      workdir: the run directory.
      window: number of steps before the first one that is traced, and how many are; ``None`` traces nothing.
    """

    def __init__(self, workdir: epath.Path, window: tuple[int, int] | None):
        self._directory = workdir / "tensorboard"
        self._window = range(window[0], sum(window)) if window else range(0)
        self._tracing = self._traced = False

    @contextlib.contextmanager
    def step(self, step: int, state: Any) -> Iterator[None]:
        """The body dispatches the step after ``step`` finished ones, beginning with ``state``."""
        if step in self._window and not self._tracing:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory))
            self._tracing = self._traced = True
        elif self._tracing and step not in self._window:
            jax.block_until_ready(state)
            self.close()
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
            yield

    def close(self) -> None:
        """Ends the trace, if one is being made."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            logging.info("the profile is in %s; open it with: tensorboard --logdir=%s", *(self._directory,) * 2)
        elif self._window and not self._traced:
            logging.warning("nothing was profiled: no step %d to %d was run", self._window[0] + 1, self._window[-1] + 1)
            self._window = range(0)
