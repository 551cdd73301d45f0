"""Reads colour, form, size, direction and number of moving shapes and the background from pixels alone.

The judge of text-to-video on the ``shapes`` source: it never sees the caption it is compared with. It is
exact on rendered clips and stays right on blurred or noisy ones: colours come from the hue of whole regions,
forms from matching the soft masks of all frames against the renderer's own forms, directions from the track of
the centre, backgrounds from the pixels that no shape touches.

Attributes are read from the clip as a whole. Whether the shape is there in every frame, keeps its form and moves
evenly are questions of their own, which single frames answer.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from videogen.data.shapes_source import (
    COLOURS,
    DIRECTIONS,
    FORMS,
    RADII,
    TEXTURES,
    TONES,
    background,
    form_mask,
    parse,
    radius_of,
)
from videogen.errors import UserError

ATTRIBUTES = (
    *("colour", "form", "direction", "size", "presence", "steady_form", "steady_motion"),
    *("count", "background"),
)
"""What ``fidelity`` gives shares of: first those of single shapes, then those of the clip."""

STILL = "still"

_SEEN = 0.35
"""Share of a colour's full saturation from which a pixel counts as that colour."""
_SMALLEST_AREA = 0.011
"""Smaller regions are noise, in units of the shorter side squared: 40 % of the smallest triangle."""
_LEG, _WHOLE = 0.05, 0.08
"""Least displacement of a leg and of a whole path, in units of the shorter side; rendered: .1 and .2."""
_STRAYS = 0.04
"""How far the centre may be from where even motion has it, in units of the shorter side."""
_RIVAL = 1.05
"""Another form must fit a frame so many times better than that of the clip to count as a change of form."""
_GROWS = 1.25
"""Factor by which the area of a frame may differ from the clip's; sizes differ by 1.44 or more."""
_PATTERNED = 0.35
"""Share of a texture's full contrast from which it counts as that texture."""
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
      presence: share of the frames in which it is seen.
      steady_form: share of those in which it has the form and area of the whole clip.
      steady_motion: share of those in which it is where even motion along its path has it.
    """

    colour: str
    form: str
    direction: str
    size: str
    area: float
    presence: float
    steady_form: float
    steady_motion: float


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is seen in a clip.

    Attributes:
      count: how many shapes.
      shapes: one reading per colour, largest first.
      backgrounds: tone and texture of each frame.
    """

    count: int
    shapes: tuple[ShapeReading, ...]
    backgrounds: tuple[tuple[str, str], ...]

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
    count, found, touched = 0, [], along.max(-1) > 0.1 * _LENGTH.min()
    for k, colour in enumerate(_NAMES):
        coverage = np.where(nearest == k, along[..., k] / _LENGTH[k], 0).clip(0, 1)
        region, regions = _regions(coverage > _SEEN, _SMALLEST_AREA * unit**2)
        number = int(np.median(regions) + 0.5)
        touched |= region
        if number:
            count += number
            found.append((colour, coverage * region))
    shapes = [_read_shape(colour, coverage, unit, count) for colour, coverage in found]
    return Reading(count, tuple(sorted(shapes, key=lambda s: -s.area)), _read_backgrounds(video, touched))


def fidelity(
    videos: UInt8[np.ndarray, "batch time height width 3"], wanted: Sequence[str | Mapping[str, Any]]
) -> dict[str, float]:
    """Shares in [0, 1] of clips, by ``ATTRIBUTES``: whose colour, form, direction, size, count are as wanted, …

    … and means over the clips of the shares of frames in which the shape is there (``presence``), keeps its form and
    area (``steady_form``), is where even motion has it (``steady_motion``), and the background is as wanted. With one
    wanted shape the largest seen is compared; with several, each is compared with the seen shape of its colour, or
    with the largest left over. A still has no direction and no motion.

    Args:
      videos: one clip per prompt.
      wanted: captions of the shapes source, or their parsed attributes, of which any may be left out: they are not
        judged then.

    Raises:
      UserError: a caption outside the grammar, or not one per clip.
    """
    if len(videos) != len(wanted) or not len(videos):
        raise UserError(f"fidelity needs one caption per clip, got {len(videos)} clips and {len(wanted)} captions")
    scores = []
    for video, entry in zip(videos, wanted, strict=True):
        attributes = parse(str(entry)) if isinstance(entry, str) else entry
        scores.append(_compare(judge(video), attributes, still=len(video) == 1))
    return {name: float(np.mean([score[name] for score in scores])) for name in ATTRIBUTES if name in scores[0]}


