"""Trains every variant of a named sweep, one after another, and tells which settings did best.

    python launch/sweep.py --config=phenaki:stage=tokenizer,size=debug --sweep=tokenizer_learning_rate \\
        --workdir=runs/sweep [--set=steps=200] [--metric=eval/psnr] [--dry_run]

A config file names its sweeps in ``SWEEPS``: name -> list of {key: value}; {":argument": value} is an argument of the
config, what follows the colon of --config. Every variant gets a run directory named after its settings; the same
command again goes on with what is not finished. --dry_run prints the commands and runs none.
Writes summary.md, summary.json and summary.png into the work directory.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from launch import common, local, systems  # noqa: E402
from videogen import app  # noqa: E402
from videogen.configuration import replace_text, short_config  # noqa: E402
from videogen.errors import UserError, near_matches  # noqa: E402
from videogen.exits import STOPPED  # noqa: E402
from videogen.locks import locked  # noqa: E402
from videogen.reporting.page import METRICS  # noqa: E402
from videogen.runs.records import FILE, read_metrics  # noqa: E402

SWEEP = flags.DEFINE_string("sweep", None, "Name of the sweep in the config file.")
METRIC = flags.DEFINE_string("metric", None, "What variants are ranked by; by default eval/psnr or else eval/loss.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, run none.")

DEFAULT_METRICS = ("eval/psnr", "eval/loss")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One run of a sweep.

    Attributes:
      settings: what sets it apart.
      steps: at which it is finished.
      directory: its run directory.
      command: trains it.
    """

    settings: Mapping[str, Any]
    steps: int
    directory: Path
    command: list[str]

    def records(self) -> list[dict[str, float]]:
        """Its logged metrics so far."""
        return read_metrics(self.directory / FILE)

    def finished(self) -> bool:
        """Whether it was trained and evaluated to its last step; its report is written last."""
        done = max((record["step"] for record in self.records()), default=0)
        return done >= self.steps and (self.directory / "report.html").exists()

    def last(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: value for record in self.records() for name, value in record.items() if name != "step"}


def plan(config: str, sweep: str, workdir: Path, settings: Sequence[str]) -> list[Variant]:
    """The variants of a sweep with their commands.

    Args:
      config: ``FILE:ARGUMENTS`` of one stage.
      sweep: name of the sweep.
      workdir: holds one run directory per variant.
      settings: ``KEY=VALUE`` for all of them; ``STAGE.KEY=VALUE`` is the same where STAGE is the stage of ``config``.

    Raises:
      UserError: no such config, sweep, key or value; nothing has been started or written.
    """
    config = short_config(config)
    module = systems.module_of(config.partition(":")[0])
    sweeps = getattr(module, "SWEEPS", {})
    if sweep not in sweeps:
        raise UserError(f"unknown sweep {sweep!r}{near_matches(sweep, sweeps)}")
    stage = next((part[6:] for part in config.split(":")[-1].split(",") if part.startswith("stage=")), None)
    stages = getattr(module, "STAGES", None) or ("stage",)
    stage = stage or stages[0]
    shared = systems.settings_of(settings, stage, stages, {stage: systems.read_config([f"--config={config}"])})
    variants = []
    for changes in sweeps[sweep]:
        chosen = "".join(f",{key[1:]}={value}" for key, value in changes.items() if key.startswith(":"))
        arguments = [f"--config={config}{chosen if ':' in config else chosen.replace(',', ':', 1)}", *shared]
        arguments += [f"--config.{key}={value}" for key, value in changes.items() if not key.startswith(":")]
        names = {key.removeprefix(":").rpartition(".")[2]: value for key, value in changes.items()}
        directory = workdir / ",".join(f"{name}={value}" for name, value in names.items())
        command = [*local.COMMAND, "videogen.train", *arguments, f"--workdir={directory}"]
        variants.append(Variant(changes, systems.read_config(arguments).steps, directory, command))
    if len({variant.directory for variant in variants}) < len(variants):
        raise UserError(f"two variants of the sweep {sweep!r} are the same")
    return variants


def rank(variants: Sequence[Variant], metric: str | None) -> tuple[str, list[tuple[Variant, dict[str, float]]]]:
    """What the variants are ranked by, and those that have it with their last metrics, best first.

    Raises:
      UserError: no variant has the metric.
    """
    results = [(variant, variant.last()) for variant in variants]
    names = {name for _, last in results for name in last}
    if metric is None:
        metric = next((name for name in DEFAULT_METRICS if name in names), DEFAULT_METRICS[0])
    if metric not in names:
        raise UserError(f"no variant has the metric {metric!r}{near_matches(metric, names)}")
    higher = METRICS.get(metric.rpartition("/")[2], ("", "", ""))[2].startswith("higher")
    ranked = [(variant, last) for variant, last in results if metric in last]
    return metric, sorted(ranked, key=lambda item: item[1][metric], reverse=higher)


def summarise(variants: Sequence[Variant], metric: str | None, workdir: Path) -> str:
    """Writes summary.json, summary.md and summary.png; returns the table as text."""
    metric, ranked = rank(variants, metric)
    columns = sorted({name for _, last in ranked for name in last if name.startswith("eval/")} - {metric})
    header = ["settings", metric, *columns, "finished"]
    rows, records = [], []
    for variant, last in ranked:
        done = variant.finished()
        values = [f"{last[name]:.4g}" if name in last else "" for name in (metric, *columns)]
        rows.append([title(variant), *values, "yes" if done else "no"])
        record = {"settings": dict(variant.settings), "directory": str(variant.directory), "finished": done}
        records.append({**record, "metrics": last})
    lines = [header, ["---"] * len(header), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    replace_text(workdir / "summary.md", table)
    replace_text(workdir / "summary.json", json.dumps({"metric": metric, "variants": records}, indent=2) + "\n")
    plot([variant for variant, _ in ranked], metric, workdir / "summary.png")
    return table


def title(variant: Variant) -> str:
    """The settings in which it differs, for legends."""
    return ", ".join(f"{key}={value}" for key, value in variant.settings.items())


def plot(variants: Sequence[Variant], metric: str, path: Path) -> None:
    """The metric of every variant against the step."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for variant in variants:
        points = [(record["step"], record[metric]) for record in variant.records() if metric in record]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None, label=title(variant))
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Runs the command."""
    if SWEEP.value is None:
        raise UserError("--sweep is missing: a name in SWEEPS of the config file")
    workdir = Path(common.WORKDIR.value)
    variants = plan(common.CONFIG.value, SWEEP.value, workdir, common.SET.value)
    if DRY_RUN.value:
        for variant in variants:
            print(f"{'# finished: ' if variant.finished() else ''}{shlex.join(variant.command)}")
        return
    children, failed = local.Children(), []
    with locked(workdir):
        for variant in variants:
            if not variant.finished() and children.run(variant.command) and not children.stopped:
                failed.append(title(variant))
            if children.stopped:
                print("stopped; the same command goes on from here", flush=True)
                return
        print(f"\n{summarise(variants, METRIC.value, workdir)}\nin {workdir}: summary.md, summary.json, summary.png")
    if failed:
        print(f"error: {len(failed)} of {len(variants)} variants failed: {'; '.join(failed)}", file=sys.stderr)
        sys.exit(STOPPED)


if __name__ == "__main__":
    flags.adopt_module_key_flags(common)
    flags.mark_flag_as_required("config")
    app.run(main)
