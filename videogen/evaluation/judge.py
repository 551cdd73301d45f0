"""Reads colour, form, direction and number of moving shapes from pixels alone.

The judge of text-to-video on the ``shapes`` source: it never sees the caption it is compared with. It is
exact on rendered clips and stays right on blurred or noisy ones: colours come from the hue of whole regions,
forms from matching the soft masks of all frames against the renderer's own forms, directions from the track of
the centre.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from videogen.data.shapes_source import COLOURS, DIRECTIONS, FORMS, RADII, form_mask, parse, radius_of
from videogen.errors import UserError

ATTRIBUTES = ("colour", "form", "direction", "count")
STILL = "still"

_SEEN = 0.35
"""Share of a colour's full saturation from which a pixel counts as that colour."""
_SMALLEST_AREA = 0.011
"""Smaller regions are noise, in units of the shorter side squared: 40 % of the smallest triangle."""
_LEG, _WHOLE = 0.05, 0.08
"""Least displacement of a leg and of a whole path, in units of the shorter side; rendered: .1 and .2."""
_BLURS = (0.0, 0.7, 1.3)
_STRETCHES = (0.92, 1.0, 1.08)
_MATCHED_FRAMES = 9

_NAMES = tuple(COLOURS)
_CHROMA = np.array([np.subtract(c, np.mean(c)) for c in COLOURS.values()], np.float32)
_LENGTH = np.linalg.norm(_CHROMA, axis=1)
_HUE = _CHROMA / _LENGTH[:, None]
_FRAME_ONLY = np.zeros((3, 3, 3), bool)
_FRAME_ONLY[1] = True


@dataclasses.dataclass(frozen=True)
class ShapeReading:
    """One shape.

    Attributes:
      colour: one of the renderer's colours.
      form: one of its forms.
      direction: as in a caption, 'left' or 'left then up', or else 'still'.
      size: the nearest of its sizes.
      area: in units of the shorter side squared.
    """

    colour: str
    form: str
    direction: str
    size: str
    area: float


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is seen in a clip: how many shapes, and one reading per colour, largest first."""

    count: int
    shapes: tuple[ShapeReading, ...]

    def describe(self) -> str:
        """The reading in words, e.g. '1 shape: large red circle, left'."""
        if not self.shapes:
            return "no shape"
        words = (f"{s.size} {s.colour} {s.form}, {s.direction}" for s in self.shapes)
        return f"{self.count} shape{'s' * (self.count != 1)}: {'; '.join(words)}"


def judge(video: UInt8[np.ndarray, "time height width 3"]) -> Reading:
    """Reads a clip."""
    unit = min(video.shape[1:3])
    chroma = video.astype(np.float32)
    chroma -= chroma.mean(-1, keepdims=True)
    chroma -= np.median(chroma.reshape(-1, 3), axis=0)
    along = chroma @ _HUE.T
    nearest = along.argmax(-1)
    count, found = 0, []
    for k, colour in enumerate(_NAMES):
        coverage = np.where(nearest == k, along[..., k] / _LENGTH[k], 0).clip(0, 1)
        region, regions = _regions(coverage > _SEEN, _SMALLEST_AREA * unit**2)
        number = int(np.median(regions) + 0.5)
        if number:
            count += number
            found.append((colour, coverage * region))
    shapes = [_read_shape(colour, coverage, unit, count) for colour, coverage in found]
    return Reading(count, tuple(sorted(shapes, key=lambda s: -s.area)))


def fidelity(
    videos: UInt8[np.ndarray, "batch time height width 3"], wanted: Sequence[str | Mapping[str, Any]]
) -> dict[str, float]:
    """Shares in [0, 1] of clips whose colour, form, direction and number of shapes are as wanted.

    With one wanted shape the largest seen is compared; with several, each is compared with the seen shape of
    its colour, or with the largest left over.

    Args:
      videos: one clip per prompt.
      wanted: captions of the shapes source, or their parsed attributes.

    Raises:
      UserError: a caption outside the grammar, or not one per clip.
    """
    if len(videos) != len(wanted) or not len(videos):
        raise UserError(f"fidelity needs one caption per clip, got {len(videos)} clips and {len(wanted)} captions")
    scores = []
    for video, entry in zip(videos, wanted, strict=True):
        attributes = parse(str(entry)) if isinstance(entry, str) else entry
        scores.append(_compare(judge(video), attributes["shapes"]))
    return dict(zip(ATTRIBUTES, (float(share) for share in np.mean(scores, axis=0)), strict=True))


def _compare(reading: Reading, wanted: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Scores in [0, 1] of one clip, in the order of ATTRIBUTES."""
    left = list(reading.shapes)
    hits = []
    # With a single prompt colour is a question, not a key: the largest shape must answer it.
    keyed = sorted(wanted, key=lambda w: w["colour"] not in {s.colour for s in left})
    for want in keyed:
        if not left:
            hits.append((False, False, False))
            continue
        same = [s for s in left if s.colour == want["colour"]] if len(wanted) > 1 else []
        seen = (same or left)[0]
        left.remove(seen)
        direction = " then ".join(want["directions"])
        hits.append((seen.colour == want["colour"], seen.form == want["form"], seen.direction == direction))
    return (*np.mean(hits, axis=0), float(reading.count == len(wanted)))


