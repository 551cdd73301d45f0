"""A picture of which tokens of a clip stay: what was dropped is dark, what was merged has a colour by how many."""

import math

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from videogen.data.video_io import Frames
from videogen.errors import UserError
from videogen.reducers import TokenSet

DIM = 0.2
"""Share of its brightness that a dropped place keeps."""

TINT = 0.5
"""Share of its colour that a merged place gets from the number of places that it shares a token with."""

COLOURS = "plasma"


def shared_by(tokens: TokenSet, example: int = 0) -> Int[np.ndarray, "originals"]:
    """For every token of a clip how many share the one that stands for it, itself among them; 0 where none does.

    Raises:
      UserError: no token of the result stands for a place, as behind learned queries.
    """
    source = np.asarray(tokens.filled().source[example])
    if (source < 0).all():
        raise UserError("no token stands for a place of the clip here, so there is nothing to show of what stays")
    counts = np.bincount(source[source >= 0], minlength=source.max() + 1)
    return np.where(source >= 0, counts[np.maximum(source, 0)], 0)


def shown(clip: Frames, tokens: TokenSet, grid: tuple[int, int, int], example: int = 0) -> UInt8[np.ndarray, "..."]:
    """The frames of a clip with what became of their tokens.

    A place that stays alone looks as it is, one that was dropped is dark, and one that shares a token with others is
    tinted, the brighter the more they are.

    Args:
      clip: ``[time, height, width, 3]``.
      tokens: what a reducer, or a chain, left of it.
      grid: ``(time, rows, columns)`` of the tokens before; a frame shows those of its share of the time.
      example: of ``tokens``.

    Raises:
      UserError: these are not so many tokens, or none stands for a place.
    """
    counts = shared_by(tokens, example)
    if len(counts) != math.prod(grid):
        raise UserError(f"{len(counts)} tokens are no grid of {' × '.join(map(str, grid))}")
    most = max(counts.max(), 2)
    time, height, width = clip.shape[:3]
    of_time, of_rows, of_columns = (
        np.arange(n) * side // n for n, side in zip((time, height, width), grid, strict=True)
    )
    each = counts.reshape(grid)[of_time][:, of_rows][:, :, of_columns][..., None]
    colour = 255 * colormaps[COLOURS](np.log(np.maximum(each[..., 0], 1)) / np.log(most))[..., :3]
    tinted = (1 - TINT) * clip + TINT * colour
    found = np.where(each == 0, DIM * clip, np.where(each > 1, tinted, clip))
    return np.round(found).astype(np.uint8)


def write_token_picture(
    path: epath.PathLike,
    clip: Frames,
    tokens: TokenSet,
    grid: tuple[int, int, int],
    *,
    example: int = 0,
    title: str = "",
    columns: int = 8,
) -> None:
    """Writes a PNG with the frames in rows, and how many tokens of each frame are left or merged.

    Args:
      path: the file.
      clip, tokens, grid, example: as for ``shown``.
      title: what was reduced, and how.
      columns: frames of a row.
    """
    frames, counts = shown(clip, tokens, grid, example), shared_by(tokens, example).reshape(grid[0], -1)
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    figure = Figure(figsize=(1.6 * columns + 0.8, 1.8 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, axes in enumerate(places):
        axes.axis("off")
        if number < len(frames):
            own = counts[number * grid[0] // len(frames)]
            axes.imshow(frames[number], interpolation="nearest")
            axes.set_title(f"{np.sum(own > 0)} of {len(own)}, {np.sum(own > 1)} merged", fontsize=6)
    if counts.max() > 1:
        most = int(counts.max())
        marks = sorted({*(2**i for i in range(most.bit_length() - 1)), most})
        bar = figure.colorbar(ScalarMappable(LogNorm(1, most), colormaps[COLOURS]), ax=places.tolist(), fraction=0.03)
        bar.set_ticks(marks, labels=list(map(str, marks)), minor=False)
        bar.minorticks_off()
        bar.set_label("places that share a token", fontsize=7)
    left = int(np.asarray(tokens.filled().mask[example]).sum())
    figure.suptitle(f"{title}{': ' if title else ''}{left} tokens of {counts.size}", fontsize=9)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=120)
