"""Trains and evaluates every stage of a system on this machine, in order, and writes a report.

    python launch/local.py --config=phenaki:size=debug --workdir=runs/quickstart
    python launch/local.py --config=phenaki:size=debug --workdir=runs/mine --data=my_videos --clip=9x64x64

--data and --clip are for all stages. Other settings: --set=data.batch_size=4 (of every stage that has the key),
--set=tokenizer.steps=1000 (of one stage). A stage named in the config's START_FROM begins with the weights of the stage
named there. A frozen part of a stage comes from the stage of that name, or from the one that PARTS names. The work
directory gets a run directory per stage, report.html and metrics.json. The same command again goes on where the first
one stopped.
"""

import dataclasses
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

# A script finds its neighbours, but not the checkout.
sys.path.insert(0, str(Path(__file__).parents[1]))

from launch.children import Children  # noqa: E402
from launch.common import CONFIG, SET, WORKDIR  # noqa: E402
from launch.local_report import flatten, headline, report  # noqa: E402
from launch.systems import module_of, read_config, settings_of, stages_of  # noqa: E402
from videogen import app, tasks  # noqa: E402
from videogen.configuration import replace_text, short_config, take_data  # noqa: E402
from videogen.data import Clip, build  # noqa: E402
from videogen.data.inputs import has_text  # noqa: E402
from videogen.errors import UserError  # noqa: E402
from videogen.evaluation.origin import commit, hardware  # noqa: E402
from videogen.locks import locked  # noqa: E402

DATA = flags.DEFINE_string("data", None, "Folder of videos (several: commas between) that every stage learns from.")
CLIP = flags.DEFINE_string("clip", None, "FRAMESxHEIGHTxWIDTH of the clips of every stage, e.g. 9x64x64.")

COMMAND = ("python", "-m")


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
        """What its evaluation writes."""
        return self.directory / "evaluation.json"

    @property
    def clips(self) -> Path:
        """The clips that the report shows."""
        return self.directory / "pictures" / "clips.npz"

    @property
    def commands(self) -> list[list[str]]:
        """Its commands, in order."""
        return [self.train] + ([self.evaluate] if self.evaluate else [])


def plan(
    config: str, workdir: Path, settings: Sequence[str], data: str | None = None, clip: str | None = None
) -> list[Stage]:
    """The stages of a system with their commands.

    Args:
      config: ``FILE:ARGUMENTS`` without a stage.
      workdir: holds one run directory per stage.
      settings: ``STAGE.KEY=VALUE`` or ``KEY=VALUE`` overrides.
      data: folder of videos for every stage; ``None`` takes what configs and settings say.
      clip: ``FRAMESxHEIGHTxWIDTH`` for every stage; stages of images stay stages of images.

    Raises:
      UserError: no such config, stage, key, value or folder; nothing has been started or written.
    """
    file, _, arguments = short_config(config).partition(":")
    if "stage=" in arguments:
        raise UserError("leave stage= out of --config: all stages run; videogen.train trains a single one")
    module = module_of(file)
    names, origins = stages_of(file, module), getattr(module, "START_FROM", {})
    makers = getattr(module, "PARTS", {})
    given = "".join(f",{part}" for part in arguments.split(",") if part)
    plain = {name: f"--config={file}:stage={name}{given}" for name in names}
    configs = {name: read_config([argument]) for name, argument in plain.items()}
    stages: dict[str, Stage] = {}
    for name in names:
        chosen = [plain[name], *_data_settings(configs[name], data, clip), *settings_of(settings, name, names, configs)]
        current = read_config(chosen)
        if name in origins:
            chosen.append(f"--config.start_from.run={workdir / origins[name]}")
        made_by = {part: makers.get(name, {}).get(part, part) for part in current.parts}
        # No stage makes a published network: its folder is among the settings.
        made_by = {part: stage for part, stage in made_by.items() if stage in names}
        chosen += [f"--config.parts.{part}.checkpoint={workdir / stage}" for part, stage in made_by.items()]
        tokenizer = made_by.get("tokenizer")
        stages[name] = make_stage(name, chosen, workdir / name, stages[tokenizer].config if tokenizer else None)
    return list(stages.values())


