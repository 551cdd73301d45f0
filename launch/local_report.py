"""The report of a local run: numbers, curves, clips and commands of every stage."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from videogen.configuration import shown_rate
from videogen.data.shapes_source import COLOURS, DIRECTIONS, FORMS
from videogen.data.video_io import read_video
from videogen.evaluation.protocols import ALONE
from videogen.evaluation.stand_in import PRESET, WORDS
from videogen.reporting.page import Clips, Curves, Figures, Pairs, Section, Table, write_report
from videogen.reporting.run_page import command_line, goodput_section, of_clips
from videogen.tasks import class_of

if TYPE_CHECKING:
    from launch.local import Stage

JUDGED = {"colour": len(COLOURS), "form": len(FORMS), "direction": len(DIRECTIONS)}
"""What the judge reads from a clip -> how many choices there are."""

OF_PROMPTS = ("prompt_fidelity", "composition")
"""Protocols that count prompts and not clips."""


def minutes(seconds: float) -> str:
    """Seconds in words: ``4 min 3 s``."""
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """``{"a / b": number}`` of nested metrics; words and lists are left out."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name} / ")
        elif isinstance(value, int | float):
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
        PRESET: "how far generated clips are from real ones, all together; lower is better",
    }.get(word, "")


def in_words(beside: dict[str, Any]) -> str:
    """The protocol of a number that was measured beside others (``evaluation.stand_in``)."""
    counts, size = beside["counts"], "×".join(map(str, beside["clip"]))
    sides = f"{counts['real']} against {counts['generated']}, {beside['sides']}, {size}"
    network = f"{beside['network']} (hash {beside['network_hash'][:8]}), covariance {beside['covariance']}"
    return f"{beside['words']}; {sides}; {network}"


def title(config: str) -> str:
    """``phenaki:size=debug`` -> ``Phenaki (size=debug)``."""
    file, _, arguments = config.partition(":")
    return Path(file).stem.capitalize() + (f" ({arguments})" if arguments else "")


def headline(stages: list["Stage"], metrics: dict[str, Any]) -> Section:
    """The few numbers that say how well it went."""
    items = []
    for stage in stages:
        alike = [other for other in stages if class_of(other.config).draws == class_of(stage.config).draws]
        results, of = metrics.get(stage.name, {}), f" ({stage.name})" if len(alike) > 1 else ""
        if "psnr" in results:
            quality = f"{results['psnr']:.1f} dB"
            items.append((f"PSNR of reconstructions{of}", quality, "likeness of the pixels; higher is better"))
        if "deterministic_gradient_sharpness" in results:
            distances = [f"{results[key]:.2f}" for key in ("deterministic_gradient_sharpness", "gradient_sharpness")]
            meaning = "grey levels, of the frozen decoder and of the new one; lower is better"
            items.append((f"distance in sharpness{of}", " → ".join(distances), meaning))
        for word, share in results.get("prompt_fidelity", {}).items():
            if word in JUDGED:
                chance = f"of generated clips; guessing gives {1 / JUDGED[word]:.0%}"
                items.append((f"right {word}{of}", f"{share:.0%}", chance))
        for way in ("text_to_video", "video_to_text"):
            if way in results.get("retrieval", {}):
                found, words = results["retrieval"][way], way.replace("_", " ")
                said = f"R@1 of {found['queries']} queries; guessing gives {100 / results['clips']:.1f} %"
                items.append((f"{words}{of}", f"{found['recall_at_1']:.1f} %", said))
        if "recognition" in results:
            found = results["recognition"]
            said = f"of clips are told to be of their class; guessing gives {found['chance']:.1f} %"
            items.append((f"recognition{of}", f"{found['top_1']:.1f} %", said))
        if "answers" in results:
            found = results["answers"]
            said = f"of questions; guessing gives {found['chance']:.0%}" if "chance" in found else "of written answers"
            items.append((f"right answers{of}", f"{found.get('chosen', found['written']):.0%}", said))
        for what, share in results.get("signs", {}).items():
            items.append((f"{what} of signers{of}", f"{share:.0%}", "read right in drawn clips by a program"))
        if "streams" in results:
            told = results["streams"]
            text = f"{told['spoken']:.0%}, {told['false_per_minute']:.1f} false a minute"
            items.append((f"events spoken about within two frames{of}", text, "of streams that it watches"))
        if PRESET in results:
            counts = metrics["protocol"][stage.name]["beside"][PRESET]["counts"]
            said = f"{WORDS}: {counts['generated']} clips against {counts['real']}; lower is better"
            items.append((f"Fréchet distance ({stage.name})", f"{results[PRESET]:.2f}", said))
    items.append(("from nothing to here", minutes(metrics["seconds"]["total"]), f"on {metrics['hardware']}"))
    protocols = metrics["protocol"].values()
    judged = "clips and prompts" if any(p["name"] in OF_PROMPTS for p in protocols) else "clips"
    text = f"Trained from scratch, judged on {judged} it has never seen."
    if not all(p.get("held_out") for p in protocols):
        text = "Trained from scratch. No clips were kept from training (data.source.holdout), so these numbers say how "
        text += "well it knows the clips it learned from, not how well it does on new ones."
    return Section("What came out", text, [Figures(items)])


