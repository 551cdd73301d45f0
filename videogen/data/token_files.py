"""The files of a token cache: what its ``meta.json`` says, and how arrays lie in its ``.bin`` files."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videogen.errors import UserError
from videogen.tokens import Layout, SegmentLayout

META = "meta.json"

FORMAT = 2
"""Of the caches that are written; those of format 1 hold one grid of codes in ``indices.bin``."""

BITS = "bits"
"""Eight values of 0 or 1 in a byte."""

DTYPES = (BITS, "|u1", "<u2", "<i4", "<f4")
MASKS = ("exists", "kept")

SPACES = ("raw", "normalised")
"""Of latents: as the networks of the tokenizer give them, or of mean 0 and variance 1."""

TOKENIZER = "tokenizer"
"""The directory in a cache of normalised latents with the tokenizer that has their statistics."""

PREFIX = "tokens/"
"""Of the names of a sample's arrays: ``tokens/SEGMENT``, ``tokens/SEGMENT/exists``, ``tokens/SEGMENT/kept``."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that every clip has; its file holds that of one clip after another.

    Attributes:
      file: its name.
      shape: of one clip.
      dtype: one of ``DTYPES``.
    """

    file: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def row(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of one clip as they are in the file."""
        return ((-(-math.prod(self.shape) // 8),), "|u1") if self.dtype == BITS else (self.shape, self.dtype)

    def pack(self, array: np.ndarray) -> bytes:
        """The array of a clip as bytes."""
        if self.dtype == BITS:
            return np.packbits(array.reshape(-1).astype(bool)).tobytes()
        return array.astype(self.dtype).tobytes()

    def unpack(self, row: np.ndarray) -> np.ndarray:
        """The array of a clip from its row in the file: bool of bits, int32 of codes, float32; always a copy."""
        if self.dtype == BITS:
            return np.unpackbits(row, count=math.prod(self.shape)).reshape(self.shape).astype(bool)
        return row.astype(np.float32 if self.dtype == "<f4" else np.int32)


def dtype_of(layout: SegmentLayout) -> str:
    """The smallest of ``DTYPES`` that holds the values of a segment."""
    if not layout.vocabulary:
        return "<f4"
    largest = max(layout.vocabulary)
    limits = {BITS: 2, "|u1": 2**8, "<u2": 2**16, "<i4": 2**31}
    return next(dtype for dtype, limit in limits.items() if largest <= limit)


def describe(layout: Layout, masks: Mapping[str, list[str]]) -> dict[str, Any]:
    """What ``meta.json`` says of the segments: ``{name: {sides, vocabulary, channels, dtype, masks}}``."""
    return {
        name: {
            "sides": [list(side) for side in segment.sides],
            "vocabulary": list(segment.vocabulary),
            "channels": segment.channels,
            "dtype": dtype_of(segment),
            "masks": masks[name],
        }
        for name, segment in layout.segments
    }


def layout_of(meta: Mapping[str, Any]) -> Layout:
    """The layout of the tokens of a cache."""

    def segment(said: Mapping[str, Any]) -> SegmentLayout:
        sides = tuple((str(name), length) for name, length in said["sides"])
        return SegmentLayout(sides, tuple(said["vocabulary"]), said["channels"])

    return Layout(tuple((name, segment(said)) for name, said in meta["segments"].items()))


def stored(meta: Mapping[str, Any]) -> dict[str, Stored]:
    """The arrays of a cache: those of segments by their names, masks as ``SEGMENT/exists`` and ``SEGMENT/kept``."""
    found = {}
    for name, segment in layout_of(meta).segments:
        said = meta["segments"][name]
        file = f"{said.get('file', name)}.bin"
        found[name] = Stored(file, (*segment.shape, segment.width), said["dtype"])
        for mask in said["masks"]:
            found[f"{name}/{mask}"] = Stored(f"{name}.{mask}.bin", segment.shape, BITS)
    return found


def read_meta(directory: str | os.PathLike) -> dict[str, Any]:
    """What a cache says about itself, in the present format.

    Raises:
      UserError: there is no complete cache, or a value that cannot be.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no directory {directory}; set data.source.path to a token cache")
    if not (directory / META).exists():
        raise UserError(f"{directory} is no complete token cache (no {META}); remove it and write it again")
    try:
        meta = json.loads((directory / META).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{directory / META} cannot be read; write the token cache again") from None
    if not isinstance(meta, dict):
        raise UserError(f"{directory} is no token cache: its {META} is no JSON object")
    found = meta.get("format", 1)
    if found not in (1, FORMAT) or isinstance(found, bool):
        raise UserError(f"{directory / META} has format {found!r}, and this videogen reads up to {FORMAT}"[:300])
    fields = _OLD_FIELDS if found == 1 else _FIELDS
    if missing := set(fields) - set(meta):
        raise UserError(f"{directory} is no token cache: its {META} has no {', '.join(sorted(missing))}")
    optional = {name: right for name, right in _OPTIONAL.items() if name in meta}
    for name, right in (fields | optional).items():
        if not right(meta[name]):
            raise UserError(f"{directory / META} has a wrong {name}: {meta[name]!r}; write the token cache again"[:300])
    if found == 1:
        if len(meta["vocabulary"]) != meta["grid"][-1]:
            raise UserError(f"{directory / META} has a wrong vocabulary; write the token cache again")
        sides = [list(side) for side in zip(("time", "height", "width"), meta["grid"], strict=False)]
        codes = {"sides": sides, "vocabulary": meta["vocabulary"], "channels": 0, "dtype": meta["dtype"]}
        meta["segments"] = {"video": {**codes, "masks": [], "file": "indices"}}
    return meta


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**62


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_whole, value))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _segments(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(re.fullmatch(r"[a-z][a-z0-9_]*", name) and _segment(said) for name, said in value.items())


def _segment(said: Any) -> bool:
    if not isinstance(said, dict) or not {"sides", "vocabulary", "channels", "dtype", "masks"} <= set(said):
        return False
    sides = said["sides"]
    pairs = isinstance(sides, list) and sides and all(isinstance(side, list) and len(side) == 2 for side in sides)
    if not pairs or not all(isinstance(name, str) and _whole(length) for name, length in sides):
        return False
    if not _wholes(said["vocabulary"]) or said["channels"] == 0 and not said["vocabulary"]:
        return False
    right = _whole(said["channels"]) and not said["vocabulary"] or said["channels"] == 0
    return right and said["dtype"] in DTYPES and said["masks"] in ([], ["exists"], ["kept"], ["exists", "kept"])


def _positive(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf)


_COMMON = {
    "tokenizer_hash": lambda value: isinstance(value, str),
    **dict.fromkeys(("count", "frames", "height", "width"), _whole),
}
_FIELDS = _COMMON | {"segments": _segments, "space": lambda value: value in SPACES}
_OLD_FIELDS = _COMMON | {
    "vocabulary": lambda value: _wholes(value) and bool(value),
    "grid": lambda value: _wholes(value) and len(value) == 4,
    "dtype": lambda value: value in DTYPES[2:4],
}
_OPTIONAL = {"classes": _texts, "fps": _positive, "made_from": lambda value: isinstance(value, dict)}
"""What a ``meta.json`` says, and what that must be."""


def wrong_values(values: np.ndarray, layout: SegmentLayout) -> str:
    """What is wrong with the values of a clip: codes beyond the vocabulary, floats that are not finite; else empty."""
    if not layout.vocabulary:
        return "" if np.isfinite(values).all() else "values that are not finite"
    beyond = (values < 0).any() or (values >= np.array(layout.vocabulary)).any()
    return f"codes beyond the vocabulary {list(layout.vocabulary)}" if beyond else ""
