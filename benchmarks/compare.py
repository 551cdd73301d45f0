"""Trains every tokenizer, or every generator on one tokenizer, at the debug size and lays the results side by side.

    python benchmarks/compare.py --of=generators --tokenizer=runs/quickstart/tokenizer --workdir=runs/generators
    python benchmarks/compare.py --of=tokenizers --workdir=runs/tokenizers [--only=cvivit,magvit2_lfq] [--seeds=0,1,2]
    python benchmarks/compare.py --of=tokenizers --workdir=runs/clips --set=data.source.name=video_folder \\
        --set=data.source.path=my_videos --set=data.clip.frames=17

``--set=KEY=VALUE`` is a setting of every entry here (of no stage, as it is for launch/local.py).

Writes table.md, results.json, results.png, reconstructions.png (of tokenizers), and curves.png and curves/ (the metrics
of each run, to hold a run of one's own against) into the work directory, and prints the table. Speeds are those of one
batch of 16 clips, the median of 3 after compilation. The same command again goes on with what is not finished.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

import videogen  # noqa: E402
from launch import common, local  # noqa: E402
from videogen import app  # noqa: E402
from videogen.data.inputs import build_source, held_out  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.errors import UserError, near_matches  # noqa: E402
from videogen.runs.records import FILE, read_metrics  # noqa: E402
from videogen.tasks.base import to_video  # noqa: E402
from videogen.training.state import parameter_count  # noqa: E402

OF = flags.DEFINE_enum("of", "generators", ["generators", "tokenizers"], "What is compared.")
TOKENIZER = flags.DEFINE_string("tokenizer", "", "Run directory of the tokenizer that all generators share.")
ONLY = flags.DEFINE_list("only", [], "Names of the entries; all without it.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds that every entry is trained with.")

CLIPS = 16

GENERATORS = {
    "masked": "phenaki:stage=generator,size=debug",
    "next_token": "nbp:stage=generator,size=debug --config.model.block=(1,1,1)",
    "next_row": "nbp:stage=generator,size=debug",
    "next_frame": "nbp:stage=generator,size=debug --config.model.block=(1,6,6) --config.model.start=block",
}
"""Name -> config and settings. All train for the same steps at the same width and depth."""

TOKENIZERS = {
    "cvivit": "phenaki:stage=tokenizer,size=debug",
    "cvivit_deep": (
        "phenaki:stage=tokenizer,size=debug --config.model.encoder_layers=(2,2) --config.model.decoder_layers=(2,2)"
    ),
    "magvit": "magvit:stage=tokenizer,size=debug",
    "magvit2_lfq": "magvit2:stage=tokenizer,size=debug",
    "magvit2_fsq": "magvit2:stage=tokenizer,size=debug,quantizer=fsq",
    "magvit2_vq": "magvit2:stage=tokenizer,size=debug,quantizer=vq",
    "omnitokenizer": "omnitokenizer:stage=tokenizer,size=debug",
    "larp": "larp:stage=tokenizer,size=debug",
}
"""Name -> config and settings. ``cvivit_deep`` has as many parameters as ``magvit2``, and latents of the same grid."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row: an entry trained with one seed."""

    name: str
    seed: int
    stage: local.Stage

    @property
    def result(self) -> Path:
        return self.stage.directory / "comparison.json"


def entries(workdir: Path) -> list[Entry]:
    """The rows that were asked for.

    Raises:
      UserError: an unknown name, or no tokenizer for the generators.
    """
    known = GENERATORS if OF.value == "generators" else TOKENIZERS
    if unknown := [name for name in ONLY.value if name not in known]:
        raise UserError(f"unknown entry {unknown[0]!r}{near_matches(unknown[0], known)}")
    shared = [f"--config.{setting}" for setting in common.SET.value]
    if OF.value == "generators":
        if not (Path(TOKENIZER.value) / "config.json").exists():
            raise UserError("--tokenizer is the run directory of a trained tokenizer, e.g. runs/quickstart/tokenizer")
        shared.append(f"--config.parts.tokenizer.checkpoint={TOKENIZER.value}")
    rows = []
    for name in ONLY.value or known:
        config, *settings = known[name].split()
        for seed in map(int, SEEDS.value):
            arguments = [f"--config={config}", *settings, *shared, f"--config.seed={seed}"]
            rows.append(Entry(name, seed, local.make_stage(name, arguments, workdir / f"{name}_{seed}")))
    return rows


