"""Trains and evaluates every stage of a system on this machine, in order, and writes a report.

    python launch/local.py --config=configs/phenaki.py:size=debug --workdir=runs/quickstart

Settings of one stage: --set=tokenizer.steps=1000 --set=generator.optimizer.generator.learning_rate=1e-3
A stage named in the config's START_FROM begins with the weights of the stage named there, its teacher if it has one.
The work directory gets a run directory per stage, report.html and metrics.json. The same command again goes
on where the first one stopped.
"""

import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_flags

from videogen import app
from videogen.configuration import shown_rate
from videogen.data.shapes_source import COLOURS, DIRECTIONS, FORMS
from videogen.errors import UserError, near_matches
from videogen.training.report import Clips, Curves, Figures, Pairs, Section, Table, write_report
from videogen.training.run_report import goodput_section

CONFIG = flags.DEFINE_string("config", None, "FILE:size=… of a system, e.g. configs/phenaki.py:size=debug.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for all that is written; resumed when it exists.")
SET = flags.DEFINE_multi_string("set", [], "STAGE.KEY=VALUE: a setting of one stage; may be repeated.")
flags.mark_flag_as_required("workdir")

COMMAND = ("python", "-m")

ALLOCATION = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Large pages for what XLA allocates in every step, which on two CPU cores is an eighth of a training's time."""

TOKENIZER = "tokenizer"
"""The stage whose codes generators learn; a config's ``TOKENIZED_BY`` names another one for a stage."""

PROTOCOLS = {"tokenizer": "reconstruction", "detokenizer": "reconstruction", "generator": "prompt_fidelity"}
"""Task -> how it is evaluated; generators with ``config.tasks`` by the protocol ``tasks``."""

JUDGED = {"colour": len(COLOURS), "form": len(FORMS), "direction": len(DIRECTIONS)}
"""What the judge reads from a clip -> how many choices there are."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a system: its commands and the files they write.

    Attributes:
      name: as in the config's ``STAGES``.
      config: the complete config, overrides applied.
      directory: the run directory.
      train: the training command.
      evaluate: the evaluation command; ``None`` where no protocol fits the data.
    """

    name: str
    config: Any
    directory: Path
    train: list[str]
    evaluate: list[str] | None

    @property
    def evaluation(self) -> Path:
        return self.directory / "evaluation.json"

    @property
    def clips(self) -> Path:
        return self.directory / "pictures" / "clips.npz"

    @property
    def commands(self) -> list[list[str]]:
        return [self.train] + ([self.evaluate] if self.evaluate else [])


class Children:
    """Runs commands one after another and hands a SIGTERM on to the one that is running."""

    def __init__(self):
        self.stopped = False
        self._child: subprocess.Popen | None = None
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, *_: Any) -> None:
        self.stopped = True
        if self._child is not None:
            self._child.terminate()

    def run(self, command: list[str]) -> int:
        """Runs a command in this terminal and returns its exit code; after a SIGTERM nothing is started."""
        if self.stopped:
            return 0
        print(f"\n$ {shlex.join(command)}", flush=True)
        self._child = subprocess.Popen([sys.executable, *command[1:]], env=ALLOCATION | os.environ)
        return self._child.wait()


