"""Where metrics go: ``metrics.jsonl`` (the record), TensorBoard (the curves), a progress bar (the eye)."""

import json
import math
import tempfile
import time
from collections.abc import Mapping

from absl import logging
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from videogen.configuration import is_remote, replace_text
from videogen.runs.stops import storage_errors

FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes the metrics of a run; only the first process of a job writes.

    Args:
      workdir: the run directory.
      step: the step the run goes on from; records beyond it belong to lost work and are dropped.
      enabled: whether this process writes.

    Attributes:
      records: those of earlier starts that still hold.
    """

    def __init__(self, workdir: epath.PathLike, step: int, enabled: bool = True):
        workdir = epath.Path(workdir)
        self.enabled = enabled
        self._path = workdir / FILE
        # A record that a restart wrote again stands twice; the last one holds.
        records = {(r["step"], *sorted(r)): r for r in read_metrics(self._path) if r["step"] <= step}
        self.records = list(records.values())
        if not enabled:
            return
        self._lines = [json.dumps(r) + "\n" for r in self.records]
        self._replace()
        # In an object store the record is written anew with every flush, and TensorBoard's files are copied there.
        self._staging = tempfile.TemporaryDirectory() if is_remote(workdir) else None
        self._file = None if self._staging else self._path.open("a")
        board = self._staging.name if self._staging else str(workdir / "tensorboard")
        self._board = SummaryWriter(board, purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one record ``{"step": …, "name/…": value, …}`` with full float precision."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in values.items()}
        line = json.dumps({"step": step, **values}) + "\n"
        with storage_errors(self._path.parent, "make room there and start the same command again"):
            if self._file is None:
                self._lines.append(line)
            else:
                self._file.write(line)
                self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Brings everything to a remote directory; local ones are up to date with every record."""
        if not self.enabled or self._staging is None:
            return
        self._replace()
        self._board.flush()
        target = self._path.parent / "tensorboard"
        target.mkdir(exist_ok=True)
        for file in epath.Path(self._staging.name).iterdir():
            (target / file.name).write_bytes(file.read_bytes())

    def _replace(self) -> None:
        """Writes the whole record anew, in one stroke."""
        with storage_errors(self._path.parent, "make room there and start the same command again"):
            replace_text(self._path, "".join(self._lines))

    def close(self) -> None:
        """Writes what is left and closes the files."""
        if self.enabled:
            self.flush()
            with storage_errors(self._path.parent, "make room there and start the same command again"):
                if self._file is not None:
                    self._file.close()
                self._board.close()
            if self._staging is not None:
                self._staging.cleanup()


def read_metrics(path: epath.PathLike) -> list[dict[str, float]]:
    """The records of a ``metrics.jsonl``; lines that a crash has cut are left out."""
    path = epath.Path(path)
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
            records.append(record)
        except (ValueError, TypeError, KeyError):
            logging.warning("%s: dropped an unfinished line", path)
    return records


def last_result(records: list[dict[str, float]]) -> str:
    """The metric that says most of the last evaluation, in words; empty where there was none."""
    values = [record for record in records if any(name.startswith("eval/") for name in record)]
    name = next((n for n in ("eval/psnr", "eval/loss") if values and n in values[-1]), None)
    return f", {name} {values[-1][name]:.4g} at step {values[-1]['step']}" if name else ""


def duration(seconds: float) -> str:
    """``seconds`` in words: the two largest units."""
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // smaller_size)} {smaller}"
    return f"{seconds:.0f} s"


class Progress:
    """How fast a run is, and a progress bar with the loss, videos per second and the time left.

    Args:
      steps: at which the run ends.
      step: from which it goes on.
      enabled: whether the bar shows.

    Attributes:
      peak: floating-point operations per second that all devices can do; 0 where that is not known.
    """

    def __init__(self, steps: int, step: int, enabled: bool = True):
        self._bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not enabled,
            mininterval=1.0,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self.peak = 0.0
        self._left, self._enabled = steps - step, enabled
        self._begun: float | None = None
        self._counted = 0
        self._since = time.monotonic()
        self._videos = self._tokens = self._flops = 0.0
        self._speeds = dict.fromkeys(("speed/videos_per_second", "speed/tokens_per_second"), 0.0)

    def update(self, videos: int, tokens: int, flops: float) -> None:
        """Counts one step, of so many videos, tokens and, over all devices, floating-point operations."""
        self._videos += videos
        self._tokens += tokens
        self._flops += flops
        self._bar.update()
        self._estimate()

    def _estimate(self) -> None:
        """Says once how long the run will take: after ten steps, or fewer long ones, the first of which compile."""
        now = time.monotonic()
        self._left -= 1
        if self._begun is None:
            self._begun = now
            return
        self._counted += 1
        if not self._enabled or not (self._counted == 10 or now - self._begun > 30):
            return
        seconds = (now - self._begun) / self._counted
        if seconds * self._left > 10:
            logging.info(
                "%.3g s a step: %d more steps take about %s, evaluations and checkpoints apart",
                *(seconds, self._left, duration(seconds * self._left)),
            )
        self._enabled = False

    def show(self, text: str) -> None:
        """Sets the text behind the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def speeds(self) -> dict[str, float]:
        """Rates since the last call: ``speed/videos_per_second`` and what follows from it, over all devices."""
        now = time.monotonic()
        if not self._videos:  # before an evaluation two steps are recorded at once
            return self._speeds
        seconds = max(now - self._since, 1e-9)
        speeds = {
            "speed/videos_per_second": self._videos / seconds,
            "speed/tokens_per_second": self._tokens / seconds,
        }
        if self._flops:
            speeds["speed/tflops_per_second"] = self._flops / seconds / 1e12
        if self._flops and self.peak:
            speeds["speed/mfu"] = self._flops / seconds / self.peak
        self._since, self._videos, self._tokens, self._flops = now, 0.0, 0.0, 0.0
        self._speeds = speeds
        return speeds

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
