"""One vocabulary for all ids of a stream: disjoint named ranges, one behind the other."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from videogen.errors import UserError, near_matches


@dataclasses.dataclass(frozen=True)
class Range:
    """The ids of one kind.

    Attributes:
      name: of the range.
      start: its first id in the stream.
      levels: ids of each level; the levels have ranges of their own, one behind the other.
      words: names of the ids, of a range of markers.
    """

    name: str
    start: int
    levels: tuple[int, ...]
    words: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Ids of all levels."""
        return sum(self.levels)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first id of each level in the stream."""
        return tuple(self.start + sum(self.levels[:level]) for level in range(len(self.levels)))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Named ranges of ids, without gaps; ``Vocabulary.of(text=257, audio=(1024,) * 4, markers=("begin", "end"))``.

    The ids of a published language model are the first range (``text``), so that the model knows them; ranges behind it
    extend the vocabulary.

    Attributes:
      ranges: in the order of their ids.
    """

    ranges: tuple[Range, ...]

    @classmethod
    def of(cls, **ranges: int | Sequence[int] | Sequence[str]) -> Self:
        """A vocabulary of ranges in this order.

        Args:
          **ranges: the number of ids, the numbers of several levels, or the names of the ids.

        Raises:
          UserError: a range is empty, or two markers have one name.
        """
        made, start = [], 0
        for name, value in ranges.items():
            named = not isinstance(value, int) and len(value) > 0 and isinstance(value[0], str)
            levels = (len(value),) if named else (value,) if isinstance(value, int) else tuple(value)
            if not levels or min(levels) < 1:
                raise UserError(f"the range {name!r} of the vocabulary is empty: give the number of its ids")
            made.append(Range(name, start, levels, tuple(value) if named else ()))
            start += sum(levels)
        words = [word for found in made for word in found.words]
        if len(set(words)) < len(words):
            raise UserError(f"two markers of the vocabulary have one name: {', '.join(sorted(words))}")
        return cls(tuple(made))

    @property
    def size(self) -> int:
        """Ids of all ranges."""
        return sum(found.size for found in self.ranges)

    def __getitem__(self, name: str) -> Range:
        found = {own.name: own for own in self.ranges}
        if name not in found:
            raise UserError(f"the vocabulary has no range {name!r}{near_matches(name, found)}")
        return found[name]

    def word(self, name: str) -> int:
        """The id of a marker in the stream."""
        words = {word: found.start + i for found in self.ranges for i, word in enumerate(found.words)}
        if name not in words:
            raise UserError(f"the vocabulary has no marker {name!r}{near_matches(name, words)}")
        return words[name]

    def to_stream(self, name: str, ids: Int[Array, "... levels"]) -> Int[Array, "... levels"]:
        """Ids of a range, each of its level, as ids of the stream.

        Raises:
          UserError: another number of levels or, where values are known, an id that is none of its level.
        """
        found = self[name]
        if ids.shape[-1] != len(found.levels):
            raise UserError(f"ids of {name!r} have {len(found.levels)} levels, got {ids.shape[-1]}")
        if isinstance(ids, np.ndarray) and ids.size and ((ids < 0) | (ids >= np.array(found.levels))).any():
            raise UserError(f"ids of {name!r} are 0 to {[size - 1 for size in found.levels]} by level, got {ids.max()}")
        return ids + np.array(found.starts, np.int32)

    def from_stream(self, name: str, ids: Int[Array, "... levels"]) -> Int[Array, "... levels"]:
        """The inverse of ``to_stream``."""
        found = self[name]
        local = ids - np.array(found.starts, np.int32)
        if not isinstance(ids, jax.Array):
            self.to_stream(name, np.asarray(local))
        return local

    def place(self, number: int) -> tuple[str, int, int]:
        """Range, level and id there of an id of the stream.

        Raises:
          UserError: it is beyond the vocabulary.
        """
        for found in self.ranges:
            for level, (start, size) in enumerate(zip(found.starts, found.levels, strict=True)):
                if start <= number < start + size:
                    return found.name, level, int(number - start)
        raise UserError(f"the vocabulary has the ids 0 to {self.size - 1}, got {number}")

    def mask(self, name: str, level: int | None = None) -> Bool[np.ndarray, "ids"]:
        """Which ids of the stream are of a range, or of one of its levels."""
        found, ids = self[name], np.arange(self.size)
        start, size = (found.start, found.size) if level is None else (found.starts[level], found.levels[level])
        return (ids >= start) & (ids < start + size)


@dataclasses.dataclass(frozen=True)
class Bins:
    """A number in [0, ``extent``] as one of ``count`` ids: times and the sides of boxes (OmniVid).

    Attributes:
      count: ids, at least 2. The ends are the ids 0 and ``count`` - 1.
      extent: the largest number: the seconds of a clip, or 1 for places in a frame.
      nearest: the id of the nearest of ``count`` points (boxes); else the one below (times).
    """

    count: int
    extent: float = 1.0
    nearest: bool = False

    def encode(self, values: np.ndarray) -> Int[np.ndarray, "..."]:
        """Numbers, cut to the range, as ids."""
        scaled = np.clip(np.asarray(values, np.float64) / self.extent, 0, 1) * (self.count - 1)
        return (np.rint(scaled) if self.nearest else np.floor(scaled)).astype(np.int32)

    def decode(self, ids: Int[np.ndarray, "..."]) -> np.ndarray:
        """Ids as numbers, at most half a bin from those that were encoded."""
        middle = np.asarray(ids, np.float64) + (0.0 if self.nearest else 0.5)
        return np.minimum(middle / (self.count - 1), 1.0) * self.extent
