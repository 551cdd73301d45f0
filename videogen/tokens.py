"""Tokens of any kind: an ordered set of named segments of codes or floats, and their static layout.

A segment keeps its values in the shape of its named sides (time × height × width, query, time × query, …), so that a
side can still be sharded; it becomes a flat sequence only inside attention.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from videogen.errors import UserError
from videogen.shapes import TokenGrid

GRID = ("time", "height", "width")
"""Sides of a token that has a place in the picture."""


@dataclasses.dataclass(frozen=True)
class SegmentLayout:
    """The static shape of one segment.

    Attributes:
      sides: name and length of each side, in order: ``(("time", 3), ("height", 8), ("width", 8))``.
      vocabulary: codes of each level; empty for floats.
      channels: width of a float token; 0 for codes.
    """

    sides: tuple[tuple[str, int], ...]
    vocabulary: tuple[int, ...] = ()
    channels: int = 0

    def __post_init__(self):
        if bool(self.vocabulary) == bool(self.channels):
            raise UserError("a segment has a vocabulary (codes) or channels (floats), one of the two")

    @classmethod
    def on_grid(cls, grid: TokenGrid, vocabulary: Sequence[int] = (), channels: int = 0) -> "SegmentLayout":
        """A token at each place of time × height × width."""
        return cls(tuple(zip(GRID, grid.shape, strict=True)), tuple(vocabulary), channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the sides."""
        return tuple(length for _, length in self.sides)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Numbers at each token: levels of a code, or channels."""
        return len(self.vocabulary) or self.channels

    @property
    def bits(self) -> float:
        """Bits of a token when all codes are equally likely; infinite for floats."""
        return sum(map(math.log2, self.vocabulary)) if self.vocabulary else math.inf

    def length(self, side: str) -> int:
        """Length of a side; 1 where the segment has none of that name."""
        return dict(self.sides).get(side, 1)

    def with_length(self, side: str, length: int) -> "SegmentLayout":
        """The same with another length of one side."""
        if side not in dict(self.sides):
            raise UserError(f"the sides of this segment are {', '.join(dict(self.sides))}; it has no {side!r}")
        sides = tuple((name, length if name == side else old) for name, old in self.sides)
        return dataclasses.replace(self, sides=sides)

    @property
    def grid(self) -> TokenGrid:
        """The sides as time × height × width: one that is absent has length 1, all other sides make up the width."""
        time, height = self.length("time"), self.length("height")
        return TokenGrid(time, height, self.tokens // (time * height), len(self.vocabulary))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
    """The tokens of one kind of a batch.

    Attributes:
      values: int32 codes ``[batch, *sides, levels]``, or floats ``[batch, *sides, channels]``.
      layout: the static shape.
      exists: which tokens are no padding; padding is in no attention, loss or statistic. ``None``: all exist.
      kept: which tokens the decoder sees; a dropped token counts in the losses of the quantizer only. ``None``: all.
      places: seconds, row and column of every token, rows and columns in [0, 1]; ``None`` where it has none.
    """

    values: Int[Array, "batch ..."] | Float[Array, "batch ..."]
    layout: SegmentLayout = dataclasses.field(metadata={"static": True})
    exists: Bool[Array, "batch ..."] | None = None
    kept: Bool[Array, "batch ..."] | None = None
    places: Float[Array, "... 3"] | None = None

    @property
    def seen(self) -> Bool[Array, "batch ..."] | None:
        """Tokens that exist and are kept; ``None`` means all."""
        masks = [mask for mask in (self.exists, self.kept) if mask is not None]
        return masks[0] & masks[-1] if masks else None

    def followed_by_none(self, layout: "Layout") -> "Tokens":
        """The first tokens of a row as the one segment of ``layout``, whose others are not kept."""
        (name, whole), *_ = layout.segments
        missing = whole.tokens - self.layout.tokens
        kept = jnp.ones(self.values.shape[:2], bool) if self.seen is None else self.seen
        values = jnp.pad(self.values, ((0, 0), (0, missing), (0, 0)))
        return Tokens.of(**{name: Segment(values, whole, kept=jnp.pad(kept, ((0, 0), (0, missing))))})

    def check(self) -> None:
        """Raises ``UserError`` where values or masks have another shape than the layout."""
        wanted = (len(self.values), *self.layout.shape)
        if self.values.shape != (*wanted, self.layout.width):
            raise UserError(f"tokens are {[*wanted, self.layout.width]}, got {list(self.values.shape)}")
        for name, mask in (("exists", self.exists), ("kept", self.kept)):
            if mask is not None and mask.shape != wanted:
                raise UserError(f"{name} is {list(wanted)}, got {list(mask.shape)}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Named segments in a fixed order; ``tokens["video"]`` is one of them.

    Attributes:
      segments: one after another.
      names: theirs.
    """

    segments: tuple[Segment, ...]
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, **segments: Segment) -> "Tokens":
        """Tokens of these segments, in this order."""
        return cls(tuple(segments.values()), tuple(segments))

    @classmethod
    def single(cls, values: Array, layout: "Layout", **masks: Any) -> "Tokens":
        """Tokens of the one segment of a layout, from its values in any shape of the same order."""
        (name, segment), *others = layout.segments
        if others:
            raise UserError(f"one segment of tokens is expected here, got {', '.join(layout.names)}")
        return cls((Segment(values.reshape(-1, *segment.shape, segment.width), segment, **masks),), (name,))

    def __getitem__(self, name: str) -> Segment:
        if name not in self.names:
            raise UserError(f"there is no segment {name!r}, only {', '.join(self.names)}")
        return self.segments[self.names.index(name)]

    def items(self) -> Iterator[tuple[str, Segment]]:
        """(name, segment) in order."""
        return zip(self.names, self.segments, strict=True)

    @property
    def only(self) -> Segment:
        """The one segment there is; raises ``UserError`` where there are several."""
        if len(self.segments) != 1:
            raise UserError(f"one segment of tokens is expected here, got {', '.join(self.names)}")
        return self.segments[0]

    @property
    def flat(self) -> Shaped[Array, "batch tokens width"]:
        """The values of all segments, one after another; they must be of one width."""
        return jnp.concatenate([s.values.reshape(len(s.values), s.layout.tokens, -1) for s in self.segments], axis=1)

    @classmethod
    def from_flat(cls, flat: Shaped[Array, "batch tokens width"], layout: "Layout") -> "Tokens":
        """Tokens whose values one after another are these; the inverse of ``flat``."""
        ends = np.cumsum([segment.tokens for _, segment in layout.segments])[:-1]
        parts = zip(layout.segments, jnp.split(flat, ends, axis=1), strict=True)
        return cls.of(**{name: Segment(part.reshape(len(part), *s.shape, -1), s) for (name, s), part in parts})

    @property
    def kept(self) -> Bool[Array, "batch tokens"]:
        """Which tokens exist and are kept, of all segments one after another."""
        seen = (jnp.ones(s.values.shape[:-1], bool) if s.seen is None else s.seen for s in self.segments)
        return jnp.concatenate([mask.reshape(len(mask), -1) for mask in seen], axis=1)

    def whole_segments(self) -> Bool[Array, "batch segments"] | None:
        """Which segments of each example are there; ``None``: all. It is for tokenizers that decode whole first ones.

        Raises:
          UserError: a segment is there in part, or without one before it; this is looked at where masks have values,
            not while a program is traced.
        """
        if all(segment.seen is None for segment in self.segments):
            return None
        batch = len(self.segments[0].values)
        rows = [jnp.ones((batch, 1), bool) if s.seen is None else s.seen.reshape(batch, -1) for s in self.segments]
        every, some = (jnp.stack([of(row, axis=-1) for row in rows], axis=-1) for of in (jnp.all, jnp.any))
        if isinstance(every, jax.core.Tracer):
            return every
        if in_part := [name for name, part in zip(self.names, (every != some).any(axis=0), strict=True) if part]:
            raise UserError(f"{in_part[0]} is there in part: it decodes as a whole or not at all")
        if not every[:, 0].all() or (every[:, 1:] > every[:, :-1]).any():
            raise UserError(f"only the first of {', '.join(self.names)} decode, and an earlier one is left out")
        return every

    @property
    def layout(self) -> "Layout":
        """The layouts of all segments."""
        return Layout(tuple((name, segment.layout) for name, segment in self.items()))

    def replace(self, **segments: Segment) -> "Tokens":
        """The same with other segments under names that are there."""
        for name in segments:
            self[name]
        return Tokens(tuple(segments.get(name, segment) for name, segment in self.items()), self.names)

    def bits(self) -> Float[Array, "batch"]:
        """Nominal bits of each example: those of the tokens that exist and are kept."""
        total = 0.0
        for segment in self.segments:
            seen = jnp.ones((len(segment.values), 1)) * segment.layout.tokens
            if segment.seen is not None:
                seen = segment.seen.reshape(len(segment.values), -1)
            total = total + seen.sum(-1) * segment.layout.bits
        return total


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static shape of ``Tokens``: the layout of every segment by its name, in order."""

    segments: tuple[tuple[str, SegmentLayout], ...]

    @classmethod
    def of(cls, **segments: SegmentLayout) -> "Layout":
        """A layout of these segments, in this order."""
        return cls(tuple(segments.items()))

    def __getitem__(self, name: str) -> SegmentLayout:
        return dict(self.segments)[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the segments, in order."""
        return tuple(name for name, _ in self.segments)

    @property
    def only(self) -> SegmentLayout:
        """The one segment there is; raises ``UserError`` where there are several."""
        if len(self.segments) != 1:
            raise UserError(f"one segment of tokens is expected here, got {', '.join(self.names)}")
        return self.segments[0][1]

    def with_time(self, time: int) -> "Layout":
        """The same with so many latent frames; segments without a side ``time`` stay as they are."""
        timed = ((name, dict(segment.sides), segment) for name, segment in self.segments)
        return Layout(tuple((name, s.with_length("time", time) if "time" in sides else s) for name, sides, s in timed))

    @property
    def offsets(self) -> dict[str, int]:
        """What to add to the ids of each segment, of one level, so that no two segments share one; by its name."""
        sizes = [sum(segment.vocabulary) for _, segment in self.segments]
        return dict(zip(self.names, itertools.accumulate(sizes, initial=0), strict=False))

    @property
    def tokens(self) -> int:
        """Number of tokens of all segments."""
        return sum(layout.tokens for _, layout in self.segments)

    @property
    def bits(self) -> float:
        """Bits of all tokens when all codes are equally likely; infinite for floats."""
        return sum(layout.tokens * layout.bits for _, layout in self.segments)
