"""A picture of what a recogniser read before and after: crops of words with the readings beneath."""

import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Example = tuple[UInt8[np.ndarray, "2 height width 3"], str, str, str]
"""Crops before and after, what the word says, what was read before and after."""

COLUMNS = 4


def write_readings(path: epath.PathLike, examples: Sequence[Example], title: str = "") -> None:
    """Writes a png: for each word the crop of the original above that of the reconstruction, each over its reading.

    A reading that is wrong is red. ``title`` says what was judged. Without examples nothing is written.
    """
    if not examples:
        return
    rows = -(-len(examples) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 1.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * rows, COLUMNS, squeeze=False)
    for place in axes.ravel():
        place.set_axis_off()
    for k, (crops, text, *reads) in enumerate(examples):
        for side, (crop, read) in enumerate(zip(crops, reads, strict=True)):
            place = axes[2 * (k // COLUMNS) + side, k % COLUMNS]
            place.imshow(crop)
            # Names of fonts and letters that they lack must not stop a report; $ would begin a formula.
            shown = read.replace("$", r"\$") or "(nothing)"
            colour = "black" if read == text else "firebrick"
            place.set_title(shown, fontsize=9, color=colour, y=-0.45, loc="left")
    figure.suptitle(
        f"{title}\nEach word in the original, and below it in the reconstruction; red: read wrongly.".strip()
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    epath.Path(path).write_bytes(content.getvalue())