def tokenizer_sections(stage: "Stage", fps: float, held_out: bool | None = True) -> list[Section]:
    """Of a de-tokenizer too, which is shown beside the decoder it replaces."""
    with np.load(stage.clips, allow_pickle=False) as clips:
        replaces = "deterministic" in clips
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
    shown = f"{of_clips(held_out).capitalize()}: {sides}; the strip runs from the first frame to the last, original "
    shown += "above. Good: the same thing, in the same place, moving alike."
    name = stage.name.capitalize()
    return [
        Section(f"{name}: learning", what, [Curves(stage.directory / "metrics.jsonl", keys)]),
        Section(f"{name}: originals beside reconstructions", shown, [Pairs(*columns, captions, fps, between, labels)]),
    ]


def generator_sections(stage: "Stage", fps: float, held_out: bool | None = True) -> list[Section]:
    """What the report says of a generator: its curves and the clips it drew."""
    sections = [
        Section(
            f"{stage.name.capitalize()}: learning",
            "The generator learns to draw clips. Good: the loss falls, the share of codes guessed right rises, "
            "training and evaluation agree.",
            [Curves(stage.directory / "metrics.jsonl", ("loss", "accuracy"))],
        )
    ]
    if stage.evaluate and "--protocol=signs" in stage.evaluate:
        with np.load(stage.clips, allow_pickle=False) as clips:
            labels, captions = ("original", "drawn"), [str(c) for c in clips["captions"]]
            pairs = Pairs(clips["originals"], clips["reconstructions"], captions, fps, labels=labels)
        what = f"{of_clips(held_out).capitalize()}: left the original, right what its text and first frame gave."
        sections.append(Section(f"{stage.name.capitalize()}: signs from texts", what, [pairs]))
    elif stage.evaluate and stage.config.get("tasks"):
        with np.load(stage.clips, allow_pickle=False) as clips:
            labels, tasks = ("given", "completed"), [str(c) for c in clips["captions"]]
            pairs = Pairs(clips["given"], clips["videos"], tasks, fps, labels=labels)
        sections.append(
            Section(
                f"{stage.name.capitalize()}: completed videos",
                f"{of_clips(held_out).capitalize()}: left what was given, the rest filled by a rule; right how it was "
                "completed.",
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
                "Each clip was drawn from the prompt under it; none was picked by hand"
                f"{', and no such prompt occurred in training' if held_out else ''}. "
                "The judge is a program that measures colour, form and direction.",
                [drawn],
            )
        )
    else:
        where = f"Beside {of_clips(held_out)}, for whose captions, if any, they were drawn. "
        where += "Videos of your own have no judge: look for yourself. New ones are drawn with: python -m "
        where += f"videogen.sample --checkpoint={stage.directory} --out=samples"
        drawn = sorted(stage.directory.glob("samples/step_*_samples_*.mp4"))
        clips = [read_video(file)[0] for file in drawn if file.name[:13] == drawn[-1].name[:13]]
        shown = Clips(clips, [""] * len(clips), (), fps)
        sections.append(Section(f"{stage.name.capitalize()}: samples", where, [shown]))
    return sections


