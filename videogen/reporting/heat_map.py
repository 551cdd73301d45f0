"""The picture of a needle in a video haystack."""

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from videogen.evaluation.haystack import HeatMap


def write_heat_map(path: epath.PathLike, found: HeatMap, title: str = "") -> None:
    """Writes a PNG: lengths of the videos from left to right, depths downwards, from red (none) to green (all found).

    Places where nothing was asked are grey.

    Args:
      path: the file.
      found: what was found where.
      title: of the picture.
    """
    figure = Figure(
        figsize=(max(1.8 + 0.26 * len(found.lengths), 5.0), 1.4 + 0.24 * len(found.depths)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("0.8")
    image = axes.imshow(np.ma.masked_invalid(found.accuracy.T), cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    every = max(1, len(found.lengths) // 10)
    axes.set_xticks(range(0, len(found.lengths), every), [f"{v:g}" for v in found.lengths[::every]])
    axes.set_yticks(range(len(found.depths)), [f"{v:.0%}" for v in found.depths])
    axes.tick_params(labelsize=7)
    axes.set_xlabel("length of the video, seconds", fontsize=8)
    axes.set_ylabel("depth of the needle", fontsize=8)
    figure.colorbar(image, ax=axes, label="share found")
    figure.suptitle(title, fontsize=9)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=120)
