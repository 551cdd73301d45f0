"""What a stream is made of, as data: segments of ids and of floats, markers, and the order of both in a task."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax.numpy as jnp
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from videogen.errors import UserError, near_matches, shown
from videogen.tokens import Segment, SegmentLayout


@dataclasses.dataclass(frozen=True)
class Ids:
    """How a segment of ids becomes a part of a stream.

    Attributes:
      range: of the vocabulary.
      places: tokens of a clip; of texts the most that there may be.
      levels: ids of each token; they stand level by level, all tokens of the first level first (VideoPoet, 2.3).
      text: its length varies: a marker ends it, and unconditional examples have none.
    """

    range: str
    places: int
    levels: int = 1
    text: bool = False

    @property
    def length(self) -> int:
        """Slots of a clip in a stream."""
        return self.places * self.levels

    @classmethod
    def of(cls, name: str, layout: SegmentLayout) -> Self:
        """Of tokens with this layout; the range of the vocabulary has their name."""
        return cls(name, layout.tokens, len(layout.vocabulary))

    @staticmethod
    def flat(values: Int[Array, "batch *sides levels"]) -> Int[Array, "batch slots"]:
        """The ids of tokens in the order of a stream."""
        values = values.reshape(len(values), -1, values.shape[-1])
        return jnp.swapaxes(values, 1, 2).reshape(len(values), -1)

    def restored(self, flat: Int[Array, "batch slots"]) -> Int[Array, "batch places levels"]:
        """The inverse of ``flat``, but for the sides."""
        return jnp.swapaxes(flat.reshape(-1, self.levels, self.places), 1, 2)


@dataclasses.dataclass(frozen=True)
class Floats:
    """How a segment of float tokens becomes a part of a stream: token by token, frame after frame.

    Attributes:
      frames: latent frames of a clip: the length of the side ``time``; 1 where there is none.
      per_frame: tokens of a frame.
      channels: of a token.
      together: the tokens of a clip have one position in a row: their places are in their vectors.
    """

    frames: int
    per_frame: int
    channels: int
    together: bool = False

    @property
    def length(self) -> int:
        """Slots of a clip in a stream."""
        return self.frames * self.per_frame

    @classmethod
    def of(cls, layout: SegmentLayout) -> Self:
        """Of tokens with this layout."""
        frames = layout.length("time")
        return cls(frames, layout.tokens // frames, layout.channels)

    @staticmethod
    def flat(segment: Segment) -> Array:
        """The tokens of every clip, one after another."""
        return segment.values.reshape(len(segment.values), segment.layout.tokens, -1)


Kinds = Mapping[str, Ids | Floats]
"""What the parts of a stream are, by the name of their segment."""


@dataclasses.dataclass(frozen=True)
class Marker:
    """One id that always stands there.

    Attributes:
      word: its name in the vocabulary.
      branch: as of ``Part``.
    """

    word: str
    branch: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """The tokens of a segment.

    Attributes:
      segment: its name among the ``Kinds``.
      output: it is learned and drawn; else it is given.
      queries: of an output of floats: learned queries that see each other predict all of its tokens in one pass, and
        what comes later sees the tokens themselves; else every token is predicted from the one before it.
      clip: which of the clips of a sample: those of a story are 0, 1, …; of texts, which of those of its name.
      branch: 0 of what all see; items of a branch, 1, 2, …, see those before every branch and each other, and stand at
        the positions of a first branch: several questions about one clip.
    """

    segment: str
    output: bool = False
    queries: bool = False
    clip: int = 0
    branch: int = 0


Item = Marker | Part
KEYS = ("marker", "input", "output")
KNOWN = {"marker": ("branch",), "input": ("branch", "clip"), "output": ("branch", "clip", "queries")}
"""Key of an item -> what else may be said of it."""


@dataclasses.dataclass(frozen=True)
class StreamLayout:
    """The order of a task.

    Attributes:
      items: markers and parts.
      prefix: all that stands before the first output sees each other both ways (prefix language model).
    """

    items: tuple[Item, ...]
    prefix: bool = False

    @classmethod
    def read(cls, section: Mapping[str, Any], kinds: Kinds) -> Self:
        """Reads ``{"sequence": ({"marker": "begin"}, {"input": "text"}, {"output": "video", "queries": True}), …}``.

        Raises:
          UserError: an entry is none of these, names a segment that there is not, or asks for what cannot be.
        """
        unknown = sorted(set(section) - {"sequence", "prefix", "share"})
        if unknown or not isinstance(section.get("sequence"), list | tuple):
            raise UserError(f"a layout has sequence, prefix and share, got {', '.join(map(str, section))}")
        layout = cls(tuple(_read(entry) for entry in section["sequence"]), bool(section.get("prefix", False)))
        layout.check(kinds)
        return layout

    @property
    def clips(self) -> int:
        """Clips of a sample."""
        return 1 + max((item.clip for item in self.items if isinstance(item, Part)), default=0)

    @property
    def given(self) -> int:
        """How many items stand before the first output."""
        return next((i for i, item in enumerate(self.items) if isinstance(item, Part) and item.output), len(self.items))

    def count(self, segment: str) -> int:
        """How often a sample has a segment."""
        return sum(isinstance(item, Part) and item.segment == segment for item in self.items)

    @property
    def first_branch(self) -> Self:
        """The layout without its other branches."""
        return dataclasses.replace(self, items=tuple(item for item in self.items if item.branch <= 1))

    def terminator(self, number: int) -> Marker | None:
        """The marker that ends the part with this number; ``None`` where none follows it."""
        following = self.items[number + 1] if number + 1 < len(self.items) else None
        return following if isinstance(following, Marker) else None

    def learned(self, kinds: Kinds, number: int) -> bool:
        """Whether an item is predicted by what stands before it: outputs, and markers that end a text which is one."""
        item, before = self.items[number], self.items[number - 1] if number else None
        if isinstance(item, Part):
            return item.output and not item.queries
        return isinstance(before, Part) and before.output and _is_text(kinds[before.segment])

    def seen_later(self, number: int) -> bool:
        """Whether an output comes after the item with this number."""
        return any(isinstance(item, Part) and item.output for item in self.items[number + 1 :])

    def outputs(self, kinds: Kinds, of: type) -> bool:
        """Whether something of a kind, ``Ids`` or ``Floats``, is drawn."""
        parts = (item for item in self.items if isinstance(item, Part))
        return any(item.output and isinstance(kinds[item.segment], of) for item in parts)

    def check(self, kinds: Kinds) -> None:
        """Refuses a layout that cannot be learned.

        Raises:
          UserError: names what is wrong and what to do.
        """
        if not self.items or not isinstance(self.items[0], Marker):
            raise UserError("a layout begins with a marker, which predicts what follows where a text is empty")
        branches = [item.branch for item in self.items]
        if branches != sorted(branches) or {*branches} - {*range(len({*branches}))}:
            raise UserError(f"a layout has items of no branch first, then those of branch 1, 2, …, got {branches}")
        seen = set()
        for number, item in enumerate(self.items):
            if isinstance(item, Marker):
                continue
            if item.segment not in kinds:
                raise UserError(f"a layout names the segment {item.segment!r}{near_matches(item.segment, kinds)}")
            if (item.segment, item.clip) in seen:
                raise UserError(
                    f"a layout has {item.segment!r} of clip {item.clip} twice; another clip has another number"
                )
            seen.add((item.segment, item.clip))
            kind = kinds[item.segment]
            if item.queries and not (item.output and isinstance(kind, Floats)):
                raise UserError(f"queries predict floats that are drawn, and {item.segment!r} is none of these")
            if _is_text(kind) and item.output and self.terminator(number) is None:
                raise UserError(f"the text {item.segment!r} is drawn until a marker: put one behind it")
            if item.output and item.branch > self.items[number - 1].branch:
                raise UserError(f"branch {item.branch} begins with an output: put what it answers before it")
        if self.given == len(self.items):
            raise UserError("a layout without an output has nothing to learn")


def _is_text(kind: Ids | Floats) -> bool:
    return isinstance(kind, Ids) and kind.text


def _read(entry: Mapping[str, Any]) -> Item:
    """One entry of a layout."""
    entry = {key: entry[key] for key in entry} if isinstance(entry, Mapping | ConfigDict) else {}
    named = [key for key in KEYS if key in entry]
    if len(named) != 1:
        raise UserError(f"an item of a layout has one of the keys {', '.join(KEYS)}, got {shown(entry)}")
    name = entry.pop(named[0])
    known = KNOWN[named[0]]
    for key in entry:
        if key not in known:
            raise UserError(f"an item of a layout with {named[0]!r} has no {key!r}{near_matches(key, known)}")
    if named[0] == "marker":
        return Marker(name, int(entry.get("branch", 0)))
    numbers = (int(entry.get(key, 0)) for key in ("clip", "branch"))
    return Part(name, named[0] == "output", bool(entry.get("queries", False)), *numbers)


def read_layouts(section: Mapping[str, Mapping[str, Any]], kinds: Kinds) -> dict[str, StreamLayout]:
    """Layouts by name, as ``StreamLayout.read`` takes each; one of no share is left out.

    Raises:
      UserError: there is none, or samples of the layouts have different numbers of clips.
    """
    layouts: dict[str, StreamLayout] = {}
    for name in section:
        layouts[name] = StreamLayout.read(section[name], kinds)
    if not layouts:
        raise UserError("config.layouts is empty: name a task and its sequence")
    return layouts


def named_segments(section: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The segments that layouts name, before these are checked."""
    entries = [entry for name in section for entry in section[name].get("sequence") or ()]
    return {entry[key] for entry in entries for key in KEYS[1:] if key in entry}


def most_clips(layouts: Sequence[StreamLayout]) -> int:
    """Clips of a sample; layouts of fewer leave the others out."""
    return max(layout.clips for layout in layouts)
