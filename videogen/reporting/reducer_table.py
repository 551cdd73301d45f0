"""The table and the picture of reducers on one video-language model."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = Mapping[str, Any]
"""``recipe``, ``budget``, ``tokens``, ``in_layers``, ``chosen``, ``error``, … of ``benchmarks/reducers.py``."""

COLUMNS: dict[str, tuple[str, str]] = {
    "recipe": ("recipe", ""),
    "budget": ("budget", "d"),
    "tokens": ("tokens that enter", ".0f"),
    "in_layers": ("mean over layers", ".0f"),
    "chosen": ("right", ".1%"),
    "error": ("±", ".1%"),
    "against_random": ("against random tokens", "+.1%"),
    "written": ("right as written", ".1%"),
    "unparsed": ("unparsed", ".1%"),
    "picture": ("right of one frame", ".1%"),
    "gflops": ("GFLOPs of the prompt", ".3f"),
    "see": ("see, ms", ".1f"),
    "first": ("first token, ms", ".1f"),
    "each": ("each token, ms", ".2f"),
    "megabytes": ("memory, MiB", ".1f"),
}
"""Key -> heading and format."""
MILLISECONDS = ("see", "first", "each")
BASELINES = ("all", "uniform", "random", "pooling", "no_video", "oracle")
GREYS = dict(zip(BASELINES, ("0", "0.55", "0", "0.75", "0.5", "0.35"), strict=True))
"""Of the baselines in the picture."""


def compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with how much better than random tokens at the same budget they are, in falling order of tokens.

    Raises:
      ValueError: a row without which nothing can be judged is missing.
    """
    there = {row["recipe"] for row in rows}
    if missing := [name for name in BASELINES if name not in there]:
        raise ValueError(f"no table without the rows {', '.join(missing)} of the same run")
    random = {row["budget"]: row["chosen"] for row in rows if row["recipe"] == "random"}
    found = []
    for row in sorted(rows, key=lambda r: (-r["budget"], -r["chosen"])):
        more = {"against_random": row["chosen"] - random[row["budget"]]} if row["budget"] in random else {}
        found.append({**row, **more})
    return found


def write_table(rows: Sequence[Row], path: epath.PathLike) -> None:
    """Writes a Markdown table; raises ``ValueError`` as ``compared`` does."""
    keys = [key for key in COLUMNS if any(key in row or key == "against_random" for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[key][0] for key in keys) + " |", "| --- " * len(keys) + "|"]
    for row in compared(rows):
        lines.append("| " + " | ".join(_cell(row, key) for key in keys) + " |")
    epath.Path(path).write_text("\n".join(lines) + "\n")


def _cell(row: Row, key: str) -> str:
    if row.get(key) is None:
        return ""
    value = row[key] * 1000 if key in MILLISECONDS else row[key]
    return f"`{value}`" if key == "recipe" else format(value, COLUMNS[key][1])


def draw_accuracy(rows: Sequence[Row], path: epath.PathLike) -> None:
    """Writes a PNG: the share of right answers against the tokens that enter the decoder.

    A line for each recipe of several budgets; baselines are thick and grey, what sees nothing is a dashed line.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    for number, name in enumerate(name for name in names if name != "no_video"):
        own = sorted((row["tokens"], row["chosen"], row["error"]) for row in rows if row["recipe"] == name)
        x, y, error = zip(*own, strict=True)
        thick = {"linewidth": 2.5, "color": GREYS[name]} if name in GREYS else {"linewidth": 1.0}
        style = dict(marker="os^vDP*X"[number % 8], linestyle=("-", "--", ":")[number // 8 % 3], markersize=4)
        axes.errorbar(x, y, error, label=name, capsize=2, **style, **thick)
    for row in rows:
        if row["recipe"] == "no_video":
            axes.axhline(row["chosen"], color="0.5", linestyle="--", linewidth=1, label="no video")
    axes.set(
        xscale="log", xlabel="tokens of a clip that enter the decoder", ylabel="share of right answers", ylim=(0, 1)
    )
    budgets = sorted({row["budget"] for row in rows if row["budget"]})
    axes.set_xticks(budgets, list(map(str, budgets)))
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.2)
    axes.legend(fontsize=6, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=130)