def median_seconds(function: Callable[[], Any]) -> float:
    """Median wall time of three calls, after one that is not counted."""
    function()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def speeds(directory: Path) -> dict[str, float]:
    """Frames per second of encoding and decoding, or of generating, and what it takes."""
    loaded = videogen.load(directory)
    frames = CLIPS * loaded.config.data.clip.frames
    batch = held_out(build_source(loaded.config, "eval"), CLIPS).batches(CLIPS, loaded.text)[0]
    if loaded.task.draws:
        generator = loaded.generator()
        text = {key: value for key, value in batch.items() if key.startswith("text")}
        seconds = median_seconds(lambda: generator.generate(text, loaded.config.data.clip.frames, 0))
        model = loaded.modules["generator"].generator
        passes = model.passes(loaded.task.grid) if hasattr(model, "passes") else generator.sampler.steps
        return {"passes": passes, "generated_frames_per_second": frames / seconds}
    graph, state = nnx.split(loaded.modules["tokenizer"])
    video = to_video(np.asarray(batch["video"]))
    encode = jax.jit(lambda state, video: nnx.merge(graph, state).tokenize(video))
    decode = jax.jit(lambda state, codes: nnx.merge(graph, state).detokenize(codes))
    codes = encode(state, video)
    return {
        "encoded_frames_per_second": frames / median_seconds(lambda: encode(state, video)),
        "decoded_frames_per_second": frames / median_seconds(lambda: decode(state, codes)),
    }


def measure(entry: Entry, seconds: float) -> dict[str, Any]:
    """What the table says of a trained and evaluated entry."""
    record = json.loads(entry.stage.evaluation.read_text())
    group = videogen.load(entry.stage.directory)
    trained = nnx.state(group.modules[next(iter(group.task.losses))], nnx.Param)
    last = {name: value for row in read_metrics(entry.stage.directory / FILE) for name, value in row.items()}
    metrics = local.flatten(record["metrics"])
    return {
        "name": entry.name,
        "seed": entry.seed,
        "parameters": parameter_count(trained),
        "steps": group.step,
        "training_seconds": round(seconds, 1),
        **({"eval_loss": last["eval/loss"]} if "eval/loss" in last else {}),
        **{name.rpartition(" / ")[2]: value for name, value in metrics.items()},
        **speeds(entry.stage.directory),
        **{key: record[key] for key in ("commit", "hardware")},
    }


COLUMNS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "bits_per_pixel": "bits per pixel",
    "codebook_usage": "usage",
    "eval_loss": "loss, nats",
    "colour": "colour",
    "form": "form",
    "direction": "direction",
    "passes": "passes",
    "generated_frames_per_second": "frames/s",
    "encoded_frames_per_second": "encoded frames/s",
    "decoded_frames_per_second": "decoded frames/s",
    "parameters": "parameters",
    "training_seconds": "training, s",
}
"""Metric -> heading of its column."""


