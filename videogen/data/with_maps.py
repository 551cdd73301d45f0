"""Samples of a source with maps of their points: what a multi-condition encoder reads (SignViP)."""

from typing import Any

import numpy as np

from videogen.data.around import SourceAround
from videogen.data.pose_maps import hands_map, pose_map
from videogen.data.source import Source
from videogen.errors import UserError

MAPS = "maps"
"""The field: the pose map and behind it the hands map of every frame, 3 channels each, uint8, 0 where nothing is."""

CHANNELS = 6
"""Of the field."""

_POINTS = ("pose", "pose_mask", "hands", "hands_mask")


class WithMaps(SourceAround):
    """The samples of a source with one more field, ``MAPS`` ``[frames, height, width, CHANNELS]``.

    The maps are drawn from the points of the sample, in units of the frame's sides; points that are not known draw
    nothing.

    Args:
      source: with the fields ``pose``, ``pose_mask``, ``hands`` and ``hands_mask``.

    Raises:
      UserError: the source has no such points.
    """

    def __init__(self, source: Source):
        super().__init__(source)
        if missing := [name for name in _POINTS if name not in source.fields]:
            raise UserError(f"data.source.maps: this source has no points to draw ({', '.join(missing)}); leave it out")

    def added(self):
        return {MAPS: ((self.clip.frames, self.clip.height, self.clip.width, CHANNELS), np.uint8)}

    def further(self, sample):
        return {MAPS: draw_maps(sample, self.clip.height, self.clip.width)}


def draw_maps(sample: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The maps of the points of a sample, uint8 ``[frames, height, width, CHANNELS]``."""
    pose = pose_map(sample["pose"], sample["pose_mask"], height, width)
    hands = hands_map(sample["hands"], sample["hands_mask"], height, width)
    return np.concatenate([pose, hands], axis=-1)
