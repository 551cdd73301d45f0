"""The report of one run directory: its curves, its last pictures, and where the time went."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from videogen.configuration import shown_rate
from videogen.reporting.page import Block, Clips, Curves, Pairs, Section, Table, write_report
from videogen.runs.records import FILE, read_metrics

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


def of_clips(held_out: bool | None) -> str:
    """What evaluated clips are called: by whether they were kept from training, which is not always known."""
    return {True: "held-out clips", False: "clips of the training set", None: "clips"}[held_out]


def command_line() -> str:
    """The command that started this process, as it can be typed again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    as_module = spec is not None and spec.origin == sys.argv[0]
    return shlex.join(["python", *(["-m", spec.name, *sys.argv[1:]] if as_module else sys.argv)])


def goodput_section(metrics: epath.PathLike, title: str = "Where the time went") -> Section | None:
    """The last goodput of a ``metrics.jsonl`` as a table; ``None`` when it has none."""
    records = [r for r in read_metrics(metrics) if "goodput/step" in r]
    if not records:
        return None
    rows = [(name, float(records[-1][f"goodput/{name}"]), meaning) for name, meaning in MEANINGS.items()]
    text = "Percent of the wall time since the last start, which add up to 100. Good: nearly all of it in steps."
    return Section(title, text, [Table(("time in", "percent", "when"), rows)])


def write_run_report(
    workdir: epath.Path, config: Any, pictures: "Sequence[Picture]", captions: Sequence[str] = ()
) -> None:
    """Writes ``report.html`` of a run directory.

    Args:
      workdir: the run directory.
      config: the stage config.
      pictures: of the last evaluation.
      captions: of the evaluated clips, from the first on; pictures without captions of their own are of these.
    """
    evaluated = of_clips(config.data.get("held_out"))
    metrics = workdir / FILE
    names = {name for record in read_metrics(metrics) for name in record if name.startswith(("train/", "eval/"))}
    keys = sorted({name.rpartition("/")[2] for name in names} - set(LAST))
    sections = [
        Section(
            "Learning",
            f"Every metric against the training step: of training batches (train/), and of {evaluated} (eval/).",
            [Curves(metrics, ("loss", *(key for key in keys if key != "loss"), *LAST))],
        ),
        *(_pictures(picture, config, captions, evaluated) for picture in pictures),
        goodput_section(metrics),
        Section("Files", "The settings are in config.json beside this page, every number is in metrics.jsonl.", []),
    ]
    commands = [command_line()]
    title = f"{config.task.capitalize()} after {config.steps:,} steps"
    write_report(workdir / "report.html", title, [section for section in sections if section], commands)


def _pictures(picture: "Picture", config: Any, captions: Sequence[str], evaluated: str) -> Section:
    fps, count = shown_rate(config), len(picture.rows)
    said = picture.captions if any(picture.captions) else [*captions, *[""] * count][:count]
    text = f"Of {evaluated}"
    if picture.name == "samples":
        text = f"Drawn for the captions of {evaluated}" if any(said) else f"Drawn beside {evaluated}"
    first, *rest = zip(*picture.rows, strict=True)
    block: Block = Clips(first, said, (), fps)
    if rest:
        block = Pairs(first, rest[-1], said, fps, rest[:-1], picture.columns)
    return Section(picture.name.capitalize(), f"{text}, after the last step.", [block])
