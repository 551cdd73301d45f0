"""The report of one run directory: its curves, its last pictures, and where the time went."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from videogen.configuration import shown_rate
from videogen.training.metrics import FILE, read_metrics
from videogen.training.report import Block, Clips, Curves, Pairs, Section, Table, write_report

if TYPE_CHECKING:
    from videogen.tasks import Picture  # launchers show goodput without loading JAX

MEANINGS = {
    "step": "training steps ran: the share that counts",
    "compile": "the program was compiled, once per start",
    "input": "the devices waited for data; above a few percent more data.workers help",
    "checkpoint": "the devices waited for a checkpoint",
    "evaluation": "metrics and pictures were made",
    "other": "start, restore of frozen parts, logging",
}

LAST = ("learning_rate", "gradient_norm", "videos_per_second", "tokens_per_second", "tflops_per_second", "mfu")
"""Metrics whose charts come after those of the task."""


def goodput_section(metrics: epath.PathLike, title: str = "Where the time went") -> Section | None:
    """The last goodput of a ``metrics.jsonl`` as a table; ``None`` when it has none."""
    records = [r for r in read_metrics(metrics) if "goodput/step" in r]
    if not records:
        return None
    rows = [(name, float(records[-1][f"goodput/{name}"]), meaning) for name, meaning in MEANINGS.items()]
    text = "Percent of the wall time since the last start, which add up to 100. Good: nearly all of it in steps."
    return Section(title, text, [Table(("time in", "percent", "when"), rows)])


def write_run_report(workdir: epath.Path, config: Any, pictures: "Sequence[Picture]") -> None:
    """Writes ``report.html`` of a run directory.

    Args:
      workdir: the run directory.
      config: the stage config.
      pictures: of the last evaluation.
    """
    metrics = workdir / FILE
    names = {name for record in read_metrics(metrics) for name in record if name.startswith(("train/", "eval/"))}
    keys = sorted({name.rpartition("/")[2] for name in names} - set(LAST))
    sections = [
        Section(
            "Learning",
            "Every metric against the training step: of training batches, and of held-out clips.",
            [Curves(metrics, ("loss", *(key for key in keys if key != "loss"), *LAST))],
        ),
        *(Section(p.name.capitalize(), "Held-out clips, after the last step.", [_clips(p, config)]) for p in pictures),
        goodput_section(metrics),
    ]
    commands = ["The settings of this run are in config.json beside this page; every number is in metrics.jsonl."]
    title = f"{config.task.capitalize()} after {config.steps:,} steps"
    write_report(workdir / "report.html", title, [section for section in sections if section], commands)


def _clips(picture: "Picture", config: Any) -> Block:
    fps = shown_rate(config)
    columns = list(zip(*picture.rows, strict=True))
    if len(columns) == len(picture.columns):
        first, *between, last = columns
        return Pairs(first, last, picture.captions, fps, between, picture.columns)
    return Clips(columns[0], picture.captions, (), fps)
