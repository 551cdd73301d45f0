"""A needle in a video haystack: how often it is found, by the length of the video and the place of the needle.

NIAVH's protocol: a needle of one second in videos of 1 … 320 seconds in 40 lengths, at depths of 0 … 100 % in 12 steps.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from videogen.errors import UserError

LENGTHS = tuple(float(v) for v in np.rint(np.linspace(1, 320, 40)))
"""Seconds."""
DEPTHS = tuple(float(v) for v in np.linspace(0, 1, 12))
"""0: the needle begins the video; 1: it ends it."""
NEEDLE = 1.0
"""Seconds."""


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """Share of needles that are found.

    Attributes:
      lengths: of the videos, in seconds, rising.
      depths: of the needles, from 0 to 1, rising.
      accuracy: in [0, 1]; NaN where nothing was asked.
      count: of the questions.
      unparsed: of these, how many had no readable answer or failed; they count as not found.
    """

    lengths: tuple[float, ...]
    depths: tuple[float, ...]
    accuracy: Float[np.ndarray, "lengths depths"]
    count: Int[np.ndarray, "lengths depths"]
    unparsed: Int[np.ndarray, "lengths depths"]

    def record(self) -> dict[str, Any]:
        """As JSON values; ``None`` where nothing was asked."""
        rows = [[None if np.isnan(value) else float(value) for value in row] for row in self.accuracy]
        kept = {"lengths": list(self.lengths), "depths": list(self.depths), "accuracy": rows}
        return {**kept, "count": self.count.tolist(), "unparsed": self.unparsed.tolist()}


def heat_map(found: Iterable[tuple[float, float, bool | None]]) -> HeatMap:
    """The map of questions about needles.

    Args:
      found: of each question the length of the video in seconds, the depth of the needle, and whether the answer was
        right; ``None`` where it could not be read, or the sample failed.

    Raises:
      UserError: there are none.
    """
    rows = list(found)
    if not rows:
        raise UserError("no needle was asked for; check the lengths and depths")
    lengths, depths = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    shape = len(lengths), len(depths)
    right, count, unparsed = (np.zeros(shape, np.int64) for _ in range(3))
    for length, depth, found_it in rows:
        place = lengths.index(length), depths.index(depth)
        count[place] += 1
        right[place] += found_it is True
        unparsed[place] += found_it is None
    accuracy = np.where(count > 0, right / np.maximum(count, 1), np.nan)
    return HeatMap(tuple(lengths), tuple(depths), accuracy, count, unparsed)


def haystacks(
    frames: int,
    fps: float,
    lengths: Sequence[float] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    needle: float = NEEDLE,
) -> list[tuple[float, float, dict[str, Any]]]:
    """Length, depth and settings of a source ``shapes_questions`` for each place of the map.

    Args:
      frames: that the model sees of each video; lengths that have fewer at this rate are left out.
      fps: frames per second of the videos.
      lengths: of the videos, in seconds.
      depths: of the needles, from 0 to 1.
      needle: its length in seconds; at least one frame.

    Raises:
      UserError: no video has so many frames and a needle that is shorter than it.
    """
    shown = max(round(needle * fps), 1)
    fit = [length for length in lengths if round(length * fps) >= max(frames, shown + 1)]
    if not fit:
        raise UserError(
            f"no video of {max(lengths):g} s or less has {max(frames, shown + 1)} frames at {fps:g} frames per second; "
            "use fewer frames or longer videos"
        )
    common = {"name": "shapes_questions", "kinds": ("needle",), "needle": shown}
    return [(n, depth, {**common, "seconds": n, "depth": depth}) for n in fit for depth in depths]