def plan(config: str, workdir: Path, settings: list[str]) -> list[Stage]:
    """The stages of a system with their commands.

    Args:
      config: ``FILE:ARGUMENTS`` without a stage.
      workdir: holds one run directory per stage.
      settings: ``STAGE.KEY=VALUE`` overrides.

    Raises:
      UserError: no such config, stage, key or value; nothing has been started or written.
    """
    file, _, arguments = config.partition(":")
    if "stage=" in arguments:
        raise UserError("leave stage= out of --config: all stages run; videogen.train trains a single one")
    module = module_of(file)
    names, origins = stages_of(file, module), getattr(module, "START_FROM", {})
    tokenizers = getattr(module, "TOKENIZED_BY", {})
    overrides: dict[str, list[str]] = {name: [] for name in names}
    for setting in settings:
        name, dot, assignment = setting.partition(".")
        if name not in overrides:
            raise UserError(f"--set={setting} names no stage{near_matches(name, names)}")
        if not dot or "=" not in assignment:
            raise UserError(f"--set={setting} must be STAGE.KEY=VALUE, e.g. --set={name}.steps=100")
        overrides[name].append(f"--config.{assignment}")
    stages = []
    for name in names:
        given = "".join(f",{part}" for part in arguments.split(",") if part)
        settings = [f"--config={file}:stage={name}{given}", *overrides[name]]
        if name in origins:
            role = "teacher.checkpoint" if "teacher" in read_config(settings) else "start_from.run"
            settings.append(f"--config.{role}={workdir / origins[name]}")
        if "tokenizer" in read_config(settings):
            settings.append(f"--config.tokenizer.checkpoint={workdir / tokenizers.get(name, TOKENIZER)}")
        stages.append(make_stage(name, settings, workdir / name))
    return stages


def module_of(file: str) -> ModuleType:
    """A config file as a module."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"no config file {file}; see configs/")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stages_of(file: str, module: ModuleType) -> tuple[str, ...]:
    """The ``STAGES`` of a config file."""
    if not hasattr(module, "STAGES"):
        raise UserError(f"{file} has no STAGES, so it describes no system")
    return module.STAGES


def make_stage(name: str, arguments: list[str], directory: Path) -> Stage:
    """The stage that ``--config=… --config.key=value …`` describe, with its commands."""
    config = read_config(arguments)
    completes = bool(config.get("tasks"))
    train = [*COMMAND, "videogen.train", *arguments, f"--workdir={directory}"]
    evaluate = [
        *COMMAND,
        "videogen.evaluate",
        f"--checkpoint={directory}",
        f"--protocol={'tasks' if completes else PROTOCOLS[config.task]}",
        f"--out={directory / 'evaluation.json'}",
        f"--pictures={directory / 'pictures'}",
    ]
    # Prompts are judged from pixels, which only the shapes allow.
    judged = config.task != "generator" or completes or config.data.source.name == "shapes"
    return Stage(name, config, directory, train, evaluate if judged else None)


def read_config(arguments: list[str]) -> Any:
    """The config that ``--config=… --config.key=value …`` gives, as the commands read it."""
    values = flags.FlagValues()
    argv = ["local", *arguments]
    holder = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except AttributeError as error:
        # For an unknown key ml_collections wraps the KeyError that names it and its near matches.
        unknown = isinstance(error.args[0], KeyError)
        raise UserError(f"the config has no setting {error.args[0].args[0]}" if unknown else str(error)) from error
    except (flags.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    return holder.value


def run_stage(stage: Stage, children: Children) -> None:
    """Trains and evaluates a stage; leaves the process when a command fails or was told to stop."""
    for command in stage.commands:
        code = children.run(command)
        if children.stopped:
            print("stopped; the same command goes on from here", flush=True)
            sys.exit(0)
        if code:
            failed = f"error: stage {stage.name} failed with exit code {code}: {shlex.join(command)}"
            print(failed, file=sys.stderr, flush=True)
            sys.exit(code)


def collect(stages: list[Stage], seconds: dict[str, float]) -> dict[str, Any]:
    """What ``metrics.json`` holds: the evaluation of every stage, and what is needed to read it."""
    records = {s.name: json.loads(s.evaluation.read_text()) for s in stages if s.evaluate}
    last = records[next(reversed(records))]
    return {
        **{name: record["metrics"] for name, record in records.items()},
        "seconds": seconds,
        "protocol": {name: record["protocol"] for name, record in records.items()},
        **{key: last[key] for key in ("seed", "commit", "hardware")},
    }


def minutes(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """``{"a / b": number}`` of nested metrics."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name} / ")
        else:
            flat[prefix + name] = value
    return flat


