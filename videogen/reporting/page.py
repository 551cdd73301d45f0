"""The report of a run: one HTML file that shows what was trained and how well it works.

The file stands alone: clips are embedded as H.264 with a filmstrip of stills beneath, charts are inline SVG,
the few lines of style are in the page, nothing is fetched from anywhere.
"""

import base64
import dataclasses
import html
import io
import itertools
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FuncFormatter, MaxNLocator

from videogen.data.video_io import Frames, side_by_side, write_video
from videogen.errors import UserError
from videogen.runs.records import read_metrics

METRICS = {
    "loss": ("loss", "", "lower is better"),
    "l2": ("squared error", "pixel range −1…1", "lower is better"),
    "l1": ("absolute error", "pixel range −1…1", "lower is better"),
    "psnr": ("PSNR", "dB", "higher is better"),
    "ssim": ("SSIM", "1 = identical", "higher is better"),
    "gradient_sharpness": ("distance in sharpness", "grey levels", "lower is better"),
    "codebook_usage": ("codebook usage", "share of codes", "higher is better"),
    "codebook_perplexity": ("codebook perplexity", "codes in effective use", "higher is better"),
    "codebook_entropy": ("codebook entropy", "1 = all codes equally often", "higher is better"),
    "codebook_dead": ("dead codes", "codes that never occurred", "lower is better"),
    "codebook_expected_usage": ("usage of even draws", "share of codes", "what codebook usage can reach"),
    "accuracy": ("accuracy", "share of hidden codes", "higher is better"),
    "learning_rate": ("learning rate", "", "as scheduled"),
    "gradient_norm": ("gradient norm", "", "steady, without spikes"),
    "videos_per_second": ("training speed", "videos/s", "higher is better"),
    "tokens_per_second": ("training speed", "tokens/s", "higher is better"),
    "tflops_per_second": ("arithmetic", "TFLOP/s over all devices", "higher is better"),
    "mfu": ("model FLOP utilisation", "share of the peak", "higher is better"),
}
"""Metric name without its prefix -> (title, unit, what good looks like); others show under their own name."""

_STRIP_FRAMES = 5
_INK = "#0a0b0c"
"""Stands for the page's text colour in charts, so that they read on light and on dark."""

_COLOURS = ("#3b7dd8", "#e08a2c", "#4a9d6b", "#b65fc0")


class Block(Protocol):
    """A piece of a section."""

    def render(self) -> str:
        """The piece as HTML."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A headed part of the report: ``text`` says what is seen and what good looks like."""

    title: str
    text: str
    blocks: Sequence[Block]

    def render(self) -> str:
        """The piece as HTML."""
        parts = "\n".join(block.render() for block in self.blocks)
        title = html.escape(self.title)
        return f'<section id="{_anchor(title)}"><h2>{title}</h2>{_paragraph(self.text)}\n{parts}</section>'


@dataclasses.dataclass(frozen=True)
class Figures:
    """The few numbers that matter, large: (label, value, what it means) each."""

    items: Sequence[tuple[str, str, str]]

    def render(self) -> str:
        """The piece as HTML."""
        cards = (
            f'<div class="figure"><b>{html.escape(value)}</b><span>{html.escape(label)}</span>'
            f"<small>{html.escape(meaning)}</small></div>"
            for label, value, meaning in self.items
        )
        return f'<div class="figures">{"".join(cards)}</div>'