def table(results: list[Mapping[str, Any]]) -> str:
    """The results in Markdown."""

    def cell(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    columns = [name for name in COLUMNS if any(name in result for result in results)]
    lines = [["entry", "seed", *(COLUMNS[name] for name in columns)], ["---"] * (2 + len(columns))]
    for result in results:
        cells = [cell(result[name]) if result.get(name) is not None else "–" for name in columns]
        lines.append([result["name"], str(result["seed"]), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(results: list[Mapping[str, Any]], path: Path) -> None:
    """Form, which is what is hard, or PSNR where no judge knows the clips, against speed."""
    quality = "form" if "form" in results[0] else "psnr"
    speed = "generated_frames_per_second" if OF.value == "generators" else "decoded_frames_per_second"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(result["name"] for result in results):
        points = [(r[speed], r[quality]) for r in results if r["name"] == name]
        axes.plot(*zip(*points, strict=True), "o", label=name)
    axes.set_xscale("log")
    axes.set_xlabel(f"{COLUMNS[speed]} on this machine")
    axes.set_ylabel("share of clips whose form the judge reads right" if quality == "form" else COLUMNS[quality])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def draw_reconstructions(rows: list[Entry], path: Path) -> None:
    """The middle frames of held-out clips, above what each entry's first seed makes of them."""
    files = {entry.name: entry.stage.clips for entry in reversed(rows)}
    clips = {name: np.load(files[name]) for name in dict.fromkeys(entry.name for entry in rows)}
    first = next(iter(clips.values()))["originals"]
    shown = {"originals": first} | {name: loaded["reconstructions"] for name, loaded in clips.items()}
    columns = min(8, len(first))
    figure = Figure(figsize=(1.2 * columns, 1.3 * len(shown)), layout="constrained")
    for row, (name, videos) in zip(figure.subplots(len(shown), columns), shown.items(), strict=True):
        for axes, video in zip(row, videos, strict=False):
            axes.imshow(video[len(video) // 2])
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(name, fontsize=8)
    figure.savefig(path, dpi=150)


CURVES = ("train/loss", "train/codebook_usage", "train/accuracy", "eval/loss", "eval/psnr")
"""What a curve shows, of those that the entries log."""


def write_curves(rows: list[Entry], workdir: Path) -> None:
    """One file of metrics for each entry, and all of them in one picture, a panel for each metric."""
    runs = {(row.name, row.seed): curve(row.stage.directory) for row in rows}
    folder = workdir / "curves"
    folder.mkdir(exist_ok=True)
    for (name, seed), records in runs.items():
        (folder / f"{name}_{seed}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shown = [key for key in CURVES if any(key in record for records in runs.values() for record in records)]
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row.name for row in rows))}
    figure = Figure(figsize=(4 * len(shown), 3.4), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for (name, seed), records in runs.items():
            points = [(record["step"], record[key]) for record in records if key in record]
            label = name if seed == rows[0].seed else None
            axes.plot([p[0] for p in points], [p[1] for p in points], color=colours[name], label=label, linewidth=1)
        axes.set_title(key, fontsize=9)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].legend(fontsize=6, frameon=False)
    figure.savefig(workdir / "curves.png", dpi=150)


def curve(directory: Path) -> list[dict[str, float]]:
    """Every evaluation of a run, and about 100 of the steps between."""
    records = read_metrics(directory / FILE)
    stride = -(-len(records) // 100)
    kept = [r for i, r in enumerate(records) if i % stride == 0 or any(key.startswith("eval/") for key in r)]
    return [{key: record[key] for key in ("step", *CURVES) if key in record} for record in kept]


def main() -> None:
    workdir = Path(common.WORKDIR.value)
    rows = entries(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    children = local.Children()
    for entry in rows:
        if entry.result.exists():
            continue
        start = time.monotonic()
        local.run_stage(entry.stage, children)
        entry.result.write_text(json.dumps(measure(entry, time.monotonic() - start), indent=2) + "\n")
    results = [json.loads(entry.result.read_text()) for entry in rows]
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (workdir / "table.md").write_text(table(results))
    plot(results, workdir / "results.png")
    write_curves(rows, workdir)
    if OF.value == "tokenizers":
        draw_reconstructions(rows, workdir / "reconstructions.png")
    print(f"\n{table(results)}\nin {workdir}")


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