def _regions(
    mask: Bool[np.ndarray, "time height width"], smallest: float
) -> tuple[Bool[np.ndarray, "time height width"], list[int]]:
    """Regions of at least ``smallest`` pixels, a rim for soft edges added, and their number per frame."""
    labels, found = ndimage.label(mask, structure=_FRAME_ONLY)
    large = np.bincount(labels.ravel(), minlength=found + 1) >= smallest
    large[0] = False
    region = large[labels]
    numbers = [int(large[np.unique(frame)].sum()) for frame in labels]
    return ndimage.binary_dilation(region, _FRAME_ONLY, iterations=2) if found else region, numbers


def _read_shape(colour: str, coverage: Float[np.ndarray, "time height width"], unit: int, count: int) -> ShapeReading:
    areas = coverage.sum((1, 2))
    seen = np.flatnonzero(areas)
    coverage, areas = coverage[seen], areas[seen]
    rows, columns = (np.arange(n, dtype=np.float32) + 0.5 for n in coverage.shape[1:])
    centres = np.stack([coverage.sum(2) @ rows, coverage.sum(1) @ columns], 1) / areas[:, None] / unit
    area = float(np.median(areas)) / unit**2
    form, radius = _read_form(coverage, centres, area, unit)
    size = min(RADII, key=lambda name: abs(np.log(radius / radius_of(name, count))))
    return ShapeReading(colour, form, _read_direction(centres), size, area)


def _read_direction(centres: Float[np.ndarray, "time 2"]) -> str:
    """The direction of a track, or of its two halves where they differ."""
    middle = len(centres) // 2
    legs = [_displacement(centres[: middle + 1]), _displacement(centres[middle:])]
    ways = [_way(leg, _LEG) for leg in legs]
    if STILL not in ways and ways[0] != ways[1]:
        return " then ".join(ways)
    return _way(_displacement(centres), _WHOLE)


def _displacement(track: Float[np.ndarray, "time 2"]) -> Float[np.ndarray, "2"]:
    """First to last point of the straight line through a track (least squares)."""
    if len(track) < 2:
        return np.zeros(2, np.float32)
    time = np.arange(len(track)) - (len(track) - 1) / 2
    return time @ track / (time @ time) * (len(track) - 1)


def _way(displacement: Float[np.ndarray, "2"], least: float) -> str:
    if np.abs(displacement).max() < least:
        return STILL
    return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], displacement)))


def _unit_form(form: str) -> tuple[float, Float[np.ndarray, "2"]]:
    """Area and centroid of a form of radius 1."""
    side = 256
    mask = form_mask(form, np.full((1, 2), 0.5), 0.4, side, side)[0]
    rows = (np.arange(side) + 0.5) / side - 0.5
    centroid = np.array([mask.sum(1) @ rows, mask.sum(0) @ rows]) / mask.sum() / 0.4
    return float(mask.mean() / 0.4**2), centroid.astype(np.float32)


_UNIT_FORMS = {form: _unit_form(form) for form in FORMS}


def _read_form(
    coverage: Float[np.ndarray, "time height width"],
    centres: Float[np.ndarray, "time 2"],
    area: float,
    unit: int,
) -> tuple[str, float]:
    """The form, radius and blur whose rendering correlates best with the masks of all frames."""
    some = np.unique(np.linspace(0, len(coverage) - 1, _MATCHED_FRAMES).astype(int))
    side = int(2.8 * unit * np.sqrt(area / min(a for a, _ in _UNIT_FORMS.values()))) + 5
    corners = np.floor(centres[some] * unit - side / 2).astype(int)
    padded = np.pad(coverage[some], ((0, 0), (side, side), (side, side)))
    patches = np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(padded, corners + side, strict=True)])
    local = centres[some] * unit - corners
    best = (-1.0, FORMS[0], 0.0)
    for form, (unit_area, centroid) in _UNIT_FORMS.items():
        for stretch in _STRETCHES:
            radius = stretch * np.sqrt(area / unit_area)
            template = form_mask(form, (local - centroid * radius * unit) / side, radius * unit / side, side, side)
            for blur in _BLURS:
                soft = ndimage.gaussian_filter(template, (0, blur, blur)) if blur else template
                score = float((soft * patches).sum() / np.sqrt((soft * soft).sum() * (patches * patches).sum()))
                best = max(best, (score, form, radius))
    return best[1], best[2]