@dataclasses.dataclass(frozen=True)
class Curves:
    """One small chart for each of ``keys`` (metric names without prefix) that ``metrics.jsonl`` has.

    ``train/NAME`` and ``eval/NAME`` share a chart. Raises UserError when the file holds no metrics.
    """

    path: epath.PathLike
    keys: Sequence[str]

    def render(self) -> str:
        """The piece as HTML."""
        series = _series(self.path)
        charts = []
        for key in self.keys:
            lines = {name: points for name, points in series.items() if name.rpartition("/")[2] == key}
            if lines:
                charts.append(f"<figure>{chart_title(key)}{_svg(chart(lines))}</figure>")
        return f'<div class="charts">{"".join(charts)}</div>'


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Originals beside their reconstructions, in one clip so that they play in step.

    ``labels`` says what is which, from left to right; ``between`` holds what stands between the two, in columns.
    """

    originals: Sequence[Frames]
    reconstructions: Sequence[Frames]
    captions: Sequence[str]
    fps: float = 8.0
    between: Sequence[Sequence[Frames]] = ()
    labels: Sequence[str] = ("original", "reconstruction")

    def render(self) -> str:
        """The piece as HTML."""
        labels = "".join(f"<span>{html.escape(label)}</span>" for label in self.labels)
        cards = []
        for *row, caption in zip(self.originals, *self.between, self.reconstructions, self.captions, strict=True):
            stills = np.concatenate([_strip(clip) for clip in row])
            cards.append(_card(side_by_side(row), stills, f'<div class="sides">{labels}</div>', caption, "", self.fps))
        return f'<div class="clips wide">{"".join(cards)}</div>'


@dataclasses.dataclass(frozen=True)
class Clips:
    """Generated clips under their prompts, each with what the judge read and whether that fits the prompt.

    ``verdicts`` holds per clip the judge's reading and attribute -> right or wrong; empty without a judge.
    """

    videos: Sequence[Frames]
    captions: Sequence[str]
    verdicts: Sequence[tuple[str, Mapping[str, bool]]] = ()
    fps: float = 8.0

    def render(self) -> str:
        """The piece as HTML."""
        verdicts = self.verdicts or [("", {})] * len(self.videos)
        cards = []
        for video, caption, (reading, checks) in zip(self.videos, self.captions, verdicts, strict=True):
            marks = "".join(_mark(name, right) for name, right in checks.items())
            note = f'<div class="marks">{marks}</div>' if marks else ""
            note += f"<small>the judge saw: {html.escape(reading)}</small>" if reading else ""
            cards.append(_card(video, _strip(video), "", caption, note, self.fps))
        return f'<div class="clips">{"".join(cards)}</div>'


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text and numbers under a header; floats show four significant digits."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def render(self) -> str:
        """The piece as HTML."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in self.rows)
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def write_report(path: epath.PathLike, title: str, sections: Sequence[Section], commands: Sequence[str]) -> None:
    """Writes one self-contained HTML file.

    Args:
      path: file to write; its folder is made when missing, an old file is replaced as a whole.
      title: heading of the page.
      sections: what it shows, in order.
      commands: the exact commands that made the run, shown at the end.

    Raises:
      UserError: a metrics file that a section names is missing or empty.
    """
    path = epath.Path(path)
    titles = [html.escape(section.title) for section in sections]
    contents = "".join(f'<li><a href="#{_anchor(name)}">{name}</a></li>' for name in titles)
    body = "\n".join(section.render() for section in sections)
    shown = html.escape("\n".join(commands))
    page = _PAGE.format(title=html.escape(title), style=_STYLE, contents=contents, body=body, commands=shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{path.name}.part"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)


def _series(path: epath.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric name -> (steps, values) of a ``metrics.jsonl``.

    Raises:
      UserError: nothing has been logged there.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for record in read_metrics(path):
        for name in record.keys() - {"step"}:
            series.setdefault(name, []).append((record["step"], record[name]))
    if not series:
        raise UserError(f"{path} holds no metrics; a run directory has some once training has logged a step")
    return {name: tuple(np.array(points, float).T) for name, points in series.items()}


def chart_title(key: str) -> str:
    """What a chart shows, in which unit, and what good looks like: text of the page, which breaks where it must."""
    title, unit, good = METRICS.get(key, (key.replace("_", " "), "", ""))
    unit = f" ({unit})" if unit else ""
    return f"<figcaption><b>{html.escape(title + unit)}</b><small>{html.escape(good)}</small></figcaption>"


def chart(lines: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """One metric against the step; long noisy series get a thick running mean."""
    figure = Figure(figsize=(3.5, 2.1), layout="constrained")
    axes = figure.subplots()
    colours = itertools.cycle(_COLOURS)
    for name, (steps, values) in sorted(lines.items(), reverse=True):
        colour = next(colours)
        smooth = _running_mean(values)
        if smooth is not None:
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.6)
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, values if smooth is None else smooth, color=colour, label=name, marker=marker)
    axes.set_xlabel("step", fontsize=8, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    # Plain numbers as far as they are short: an offset is easily overlooked.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.9g}"))
    axes.tick_params(labelsize=8, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.grid(axis="y", color=_INK, alpha=0.12)
    # Above the axes, where no curve is; long names below each other.
    columns = 2 if sum(map(len, lines)) < 40 else 1
    figure.legend(loc="outside upper left", fontsize=7, frameon=False, labelcolor=_INK, ncols=columns)
    return figure


def _running_mean(values: np.ndarray) -> np.ndarray | None:
    """Mean over a centred window of a twentieth of the series; ``None`` for short or smooth series."""
    window = len(values) // 20
    turns = np.mean(np.diff(np.sign(np.diff(values))) != 0) if window else 0.0
    if window < 2 or turns < 0.2:
        return None
    total = np.convolve(values, np.ones(window), "same")
    return total / np.convolve(np.ones(len(values)), np.ones(window), "same")


def _svg(figure: Figure) -> str:
    """A figure as inline SVG in the page's own font and text colour."""
    target = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "videogen"}):
        figure.savefig(target, format="svg", metadata={"Date": None}, transparent=True)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font-family: [^;\"]*;", "", text)
    return text.replace(_INK, "currentColor")


def _strip(video: Frames) -> UInt8[np.ndarray, "height width 3"]:
    """A few frames evenly spread over the clip, side by side with thin grey lines between."""
    frames = video[np.unique(np.linspace(0, len(video) - 1, _STRIP_FRAMES).round().astype(int))]
    line = np.full_like(frames[0, :, :1], 128)
    return np.concatenate([part for frame in frames for part in (line, frame)][1:], axis=1)


def _card(video: Frames, stills: np.ndarray, labels: str, caption: str, note: str, fps: float) -> str:
    """A playing clip, what its sides are (HTML), its filmstrip, its caption and remarks on it (HTML)."""
    text = html.escape(caption)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_video(file, video, fps)
        movie = _data("video/mp4", file.read_bytes())
    png = io.BytesIO()
    imsave(png, stills, format="png")
    return (
        f'<figure><video src="{movie}" autoplay loop muted playsinline aria-label="{text}"></video>{labels}'
        f'<img src="{_data("image/png", png.getvalue())}" alt="frames of: {text}">'
        f"<figcaption><p>{text}</p>{note}</figcaption></figure>"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _mark(name: str, right: bool) -> str:
    kind, sign = ("right", "✓") if right else ("wrong", "✗")
    return f'<span class="{kind}">{sign} {html.escape(name)}</span>'


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _paragraph(text: str) -> str:
    return "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n") if part.strip())


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #626b76; --paper: #fbfaf8; --card: #fff;
  --line: #e4e1db; --right: #23794a; --wrong: #b3402e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --soft: #9aa3ae; --paper: #15181c;
  --card: #1d2126; --line: #30363d; --right: #6cc08b; --wrong: #e68a78; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 0 0 .3rem; }