def meaning(name: str) -> str:
    """What a metric says and what good looks like."""
    word = name.rpartition(" / ")[2]
    if word in JUDGED:
        return f"share the judge reads right; guessing gives {1 / JUDGED[word]:.2f}"
    return {
        "psnr": "dB, closeness of the pixels; at 20 shapes are clear, at 30 it is hard to tell copies apart",
        "ssim": "structure kept; 1 is identical",
        "gradient_sharpness": "grey levels between the edge strengths; 0 is as sharp as the original",
        "codebook_usage": "share of the codes that occur; near 0 the codebook has collapsed",
        "codebook_perplexity": "how many codes are in effective use",
        "bits_per_pixel": "size of the codes; plain video takes 24",
        "count": "share with the right number of shapes",
    }.get(word, "")


def title(config: str) -> str:
    """``configs/phenaki.py:size=debug`` -> ``Phenaki (size=debug)``."""
    file, _, arguments = config.partition(":")
    return Path(file).stem.capitalize() + (f" ({arguments})" if arguments else "")


def headline(stages: list[Stage], metrics: dict[str, Any]) -> Section:
    """The few numbers that say how well it went."""
    items = []
    for stage in stages:
        alike = [other for other in stages if (other.config.task == "generator") == (stage.config.task == "generator")]
        results, of = metrics.get(stage.name, {}), f" ({stage.name})" if len(alike) > 1 else ""
        if "psnr" in results:
            quality = f"{results['psnr']:.1f} dB"
            items.append((f"PSNR of reconstructions{of}", quality, "likeness of the pixels; higher is better"))
        if stage.config.task == "detokenizer":
            distances = [f"{results[key]:.2f}" for key in ("deterministic_gradient_sharpness", "gradient_sharpness")]
            meaning = "grey levels, of the frozen decoder and of the new one; lower is better"
            items.append((f"distance in sharpness{of}", " → ".join(distances), meaning))
        for word, share in results.get("prompt_fidelity", {}).items():
            if word in JUDGED:
                chance = f"of generated clips; guessing gives {1 / JUDGED[word]:.0%}"
                items.append((f"right {word}{of}", f"{share:.0%}", chance))
    items.append(("from nothing to here", minutes(metrics["seconds"]["total"]), f"on {metrics['hardware']}"))
    text = "A small system trained from scratch, judged on clips and prompts it has never seen."
    return Section("What came out", text, [Figures(items)])


def tokenizer_sections(stage: Stage, fps: float) -> list[Section]:
    """Of a de-tokenizer too, which is shown beside the decoder it replaces."""
    replaces = stage.config.task == "detokenizer"
    with np.load(stage.clips, allow_pickle=False) as clips:
        between = [clips["deterministic"]] if replaces else []
        columns, captions = (clips["originals"], clips["reconstructions"]), [str(c) for c in clips["captions"]]
    if replaces:
        what = "A new decoder for the codes of a tokenizer that stays as it is (its own decoder: deterministic). Good: "
        what += "the loss falls, and edges come closer in sharpness to the originals than by the tokenizer's decoder."
        keys = ("loss", "psnr", "deterministic_psnr", "gradient_sharpness", "deterministic_gradient_sharpness")
        sides, labels = "the original, what the frozen decoder", ("original", "frozen decoder", "de-tokenizer")
        sides += " and what the de-tokenizer made of the same codes"
    else:
        what = (
            "The tokenizer turns a clip into a small grid of codes (whole numbers, or a few real ones) and paints the "
        )
        what += "clip again from those alone. Good: the loss falls, PSNR and SSIM rise without jumps, codebook usage "
        what += "stays far from 0."
        keys, labels = ("loss", "psnr", "ssim", "gradient_sharpness", "codebook_usage"), ("original", "reconstruction")
        sides = "left the original, right what came back from its codes"
    shown = f"Held-out clips: {sides}; the strip runs from the first frame to the last, original above. "
    shown += "Good: the same thing, in the same place, moving alike."
    name = stage.name.capitalize()
    return [
        Section(f"{name}: learning", what, [Curves(stage.directory / "metrics.jsonl", keys)]),
        Section(f"{name}: originals beside reconstructions", shown, [Pairs(*columns, captions, fps, between, labels)]),
    ]


