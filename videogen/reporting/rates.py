"""A picture of how good reconstructions are at how many bits, of tokenizers and of codecs beside them."""

from collections.abc import Mapping

from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from videogen.evaluation.rate_distortion import Point

PROTOCOL = "rate_distortion"
"""The name of the protocol, and of its section among the metrics."""

AXES = {
    "psnr": "PSNR (dB), higher is better",
    "ssim": "SSIM, higher is better",
    "frechet.shapes_stand_in": "Fréchet distance on the stand-in, lower is better",
}


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
            axes.plot(*zip(*found, strict=True), marker="o", markersize=3, label=label)
            for number in (min(points, key=int), max(points, key=int)):
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