a { color: inherit; }
small { color: var(--soft); font-size: .8rem; line-height: 1.4; display: block; }
section { margin-top: 2.6rem; border-top: 1px solid var(--line); padding-top: 1.6rem; }
section > p { max-width: 46rem; margin: .4rem 0 1rem; }
nav ol { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; margin: 0; list-style: none; }
.figures, .charts, .clips { display: grid; gap: .9rem; margin: 1rem 0; }
.figures { grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
.clips { grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); }
.charts, .clips.wide { grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
figure, .figure, pre { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .7rem; }
.figure b { display: block; font-size: 1.6rem; line-height: 1.2; }
.figure span { display: block; font-size: .9rem; line-height: 1.3; margin: .15rem 0 .3rem; }
figure svg, video, img { width: 100%; height: auto; display: block; }
video, img { image-rendering: pixelated; border-radius: .3rem; }
img { margin-top: .4rem; }
figcaption b { font-size: .9rem; line-height: 1.3; }
figcaption p { margin: .4rem 0 0; font-size: .85rem; line-height: 1.4; }
.sides { display: flex; justify-content: space-around; font-size: .75rem; color: var(--soft);
  margin-top: .3rem; }
.marks { display: flex; flex-wrap: wrap; gap: 0 .8rem; font-size: .85rem; margin-top: .3rem; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
.scroll, pre { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: 1rem 0; }
th, td { text-align: left; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
.number { font-variant-numeric: tabular-nums; }
pre { font-size: .8rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
<header><h1>{title}</h1><nav><ol>{contents}</ol></nav></header>
{body}
<section><h2>Commands</h2><p>What made this page, in order.</p>
<pre>{commands}</pre></section>
</body></html>
"""
