"""A picture of how good reconstructions are at how many bits, of tokenizers and of codecs beside them."""

from collections.abc import Mapping, Sequence

from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from videogen.errors import UserError
from videogen.evaluation.rate_distortion import STRENGTHS, Point
from videogen.reporting.comparison import as_text, check_alike, read_result, short_names

PROTOCOL = "rate_distortion"
"""The name of the protocol, and of its section among the metrics."""

AXES = {
    "psnr": "PSNR (dB), higher is better",
    "ssim": "SSIM, higher is better",
    "lpips_alex": "LPIPS (AlexNet), lower is better",
    "frechet.shapes_stand_in": "Fréchet distance on the stand-in, lower is better",
}

GREYS = dict(zip(STRENGTHS, ("0.8", "0.65", "0.5", "0.35"), strict=True))
"""Colours of the codecs, which stand behind the tokenizers."""


def write_rates(path: epath.PathLike, curves: Mapping[str, Mapping[str, Point]], title: str = "") -> None:
    """Writes a PNG with a chart of each measure against the bits per pixel that were really written; the numbers at the
    ends of a curve are those of its tokens or strengths.

    Args:
      path: the file.
      curves: name of a tokenizer or codec -> its points by the number of tokens or strength.
      title: what was coded.
    """
    names = [name for name in AXES if any(name in point for points in curves.values() for point in points.values())]
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for label, points in curves.items():
            found = sorted((p["written_bits_per_pixel"], p[name]) for p in points.values() if name in p)
            style = {"linestyle": ":", "color": GREYS[label]} if label in GREYS else {}
            axes.plot(*zip(*found, strict=True), marker="o", markersize=3, label=label, **style)
            for number in (min(points, key=float), max(points, key=float)):
                if name in points[number]:
                    place = (points[number]["written_bits_per_pixel"], points[number][name])
                    axes.annotate(number, place, fontsize=6, xytext=(3, 3), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_xlabel("bits per pixel: packed codes, whole files of codecs")
        axes.set_ylabel(AXES[name])
        axes.grid(alpha=0.2)
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=9)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=120)


def write_leaderboard(paths: Sequence[epath.PathLike], picture: epath.PathLike) -> str:
    """Draws the curves of several tokenizers, and of the codecs beside the first, on one picture.

    Args:
      paths: results of the protocol ``rate_distortion``, which must be of the same clips; these may begin alike and
        have different numbers of frames, since few tokenizers take the same.
      picture: the PNG file.

    Returns:
      The table of all points of the tokenizers, from few bits to many.

    Raises:
      UserError: a file is no such result, or they were not measured alike.
    """
    results = {str(path): read_result(path) for path in paths}
    if not results:
        raise UserError("name results of rate_distortion: python -m videogen.compare A.json B.json --rates=rates.png")
    for path, result in results.items():
        if PROTOCOL not in result["metrics"]:
            raise UserError(f"{path} is of the protocol {result['protocol'].get('name')}, not {PROTOCOL}")
    check_alike(results, but=("clip.frames",))
    curves, lines = {}, []
    # One result has no name but its own.
    names = short_names(results) if len(results) > 1 else ["tokenizer"]
    for name, result in zip(names, results.values(), strict=True):
        found = result["metrics"][PROTOCOL]
        for curve in (c for c in found if c not in GREYS):
            label = name if curve == "tokenizer" else f"{name}, {curve.replace('_', ' ')}"
            curves[label] = found[curve]
            lines += [(label, number, point) for number, point in found[curve].items()]
    first = next(iter(results.values()))
    curves |= {name: points for name, points in first["metrics"][PROTOCOL].items() if name in GREYS}
    clip, frames = first["protocol"]["clip"], {r["protocol"]["clip"]["frames"] for r in results.values()}
    said = " or ".join(map(str, sorted(frames)))
    write_rates(picture, curves, f"{first['metrics']['clips']} clips of {said} × {clip['height']} × {clip['width']}")
    measures = [name for name in AXES if any(name in point for *_, point in lines)]
    header = ["tokenizer", "tokens or error", "bits per pixel", *measures, ""]
    lines.sort(key=lambda line: line[2]["written_bits_per_pixel"])
    rows = []
    for label, number, point in lines:
        values = [f"{point[name]:.4g}" if name in point else "–" for name in measures]
        rows.append([label, number, f"{point['written_bits_per_pixel']:.4f}", *values, ""])
    return as_text(header, rows)
