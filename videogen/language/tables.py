"""Layouts as static tables: a row of slots with all that is known of each before there are tokens."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from videogen.language.layouts import Floats, Ids, Kinds, Marker, Part, StreamLayout
from videogen.language.vocabulary import Vocabulary

MARKER = -1
"""The ``source`` of a slot with a fixed id; others are the number of their segment among the kinds."""
NOTHING = -2
"""The ``source`` of a slot that fills a table up."""
PREFIX_BLOCK = 1
"""The ``block`` of a bidirectional prefix."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The slots of layouts of one length group, one row for each layout.

    Attributes:
      source: the number of the segment among the kinds, ``MARKER`` or ``NOTHING``.
      fixed: the id of a marker.
      place: which id or token of its segment stands there, over all clips of a sample.
      token: which token of its clip, of floats.
      learned: whether the slot before predicts what stands there.
      query: a learned query, which predicts what is at ``place`` of its segment.
      branch: of which branch of its sample; 0: of none.
      block: slots of one positive number see each other both ways; 0: none do.
      allowed: which of ``sets`` a drawn id is taken from, where the slot is predicted and has an id.
      sets: of ids of the stream.
    """

    source: Int[np.ndarray, "layouts slots"]
    fixed: Int[np.ndarray, "layouts slots"]
    place: Int[np.ndarray, "layouts slots"]
    token: Int[np.ndarray, "layouts slots"]
    learned: Bool[np.ndarray, "layouts slots"]
    query: Bool[np.ndarray, "layouts slots"]
    branch: Int[np.ndarray, "layouts slots"]
    block: Int[np.ndarray, "layouts slots"]
    allowed: Int[np.ndarray, "layouts slots"]
    sets: Bool[np.ndarray, "sets ids"]

    @property
    def slots(self) -> int:
        """Slots of each row."""
        return self.source.shape[1]

    @property
    def lengths(self) -> Int[np.ndarray, "layouts"]:
        """Slots of each layout, texts at their longest."""
        return (self.source != NOTHING).sum(axis=1)


def compile_layouts(layouts: Sequence[StreamLayout], kinds: Kinds, vocabulary: Vocabulary) -> Table:
    """The table of layouts; shorter ones are filled up."""
    sets: dict[bytes, int] = {}
    rows = [_slots(layout, kinds, vocabulary, sets) for layout in layouts]
    longest, names = max(map(len, rows)), [field.name for field in dataclasses.fields(Table)][:-1]
    filler = dict(source=NOTHING, fixed=0, place=0, token=0, learned=False, query=False, branch=0, block=0, allowed=0)
    columns = {}
    for name in names:
        kind = bool if name in ("learned", "query") else np.int32
        columns[name] = np.array(
            [[{**filler, **s}[name] for s in row + [{}] * (longest - len(row))] for row in rows], kind
        )
    known = [np.frombuffer(value, bool) for value in sets] or [np.zeros(vocabulary.size, bool)]
    return Table(**columns, sets=np.stack(known))


def block_of(number: int) -> int:
    """The ``block`` of the queries of the item with this number."""
    return PREFIX_BLOCK + 1 + number


def _slots(
    layout: StreamLayout, kinds: Kinds, vocabulary: Vocabulary, sets: dict[bytes, int]
) -> list[Mapping[str, Any]]:
    """The slots of a layout as settings that differ from those of a filler; adds to the ``sets``."""
    slots: list[dict[str, Any]] = []
    for number, item in enumerate(layout.items):
        branch, learned = item.branch, layout.learned(kinds, number)
        block = PREFIX_BLOCK if layout.prefix and number < layout.given else 0
        if isinstance(item, Marker):
            word = vocabulary.word(item.word)
            allowed = _number(sets, np.arange(vocabulary.size) == word)
            slots.append(dict(source=MARKER, fixed=word, learned=learned, branch=branch, block=block, allowed=allowed))
            continue
        kind, source = kinds[item.segment], [*kinds].index(item.segment)
        common = dict(source=source, learned=learned, branch=branch, block=block)
        first, tokens = item.clip * kind.length, range(kind.length)
        if isinstance(kind, Ids):
            level = kind.places
            own = [_number(sets, drawable(layout, number, kinds, vocabulary, i // level)) for i in tokens]
            slots += [dict(common, place=first + i, allowed=own[i]) for i in tokens]
            continue
        if item.queries:
            asked = dict(source=source, query=True, branch=branch, block=block_of(number))
            slots += [dict(asked, place=first + i, token=i) for i in tokens]
        if not item.queries or layout.seen_later(number):
            slots += [dict(common, place=first + i, token=i) for i in tokens]
    return slots


def drawable(
    layout: StreamLayout, number: int, kinds: Kinds, vocabulary: Vocabulary, level: int = 0
) -> Bool[np.ndarray, "ids"]:
    """Which ids of the stream may stand in a part: those of the level and, in a text, the marker that ends it."""
    item = layout.items[number]
    assert isinstance(item, Part)
    kind = kinds[item.segment]
    assert not isinstance(kind, Floats)
    mask = vocabulary.mask(kind.range, level)
    ending = layout.terminator(number)
    if kind.text and ending is not None:
        mask[vocabulary.word(ending.word)] = True
    return mask


def _number(sets: dict[bytes, int], mask: Bool[np.ndarray, "ids"]) -> int:
    return sets.setdefault(mask.tobytes(), len(sets))
