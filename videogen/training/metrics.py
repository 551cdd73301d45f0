"""Where metrics go: ``metrics.jsonl`` (the record), TensorBoard (the curves), a progress bar (the eye)."""

import json
import math
import time
from collections.abc import Mapping

from absl import logging
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes the metrics of a run; only the first process of a job writes.

    Args:
      workdir: the run directory.
      step: the step the run goes on from; records beyond it belong to lost work and are dropped.
      enabled: whether this process writes.
    """

    def __init__(self, workdir: epath.PathLike, step: int, enabled: bool = True):
        self.enabled = enabled
        if not enabled:
            return
        workdir = epath.Path(workdir)
        self._path = workdir / FILE
        records = [r for r in read_metrics(self._path) if r["step"] <= step]
        self._path.write_text("".join(json.dumps(r) + "\n" for r in records))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one record ``{"step": …, "name/…": value, …}`` with full float precision."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.enabled:
            self._file.close()
            self._board.close()


def read_metrics(path: epath.PathLike) -> list[dict[str, float]]:
    """The records of a ``metrics.jsonl``; a last line cut by a crash is left out."""
    path = epath.Path(path)
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            logging.warning("%s: dropped an unfinished line", path)
    return records


class Progress:
    """A progress bar with the loss, videos per second and the time left."""

    def __init__(self, steps: int, step: int, batch_size: int, enabled: bool = True):
        self._bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not enabled,
            mininterval=1.0,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self._batch_size = batch_size
        self._since, self._steps = time.monotonic(), 0

    def update(self) -> None:
        """Counts one step."""
        self._steps += 1
        self._bar.update()

    def show(self, text: str) -> None:
        """Sets the text behind the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def videos_per_second(self) -> float:
        """Videos per second since the last call."""
        now = time.monotonic()
        rate = self._steps * self._batch_size / max(now - self._since, 1e-9)
        self._since, self._steps = now, 0
        return rate

    def close(self) -> None:
        self._bar.close()