def _data_settings(config: Any, data: str | None, clip: str | None) -> list[str]:
    """The flags of one stage for the videos and the clips of all stages."""
    settings, current = [], config.data.clip
    frames, height, width = current.frames, current.height, current.width
    if clip is not None:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", clip):
            raise UserError(f"--clip={clip} must be FRAMESxHEIGHTxWIDTH, e.g. --clip=9x64x64")
        frames, height, width = map(int, clip.split("x"))
        frames = 1 if current.frames == 1 else frames
        sides = {"frames": frames, "height": height, "width": width}
        settings += [f"--config.data.clip.{side}={size}" for side, size in sides.items()]
        if config.model.get("clip"):  # a tokenizer for clips of one size
            settings.append(f"--config.model.clip=({frames},{height},{width})")
    if data is not None:
        settings += ["--config.data.source.name=video_folder", f"--config.data.source.path={data}"]
        source = build(
            {"name": "video_folder", "path": data}, clip=Clip(frames, height, width), seed=config.seed, split="train"
        )
        if not source.captioned and has_text(config):
            print(f"{data}: no video has a caption, so this system is trained without text", flush=True)
            settings.append("--config.text.encoder.name=none")
    return settings


def make_stage(name: str, arguments: list[str], directory: Path, tokenizer: Any = None) -> Stage:
    """The stage that ``--config=… --config.key=value …`` describe, with its commands.

    Args:
      name: of the stage.
      arguments: the flags.
      directory: its run directory.
      tokenizer: the config of the stage whose codes it learns.
    """
    config = read_config(arguments)
    if tokenizer is not None:
        # As videogen.train does.
        take_data(config, tokenizer, [a.removeprefix("--config.").partition("=")[0] for a in arguments])
    protocol = tasks.class_of(config).default_protocol(config)
    train = [*COMMAND, "videogen.train", *arguments, f"--workdir={directory}"]
    evaluate = [
        *COMMAND,
        "videogen.evaluate",
        f"--checkpoint={directory}",
        f"--protocol={protocol}",
        f"--out={directory / 'evaluation.json'}",
        f"--pictures={directory / 'pictures'}",
    ]
    return Stage(name, config, directory, train, evaluate if protocol else None)


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
    # Stages without a protocol say what they found in their own metrics.
    last = records[next(reversed(records))] if records else {"commit": commit(), "hardware": hardware()}
    return {
        "seed": stages[-1].config.seed,
        **{name: record["metrics"] for name, record in records.items()},
        "seconds": seconds,
        "protocol": {name: record["protocol"] for name, record in records.items()},
        **{key: last[key] for key in ("seed", "commit", "hardware") if key in last},
    }


def read_seconds(path: Path) -> dict[str, float]:
    """What earlier starts took, by stage; a file that was cut counts as none, and says so."""
    try:
        spent = json.loads(path.read_text())
        return {str(name): float(value) for name, value in spent.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        print(f"{path} is damaged: the time of earlier starts is not counted", flush=True)
        return {}


def main() -> None:
    """Runs the command."""
    workdir = Path(WORKDIR.value)
    stages = plan(CONFIG.value, workdir, SET.value, DATA.value, CLIP.value)
    children = Children()
    with locked(workdir):
        spent_file = workdir / "seconds.json"
        spent = read_seconds(spent_file)
        for stage in stages:
            start = time.monotonic()
            try:
                run_stage(stage, children)
            finally:
                # Added up over all starts, so that a resumed run tells what the whole of it took.
                spent[stage.name] = spent.get(stage.name, 0.0) + time.monotonic() - start
                replace_text(spent_file, json.dumps(spent) + "\n")
            # After every stage, so that there is something to look at while the next one runs.
            done = stages[: stages.index(stage) + 1]
            metrics = collect(done, {**spent, "total": sum(spent.values())})
            replace_text(workdir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
            path = report(done, metrics, workdir, CONFIG.value)
    print()
    for stage in stages:
        for name, value in flatten(metrics.get(stage.name, {})).items():
            print(f"{stage.name:>10}  {name:<40} {value:.4g}")
    *results, duration = headline(stages, metrics).blocks[0].items
    said = ", ".join(f"{label} {value}" for label, value, _ in results)
    print(f"\n{said}; {duration[1]} in all; open {path}")


if __name__ == "__main__":
    flags.adopt_module_key_flags(sys.modules["launch.common"])
    flags.mark_flag_as_required("config")
    app.run(main)
