"""Label maps of clips, and what in them is one thing in time: maps of regions, links between frames, a source with both
(TrajViT; Zheng et al., 2025)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy import ndimage

from videogen.building import check_value
from videogen.data.around import SourceAround
from videogen.data.source import Source
from videogen.errors import UserError, near_matches, shown
from videogen.ranges import Count

SMALLEST = 16
"""A region of fewer pixels joins a neighbour."""

LEAST_OVERLAP = 0.5
"""Intersection over union from which two regions of neighbouring frames are one thing."""


def stand_in_segments(
    frames: UInt8[np.ndarray, "time height width 3"], regions: int = 8, rounds: int = 10
) -> Int[np.ndarray, "time height width"]:
    """A label map of every frame, from 1, where no segmentation network is at hand.

    Colours and places of a frame are clustered by k-means whose first centres lie on a grid; connected parts are
    regions of their own, and those of fewer than ``SMALLEST`` pixels join the region that surrounds them most.
    """
    time, height, width = frames.shape[:3]
    y, x = np.mgrid[:height, :width] / max(height, width)
    out = np.zeros((time, height, width), np.int32)
    for t, frame in enumerate(frames):
        points = np.concatenate([frame / 64.0, np.stack([y, x], -1)], -1).reshape(-1, 5)
        centres = points[np.linspace(0, len(points) - 1, regions).astype(int)].copy()
        for _ in range(rounds):
            label = ((points[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
            for k in range(regions):
                if (label == k).any():
                    centres[k] = points[label == k].mean(0)
        out[t] = _connected(label.reshape(height, width))
    return out


def _connected(label: Int[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
    parts, count = np.zeros(label.shape, np.int32), 0
    for k in np.unique(label):
        found, number = ndimage.label(label == k)
        parts[found > 0] = found[found > 0] + count
        count += number
    for k in range(1, count + 1):
        region = parts == k
        if 0 < region.sum() < SMALLEST:
            around = parts[ndimage.binary_dilation(region) & ~region]
            if len(around):
                parts[region] = np.bincount(around).argmax()
    return np.unique(parts, return_inverse=True)[1].reshape(label.shape).astype(np.int32) + 1


def linked(labels: Int[np.ndarray, "time height width"], most: int) -> Int[np.ndarray, "things time"]:
    """The label of every thing in every frame, 0 where it is not there; the largest ``most`` things, by area.

    A region goes on in the next frame where the intersection over union with one there, moved by the difference of
    their middles, is largest and at least ``LEAST_OVERLAP``.
    """
    time = len(labels)
    rows: list[np.ndarray] = []
    current: dict[int, int] = {}
    for t in range(time):
        now: dict[int, int] = {}
        here = {int(k): labels[t] == k for k in np.unique(labels[t]) if k > 0}
        pairs = []
        for k, region in here.items():
            for j, row in current.items():
                pairs.append((_moved_overlap(labels[t - 1] == j, region), k, j, row))
        taken: set[int] = set()
        for overlap, k, j, row in sorted(pairs, key=lambda p: -p[0]):
            if overlap >= LEAST_OVERLAP and k not in now and j not in taken:
                now[k] = row
                taken.add(j)
                rows[row][t] = k
        for k in here:
            if k not in now:
                now[k] = len(rows)
                rows.append(np.zeros(time, np.int32))
                rows[-1][t] = k
        current = now
    area = [sum(int((labels[t] == row[t]).sum()) for t in range(time) if row[t]) for row in rows]
    order = np.argsort(-np.array(area), kind="stable")[:most]
    table = np.zeros((most, time), np.int32)
    table[: len(order)] = np.array(rows)[np.sort(order)]
    return table


def _moved_overlap(before: Bool[np.ndarray, "height width"], now: Bool[np.ndarray, "height width"]) -> float:
    """Intersection over union, where ``before`` is moved so that both have one middle."""
    a, b = np.argwhere(before), np.argwhere(now)
    moved = a + np.round(b.mean(0) - a.mean(0)).astype(int)
    inside = ((moved >= 0) & (moved < before.shape)).all(1)
    shared = now[tuple(moved[inside].T)].sum()
    return float(shared) / (len(a) + len(b) - shared)


SEGMENTS, LINKS = "segments", "links"
"""Fields: a label of every pixel, from 1, and the label of every thing in every frame, 0 where it is not there."""

THINGS = 16
"""Rows of ``links`` unless told otherwise."""

RULES = ("own", "stand_in")
"""Where label maps come from: the source itself, which has drawn its clips, or ``stand_in_segments``."""


class WithSegments(SourceAround):
    """The samples of a source with ``segments`` ``[frames, height, width]`` and ``links`` ``[things, frames]``.

    Args:
      source: of clips.
      rule: one of ``RULES``, or a callable from frames ``uint8 [time, height, width, 3]`` to their label maps, such as
        a segmentation network of your own.
      things: rows of ``links``; of more the largest are kept, of fewer the last rows are 0.

    Raises:
      UserError: an unknown rule, or the source knows no label maps of its own.
    """

    def __init__(self, source: Source, rule: str | Callable[[np.ndarray], np.ndarray], things: int = THINGS):
        super().__init__(source)
        if not callable(rule) and (not isinstance(rule, str) or rule not in RULES):
            raise UserError(f"unknown data.source.segments {shown(rule)}{near_matches(str(rule), RULES)}")
        check_value("data.source.things", Count, things)
        self._rule, self._things = rule, things

    def added(self):
        clip = self.clip
        return {
            SEGMENTS: ((clip.frames, clip.height, clip.width), np.int16),
            LINKS: ((self._things, clip.frames), np.int16),
        }

    def further(self, sample):
        labels = self._labels(sample)
        return {SEGMENTS: labels.astype(np.int16), LINKS: linked(labels, self._things).astype(np.int16)}

    def _labels(self, sample: dict[str, Any]) -> Int[np.ndarray, "time height width"]:
        if not isinstance(self._rule, str):
            return np.asarray(self._rule(sample["video"]))
        if self._rule == RULES[1]:
            return stand_in_segments(sample["video"])
        labels = self.source.segments(sample)
        if labels is None:
            raise UserError("this source has no label maps of its own; set data.source.segments=stand_in")
        return labels