def generator_sections(stage: Stage, fps: float) -> list[Section]:
    sections = [
        Section(
            f"{stage.name.capitalize()}: learning",
            "The generator learns to draw clips from their captions. "
            "Good: the loss falls, the share of codes guessed right rises, training and held-out agree.",
            [Curves(stage.directory / "metrics.jsonl", ("loss", "accuracy"))],
        )
    ]
    if stage.evaluate and stage.config.get("tasks"):
        with np.load(stage.clips, allow_pickle=False) as clips:
            pairs = Pairs(clips["given"], clips["videos"], [str(c) for c in clips["captions"]], fps)
        sections.append(
            Section(
                f"{stage.name.capitalize()}: completed videos",
                "Held-out clips: left what was given of it, the rest filled by a rule; right how it was completed.",
                [pairs],
            )
        )
    elif stage.evaluate:
        with np.load(stage.clips, allow_pickle=False) as clips:
            verdicts = [
                (str(reading), dict(zip(JUDGED, map(bool, correct), strict=True)))
                for reading, correct in zip(clips["readings"], clips["correct"], strict=True)
            ]
            drawn = Clips(clips["videos"], [str(p) for p in clips["prompts"]], verdicts, fps)
        sections.append(
            Section(
                f"{stage.name.capitalize()}: videos from prompts",
                "Each clip was drawn from the prompt under it; no such prompt occurred in training and none "
                "was picked by hand. The judge is a program that measures colour, form and direction.",
                [drawn],
            )
        )
    return sections


def numbers(stages: list[Stage], metrics: dict[str, Any]) -> Table:
    """Every metric with its protocol beside it."""
    rows = []
    for stage in stages:
        protocol = metrics["protocol"].get(stage.name)
        if protocol:
            data = f"{protocol['count']} held-out of {protocol['source']['name']}"
            how = f"{protocol['name']}, {data}, step {protocol['step']}"
            rows += [(stage.name, n, v, meaning(n), how) for n, v in flatten(metrics[stage.name]).items()]
    return Table(("stage", "metric", "value", "what it says", "protocol"), rows)


def report(stages: list[Stage], metrics: dict[str, Any], workdir: Path) -> Path:
    """Writes ``report.html``; returns its path."""
    sections = [headline(stages, metrics)]
    for stage in stages:
        sections_of = generator_sections if stage.config.task == "generator" else tokenizer_sections
        sections += sections_of(stage, shown_rate(stage.config))
        time_spent = goodput_section(stage.directory / "metrics.jsonl", f"{stage.name.capitalize()}: time")
        sections += [time_spent] if time_spent else []
    origin = f"seed {metrics['seed']}, commit {metrics['commit']}, {metrics['hardware']}"
    text = f"Made with {origin}. The same numbers in full precision are in metrics.json."
    sections.append(Section("All numbers", text, [numbers(stages, metrics)]))
    commands = [["python", *sys.argv], *(command for stage in stages for command in stage.commands)]
    path = workdir / "report.html"
    write_report(path, title(CONFIG.value), sections, [shlex.join(command) for command in commands])
    return path


def main() -> None:
    workdir = Path(WORKDIR.value)
    stages = plan(CONFIG.value, workdir, SET.value)
    workdir.mkdir(parents=True, exist_ok=True)
    spent_file = workdir / "seconds.json"
    spent = json.loads(spent_file.read_text()) if spent_file.exists() else {}
    children = Children()
    for stage in stages:
        start = time.monotonic()
        try:
            run_stage(stage, children)
        finally:
            # Added up over all starts, so that a resumed run tells what the whole of it took.
            spent[stage.name] = spent.get(stage.name, 0.0) + time.monotonic() - start
            spent_file.write_text(json.dumps(spent) + "\n")
    metrics = collect(stages, {**spent, "total": sum(spent.values())})
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    path = report(stages, metrics, workdir)
    print()
    for stage in stages:
        for name, value in flatten(metrics.get(stage.name, {})).items():
            print(f"{stage.name:>10}  {name:<40} {value:.4g}")
    print(f"\n{minutes(metrics['seconds']['total'])} in all; open {path}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