def reading_sections(stage: "Stage", fps: float, held_out: bool | None = True) -> list[Section]:
    """What the report says of a model that reads clips and draws none: its curves, and what it says of some clips."""
    name, terms = stage.name.capitalize(), tuple(stage.config.losses)
    curves = Curves(stage.directory / "metrics.jsonl", ("loss", *terms))
    text = "Good: the losses fall, and training and evaluation agree."
    sections = [Section(f"{name}: learning", text, [curves])]
    if stage.evaluate:
        with np.load(stage.clips, allow_pickle=False) as clips:
            said = [f"{found} ({true})" for found, true in zip(clips["prompts"], clips["readings"], strict=True)]
            verdicts = [("", {"right": bool(row[0])}) for row in clips["correct"]]
            shown = Clips(clips["videos"], said, verdicts, fps)
        text = f"{of_clips(held_out).capitalize()}: under each what the model says of it, and what is true."
        sections.append(Section(f"{name}: what it reads", text, [shown]))
    return sections


def stream_sections(stage: "Stage", fps: float, held_out: bool | None = True) -> list[Section]:
    """What the report says of a model that watches streams."""
    with np.load(stage.clips, allow_pickle=False) as clips:
        said = [f"{true} · said: {said}" for true, said in zip(clips["prompts"], clips["readings"], strict=True)]
        shown = Clips(clips["videos"][: len(said)], said, fps=fps)
    name = stage.name.capitalize()
    what = (
        "The model watches frame by frame and says what happens. Good: the loss falls, and the share of words guessed "
        "right rises; silence is guessed right early, since most frames are silent."
    )
    keys = ("streaming", "streaming_answer_accuracy", "streaming_silence_accuracy", "fluency", "spoken")
    text = f"{of_clips(held_out).capitalize()}: the frame of every event and what is to be said, then what was said."
    return [
        Section(f"{name}: learning", what, [Curves(stage.directory / "metrics.jsonl", keys)]),
        Section(f"{name}: what it says", text, [shown]),
    ]


def sections_of(config: Any) -> Callable[..., list[Section]]:
    """What makes the sections of a stage."""
    task = class_of(config)
    if task.draws:
        return generator_sections
    if task.watches:
        return stream_sections
    return reading_sections if task.default_protocol(config) in (*ALONE, None) else tokenizer_sections


def numbers(stages: list["Stage"], metrics: dict[str, Any]) -> Table:
    """Every metric with its protocol beside it."""
    rows = []
    for stage in stages:
        protocol = metrics["protocol"].get(stage.name)
        if protocol:
            what = "prompts" if protocol["name"] in OF_PROMPTS else "clips"
            held_out = protocol.get("held_out")
            kind = {"clips": of_clips(held_out), "prompts": "unseen prompts" if held_out else "prompts"}[what]
            data = f"{protocol['count']} {kind} of {protocol['source']['name']}"
            how = f"{protocol['name']}, {data}, step {protocol['step']}"
            others = {name: in_words(beside) for name, beside in protocol.get("beside", {}).items()}
            flat = flatten(metrics[stage.name])
            rows += [(stage.name, n, v, meaning(n), others.get(n, how)) for n, v in flat.items()]
    return Table(("stage", "metric", "value", "what it says", "protocol"), rows)


def report(stages: list["Stage"], metrics: dict[str, Any], workdir: Path, config: str) -> Path:
    """Writes ``report.html``; returns its path."""
    sections = [headline(stages, metrics)]
    for stage in stages:
        held_out = metrics["protocol"].get(stage.name, {}).get("held_out")
        sections += sections_of(stage.config)(stage, shown_rate(stage.config), held_out)
        time_spent = goodput_section(stage.directory / "metrics.jsonl", f"{stage.name.capitalize()}: time")
        sections += [time_spent] if time_spent else []
    origin = f"seed {metrics['seed']}, commit {metrics['commit']}, {metrics['hardware']}"
    text = f"Made with {origin}. The same numbers in full precision are in metrics.json."
    sections.append(Section("All numbers", text, [numbers(stages, metrics)]))
    commands = [shlex.join(command) for stage in stages for command in stage.commands]
    path = workdir / "report.html"
    write_report(path, title(config), sections, [command_line(), *commands])
    return path
