"""Where a thing is said to be, frame by frame, in 3 × 3 cells (the high-motion reading of DIVE).

Source: Hai-chao-Zhang/DenseVideoUnderstand, ``position-preserving-masked-grid-v1``, without its masks: all places here
are known. A cell that is not said, or not one of the nine, is wrong and at the largest distance; those behind it keep
their places.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from videogen.errors import UserError

SIDE = 3
FARTHEST = math.sqrt(2)
"""Distance of a cell that was not said, in units of the frame's sides."""

NAMES = {
    "top left": 0,
    "top": 1,
    "top right": 2,
    "left": 3,
    "middle": 4,
    "right": 5,
    "bottom left": 6,
    "bottom": 7,
    "bottom right": 8,
}
"""Names of the cells, row by row; their numbers in texts are 1 … 9."""

_ALIKE = {"centre": "middle", "center": "middle", "upper": "top", "lower": "bottom"}


@dataclasses.dataclass(frozen=True)
class Tracking:
    """How a track was told.

    Attributes:
      right: share of frames whose cell is right.
      mean_distance: of the centres of the said and the true cell, in units of the frame's sides.
      last_distance: of the last frame.
      transitions: share of the steps from frame to frame that are right, wherever they begin; ``None`` of one frame.
    """

    right: float
    mean_distance: float
    last_distance: float
    transitions: float | None


def read_cells(text: str) -> list[int | None]:
    """The cells (0 … 8) that a text says one after another; ``None`` at the place of anything else.

    Cells are numbers from 1 to 9 or names as ``NAMES`` has them, parted by commas, semicolons or ends of lines, or
    numbers parted by blanks.
    """
    parts = re.split(r"[,;\n]", text)
    if len(parts) == 1 and re.fullmatch(r"[\d\s]*", text):
        parts = text.split()
    return [_cell(part) for part in parts] if text.strip() else []


def _cell(part: str) -> int | None:
    word = part.strip(" \t.\"'`()[]{}").lower()
    if re.fullmatch(r"[1-9]", word):
        return int(word) - 1
    words = [_ALIKE.get(w, w) for w in re.split(r"[\s_-]+", word)]
    # "middle left" is the left cell of the middle row; "top middle" the middle one of the top row.
    named = [w for w in words if w != "middle"] or words[:1]
    return NAMES.get(" ".join(named))


def tracking(said: Sequence[int | None], true: Sequence[int]) -> Tracking:
    """Compares cells, frame by frame; what is said beyond the last frame does not count.

    Raises:
      UserError: there is no frame.
    """
    if not true:
        raise UserError("a track needs at least one frame")
    told = [*said[: len(true)], *[None] * (len(true) - len(said))]
    distances = [_distance(a, b) for a, b in zip(told, true, strict=True)]
    steps = [
        None not in told[i : i + 2] and _step(*told[i : i + 2]) == _step(*true[i : i + 2]) for i in range(len(true) - 1)
    ]
    return Tracking(
        right=sum(a == b for a, b in zip(told, true, strict=True)) / len(true),
        mean_distance=sum(distances) / len(true),
        last_distance=distances[-1],
        transitions=sum(steps) / len(steps) if steps else None,
    )


def _step(a: int, b: int) -> tuple[int, int]:
    """Rows and columns from one cell to another."""
    return b // SIDE - a // SIDE, b % SIDE - a % SIDE


def _distance(a: int | None, b: int) -> float:
    return FARTHEST if a is None else math.hypot(*_step(a, b)) / SIDE