def caption_agreement(said: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """How texts agree with captions of the shapes source, as shares of all texts.

    Args:
      said: one text for each caption; one that the grammar does not read has nothing right.
      true: captions.

    Returns:
      ``grammar``: the texts that are captions; ``colour``, ``form``, ``size``, ``direction``, ``speed`` of the first
      shape, and ``background``: those that name it right.
    """
    names = ("grammar", "colour", "form", "size", "direction", "speed", "background")
    rows = []
    for text, caption in zip(said, true, strict=True):
        wanted = parse(caption)
        try:
            read = parse(text)
        except UserError:
            rows.append(dict.fromkeys(names, False))
            continue
        shapes = read["shapes"][0], wanted["shapes"][0]
        row = {name: shapes[0][name] == shapes[1][name] for name in ("colour", "form", "size", "speed")}
        row |= {"grammar": True, "direction": shapes[0]["directions"] == shapes[1]["directions"]}
        rows.append(row | {"background": all(read[name] == wanted[name] for name in ("tone", "texture"))})
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def _compare(reading: Reading, wanted: Mapping[str, Any], still: bool) -> dict[str, float]:
    """Scores in [0, 1] of one clip, of those ``ATTRIBUTES`` that are wanted."""
    left, shapes = list(reading.shapes), wanted["shapes"]
    scores = []
    # With a single prompt colour is a question, not a key: the largest shape must answer it.
    for want in sorted(shapes, key=lambda w: w["colour"] not in {s.colour for s in left}):
        same = [s for s in left if s.colour == want["colour"]] if len(shapes) > 1 else []
        seen = next(iter(same or left), None)
        if seen is not None:
            left.remove(seen)
        scores.append(_compare_shape(seen, want, still))
    means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    means["count"] = float(reading.count == len(shapes))
    if "tone" in wanted:
        means["background"] = float(np.mean([b == (wanted["tone"], wanted["texture"]) for b in reading.backgrounds]))
    return means


def _compare_shape(seen: ShapeReading | None, want: Mapping[str, Any], still: bool) -> dict[str, float]:
    """Scores of one shape; a shape that is not seen has none of what is wanted."""
    asked = {name: want[name] for name in ("colour", "form", "size") if name in want}
    if "directions" in want and not still:
        asked["direction"] = " then ".join(want["directions"])
    scores = {name: float(seen is not None and getattr(seen, name) == value) for name, value in asked.items()}
    for name in ("presence", "steady_form", *([] if still else ["steady_motion"])):
        scores[name] = 0.0 if seen is None else getattr(seen, name)
    return scores


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
    presence = len(seen) / len(areas)
    coverage, areas = coverage[seen], areas[seen]
    rows, columns = (np.arange(n, dtype=np.float32) + 0.5 for n in coverage.shape[1:])
    centres = np.stack([coverage.sum(2) @ rows, coverage.sum(1) @ columns], 1) / areas[:, None] / unit
    area = float(np.median(areas)) / unit**2
    form, radius, kept = _read_form(coverage, centres, area, unit)
    # Where colours are faded coverage is less than 1 throughout, which makes shapes no smaller.
    full = np.sqrt(np.quantile(coverage[coverage > 0.5 * coverage.max()], 0.8))
    size = min(RADII, key=lambda name: abs(np.log(radius / full / radius_of(name, count))))
    direction = _read_direction(centres)
    grown = np.abs(np.log(areas / np.median(areas))) > np.log(_GROWS)
    steady = _steady_motion(seen, centres, turns=" then " in direction)
    return ShapeReading(colour, form, direction, size, area, presence, float(np.mean(kept & ~grown)), steady)


def _steady_motion(times: Int[np.ndarray, "seen"], centres: Float[np.ndarray, "seen 2"], turns: bool) -> float:
    """Share of frames whose centre is near the straight line, at even speed, from the first to the last.

    Args:
      times: the frames in which the shape is seen.
      centres: where.
      turns: there are two lines, by way of the middle.
    """
    knots = [0, len(times) // 2, -1] if turns else [0, -1]
    ideal = np.stack([np.interp(times, times[knots], centres[knots, axis]) for axis in (0, 1)], axis=1)
    return float(np.mean(np.linalg.norm(centres - ideal, axis=1) <= _STRAYS))


def _read_backgrounds(
    video: UInt8[np.ndarray, "time height width 3"], touched: Bool[np.ndarray, "time height width"]
) -> tuple[tuple[str, str], ...]:
    """Tone and texture of each frame, from the pixels that no shape touches."""
    grey, free = video.mean(-1, dtype=np.float32), (~touched).astype(np.float32)
    count = np.maximum(free.sum((1, 2)), 1)
    patterns = _patterns(*grey.shape[1:])

    def mean(values: Float[np.ndarray, "... time height width"]) -> Float[np.ndarray, "... time 1 1"]:
        return ((values * free).sum((-2, -1)) / count)[..., None, None]

    tones = mean(grey)
    shapes = patterns[:, None] - mean(patterns[:, None])
    contrast = mean((grey - tones) * shapes) / np.maximum(mean(shapes**2), 1e-6)
    contrast = contrast[..., 0, 0]
    names = np.array(list(TONES))[np.abs(tones[:, 0] - np.array(list(TONES.values()))).argmin(-1)]
    # A plain background shows none of the patterns.
    textures = np.where(contrast.max(0) > _PATTERNED, contrast.argmax(0), len(_PATTERNS))
    return tuple((str(tone), (*_PATTERNS, "plain")[k]) for tone, k in zip(names, textures, strict=True))


_PATTERNS = tuple(texture for texture in TEXTURES if texture != "plain")


@functools.cache
def _patterns(height: int, width: int) -> Float[np.ndarray, "patterns height width"]:
    """The textures at full contrast on no tone, in grey levels."""
    plain = background({"tone": "grey", "texture": "plain"}, height, width)
    return np.stack([background({"tone": "grey", "texture": t}, height, width) - plain for t in _PATTERNS])


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
) -> tuple[str, float, Bool[np.ndarray, "time"]]:
    """The form, radius and blur whose rendering correlates best with the masks of all frames.

    Returns:
      Form and radius, and for each frame whether it shows that form and not another.
    """
    side = int(2.8 * unit * np.sqrt(area / min(a for a, _ in _UNIT_FORMS.values()))) + 5
    corners = np.floor(centres * unit - side / 2).astype(int)
    padded = np.pad(coverage, ((0, 0), (side, side), (side, side)))
    patches = np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(padded, corners + side, strict=True)])
    local, strength = centres * unit - corners, np.sqrt((patches * patches).sum((1, 2)))

    def scores(form: str, radius: float, blur: float, some: Int[np.ndarray, "some"]) -> Float[np.ndarray, "2 some"]:
        """Products of renderings and masks of some frames, and lengths of the renderings."""
        place = (local[some] - _UNIT_FORMS[form][1] * radius * unit) / side
        template = form_mask(form, place, radius * unit / side, side, side)
        soft = ndimage.gaussian_filter(template, (0, blur, blur)) if blur else template
        return np.stack([(soft * patches[some]).sum((1, 2)), np.sqrt((soft * soft).sum((1, 2)))])

    some = np.unique(np.linspace(0, len(coverage) - 1, _MATCHED_FRAMES).astype(int))
    best = (-1.0, FORMS[0], 0.0, 0.0, 0.0)
    for form, (unit_area, _) in _UNIT_FORMS.items():
        for stretch in _STRETCHES:
            radius = stretch * np.sqrt(area / unit_area)
            for blur in _BLURS:
                product, length = scores(form, radius, blur, some)
                score = float(product.sum() / np.sqrt((length**2).sum() * (strength[some] ** 2).sum()))
                best = max(best, (score, form, radius, stretch, blur))
    _, form, radius, stretch, blur = best
    fits = {}
    for name, (unit_area, _) in _UNIT_FORMS.items():
        product, length = scores(name, stretch * np.sqrt(area / unit_area), blur, np.arange(len(coverage)))
        fits[name] = product / (length * strength)
    return form, radius, np.max([*fits.values()], axis=0) < _RIVAL * fits[form]
