"""Networks that read clips and poses: what is there, and where, rather than new clips."""

from videogen.perception.lifting import LifterSizes, LiftingHourglass, PoseLifter, lifting_flops
from videogen.perception.segmenting import MaskHead, SegmentingModel, at_marker
from videogen.perception.selective import SelectiveStateSpace

__all__ = [
    "LifterSizes",
    "LiftingHourglass",
    "MaskHead",
    "PoseLifter",
    "SegmentingModel",
    "SelectiveStateSpace",
    "at_marker",
    "lifting_flops",
]
