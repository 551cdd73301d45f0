"""Tokenizers and codecs ranked by several measures, and how far the rankings agree.

TokBench's claim is that they do not: PSNR, SSIM and LPIPS say little about small text and faces.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from videogen.configuration import replace_text
from videogen.errors import UserError
from videogen.metrics.recognition import rank_correlation
from videogen.reporting.comparison import Result, check_alike, flattened, read_result, short_names
from videogen.reporting.page import Section, Table, write_report

MEASURES = {
    "psnr": ("PSNR", 1),
    "ssim": ("SSIM", 1),
    "lpips": ("LPIPS", -1),
    "text.pictures.t_acc": ("T-ACC", 1),
    "text.pictures.t_ned": ("T-NED", 1),
    "text.videos.t_ned": ("T-NED, videos", 1),
    "text.videos.stability": ("stability", 1),
    "faces.pictures.f_sim": ("F-Sim", 1),
    "faces.videos.f_sim": ("F-Sim, videos", 1),
}
"""Number of a TokBench result -> its name in the table, and 1 where more is better."""

READING = "Values, with ranks in brackets. A correlation of 1 says that two measures rank alike, of 0 that they do not."


def ranking(results: Mapping[str, Result]) -> dict[str, Any]:
    """The table: values and ranks of everything that was judged, and Spearman's correlation of every two measures.

    Args:
      results: at least two, measured alike, by what they are called.

    Raises:
      UserError: they were not measured alike, or two numbers that all have are missing.
    """
    check_alike(results)
    numbers = {name: dict(flattened(result["metrics"])) for name, result in results.items()}
    used = [key for key in MEASURES if all(isinstance(values.get(key), int | float) for values in numbers.values())]
    if len(used) < 2:
        raise UserError("a ranking needs results of tokbench protocols, with at least two measures that all have")
    better = {key: [MEASURES[key][1] * values[key] for values in numbers.values()] for key in used}
    rows = []
    for k, (name, values) in enumerate(numbers.items()):
        ranks = {MEASURES[key][0]: 1 + sum(other > better[key][k] for other in better[key]) for key in used}
        rows.append({"name": name, "values": {MEASURES[key][0]: values[key] for key in used}, "ranks": ranks})
    # Two always rank alike, or the other way round.
    tells = len(results) > 2
    correlations = {
        MEASURES[a][0]: {MEASURES[b][0]: rank_correlation(better[a], better[b]) if tells else None for b in used}
        for a in used
    }
    protocol = next(iter(results.values()))["protocol"]["name"]
    return {"protocol": protocol, "rows": rows, "rank_correlations": correlations}


def _tables(found: Mapping[str, Any]) -> tuple[Table, Table]:
    """Values with their ranks in brackets, and the correlations."""
    names = list(found["rank_correlations"])
    rows = [
        [row["name"], *(f"{row['values'][name]:.4g} ({row['ranks'][name]})" for name in names)] for row in found["rows"]
    ]
    agree = [[a, *(_shown(found["rank_correlations"][a][b]) for b in names)] for a in names]
    return Table(["", *names], rows), Table(["Spearman's correlation", *names], agree)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def as_markdown(found: Mapping[str, Any]) -> str:
    """Both tables."""

    def table(content: Table) -> str:
        lines = [content.header, ["---"] * len(content.header), *content.rows]
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

    return "\n\n".join(map(table, _tables(found))) + "\n"


def write_ranking(paths: Sequence[epath.PathLike], out: epath.PathLike) -> str:
    """Ranks results and writes the table as ``.json``, ``.md`` or ``.html``.

    Args:
      paths: files that ``videogen.evaluate`` wrote with a tokbench protocol.
      out: the file.

    Returns:
      The table in Markdown.

    Raises:
      UserError: fewer than two, a file that is no such result, results that were not measured alike, or another ending.
    """
    if len(paths) < 2:
        raise UserError("name at least two results to rank: python -m videogen.compare A.json B.json --ranking=FILE")
    results = {str(path): read_result(path) for path in paths}
    judged = [result["protocol"].get("codec") for result in results.values()]
    names = [codec or name for codec, name in zip(judged, short_names(results), strict=True)]
    names = names if len(set(names)) == len(names) else list(results)
    found, suffix = ranking(dict(zip(names, results.values(), strict=True))), Path(out).suffix
    if suffix == ".json":
        replace_text(out, json.dumps(found, indent=2) + "\n")
    elif suffix == ".md":
        replace_text(out, as_markdown(found))
    elif suffix == ".html":
        sections = [Section(found["protocol"], READING, _tables(found))]
        write_report(out, "Ranking", sections, [f"python -m videogen.compare {' '.join(results)} --ranking={out}"])
    else:
        raise UserError(f"--ranking={out} must end in .json, .md or .html")
    return as_markdown(found)
