"""The totals of VBench (Huang et al., CVPR 2024) from its sixteen dimensions, which are measured elsewhere."""

import dataclasses
from collections.abc import Mapping

from videogen.errors import UserError, near_matches


@dataclasses.dataclass(frozen=True)
class Dimension:
    """How a dimension enters the total.

    Attributes:
      group: ``quality`` or ``semantic``.
      low, high: the values that become 0 and 1.
      weight: within the group.
    """

    group: str
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


DIMENSIONS = {
    "subject_consistency": Dimension("quality", 0.1462),
    "background_consistency": Dimension("quality", 0.2615),
    "temporal_flickering": Dimension("quality", 0.6293),
    "motion_smoothness": Dimension("quality", 0.706, 0.9975),
    "dynamic_degree": Dimension("quality", weight=0.5),
    "aesthetic_quality": Dimension("quality"),
    "imaging_quality": Dimension("quality"),
    "object_class": Dimension("semantic"),
    "multiple_objects": Dimension("semantic"),
    "human_action": Dimension("semantic"),
    "color": Dimension("semantic"),
    "spatial_relationship": Dimension("semantic"),
    "scene": Dimension("semantic", 0.0, 0.8222),
    "appearance_style": Dimension("semantic", 0.0009, 0.2855),
    "temporal_style": Dimension("semantic", 0.0, 0.364),
    "overall_consistency": Dimension("semantic", 0.0, 0.364),
}
"""Name -> its place in the published total."""

GROUPS = {"quality": 4.0, "semantic": 1.0}
"""Group -> its weight in the total."""


def normalised(name: str, value: float) -> float:
    """The value between the fixed ends of its dimension; below 0 or above 1 where it lies outside them."""
    dimension = DIMENSIONS[name]
    return (value - dimension.low) / (dimension.high - dimension.low)


def totals(values: Mapping[str, float]) -> dict[str, float | list[str]]:
    """The mean of each group and the total, of those groups that are complete.

    The published script takes a missing dimension as 0, which motion smoothness turns into -2.42; here a group with a
    missing dimension has no mean, and without both groups there is no total.

    Args:
      values: dimension -> measured value.

    Returns:
      ``quality``, ``semantic`` and ``total`` where they can be had; ``missing`` and ``outside``: names of dimensions
      that were not measured, and of those whose value is not between its fixed ends.

    Raises:
      UserError: an unknown dimension.
    """
    for name in values:
        if name not in DIMENSIONS:
            raise UserError(f"unknown dimension {name!r}{near_matches(name, DIMENSIONS)}")
    found: dict[str, float | list[str]] = {}
    for group in GROUPS:
        names = [name for name, dimension in DIMENSIONS.items() if dimension.group == group]
        if all(name in values for name in names):
            weights = {name: DIMENSIONS[name].weight for name in names}
            weighted = sum(weight * normalised(name, values[name]) for name, weight in weights.items())
            found[group] = weighted / sum(weights.values())
    if set(found) == set(GROUPS):
        found["total"] = sum(weight * found[group] for group, weight in GROUPS.items()) / sum(GROUPS.values())
    found["missing"] = [name for name in DIMENSIONS if name not in values]
    found["outside"] = [name for name, value in values.items() if not 0 <= normalised(name, value) <= 1]
    return found
