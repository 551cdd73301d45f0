"""Streams: ids, floats, labels, tags and positions of samples, built in one pass from a table and their tokens."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from videogen.language.layouts import Floats, Ids, Kinds
from videogen.language.tables import MARKER, NOTHING, Table
from videogen.language.vocabulary import Vocabulary
from videogen.nn import Causal, Equal, Mask, NotEqual, Same
from videogen.nn.masks import INDEX

TAGS = ("block", "query")
"""Tags that a cache of one sample must keep."""

MASK = (Causal() & Equal("query", 0)) | (Same("block") & NotEqual("block", 0))
"""Who sees whom in a sample: the past, but for queries; those of one block see each other. Queries see the past and
those of their block, so no later token sees a query."""

PACKED = Same("sample") & MASK
"""``MASK`` in rows of several samples."""

BRANCH = "branch"
"""The tag of what stands side by side, such as questions about one clip, or options of an answer: 0 of all that they
see in common. In ``TokenStream`` it is only where a layout has several branches."""

APART = Equal(BRANCH, 0) | Same(BRANCH)
"""Branches see what they have in common, and themselves."""

WORD = 0
"""``predicts`` of a slot that predicts an id."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStream:
    """Rows of slots; those that exist stand in front.

    Attributes:
      source: as in ``Table``: the number of the segment, ``MARKER`` or ``NOTHING``.
      ids: of the stream, where the slot has one; else 0.
      place: which token of its segment, over all samples of the row.
      token: which token of its clip.
      query: learned queries.
      exists: no padding.
      sample: which sample of the row; it is a tag.
      block: a tag, see ``Table``.
      position: of the slot in its sample, from 0; clips whose tokens are together have one.
      branch: which of the branches of its sample, from 1, which do not see each other and begin at the same position;
        0: what all of them see; ``None``: the layouts have one at most.
      predicts: what is learned there: ``WORD``, 1 + the number of a segment of floats, or -1 for nothing.
      target: the id that is predicted.
      target_place: the token of floats that is predicted, over all samples of the row.
    """

    source: Int[Array, "batch slots"]
    ids: Int[Array, "batch slots"]
    place: Int[Array, "batch slots"]
    token: Int[Array, "batch slots"]
    query: Bool[Array, "batch slots"]
    exists: Bool[Array, "batch slots"]
    sample: Int[Array, "batch slots"]
    block: Int[Array, "batch slots"]
    position: Int[Array, "batch slots"]
    predicts: Int[Array, "batch slots"]
    target: Int[Array, "batch slots"]
    target_place: Int[Array, "batch slots"]
    branch: Int[Array, "batch slots"] | None = None

    @property
    def tags(self) -> dict[str, Array]:
        """What ``mask`` compares."""
        query = self.query.astype(jnp.int32)
        tags = {INDEX: self.position, "sample": self.sample, "block": self.block, "query": query}
        return tags if self.branch is None else {**tags, BRANCH: self.branch}

    @property
    def mask(self) -> Mask:
        """Who sees whom."""
        return PACKED if self.branch is None else PACKED & APART

    def padding(self) -> Array:
        """The share of slots that do not exist."""
        return 1 - self.exists.mean()


def build_stream(
    table: Table,
    choice: Int[Array, "samples"],
    kinds: Kinds,
    vocabulary: Vocabulary,
    ids: Mapping[str, Int[Array, "samples slots"]],
    exists: Mapping[str, Bool[Array, "samples slots"]] | None = None,
    *,
    packed: int = 1,
    length: int | None = None,
) -> tuple[TokenStream, Bool[Array, "samples"]]:
    """The rows of samples, ``packed`` of them in each.

    What stands in a slot, whether it is predicted and by which slot all come from one row of the table, which is moved
    as a whole: so no label is off by one.

    Args:
      table: of the layouts.
      choice: which layout each sample has.
      kinds: of the segments.
      vocabulary: of the ids.
      ids: of each segment of ids, not yet of the stream, of all clips of a sample one after another.
      exists: which of these are no padding, by segment; without, all are.
      packed: samples of a row, one after another without padding between them.
      length: slots of a row; samples that do not fit are left out. By default all fit.

    Returns:
      The rows, ``samples / packed`` of them, and which samples are in them.
    """
    named = {name: jnp.asarray(getattr(table, name))[choice] for name in _COLUMNS}
    own, there = named["fixed"], existing(table, choice, kinds, exists or {})
    for number, (name, kind) in enumerate(kinds.items()):
        if isinstance(kind, Ids) and name in ids:
            here = named["source"] == number
            place = jnp.where(here, named["place"], 0)
            found = jnp.take_along_axis(_of_stream(vocabulary, kind, ids[name]), place, axis=1)
            own = jnp.where(here, found, own)
    length = table.slots * packed if length is None else length
    fits = _fits(there, packed, length)
    there &= fits[:, None]
    slots = {name: named[name] for name in ("source", "token", "learned", "query", "block")}
    branches = int(table.branch.max(initial=0))
    further = there & ~_repeated(there, named["source"], named["place"], kinds)
    slots |= {"ids": jnp.where(named["query"], 0, own), "exists": there}
    slots["position"] = _positions(further, named["branch"], branches)
    if branches > 1:
        slots["branch"] = named["branch"]
    given = {name: array.shape[1] for name, array in {**ids, **(exists or {})}.items()}
    slots["place"] = named["place"] + _offsets(table, kinds, named["source"], packed, given)
    sample = jnp.arange(len(choice), dtype=jnp.int32)[:, None] % packed
    slots["sample"] = jnp.broadcast_to(sample, there.shape)
    rows = {name: value.reshape(-1, packed * table.slots) for name, value in slots.items()}
    order = jnp.argsort(~rows["exists"], axis=1, stable=True)[:, :length]
    rows = {name: jnp.take_along_axis(value, order, axis=1) for name, value in rows.items()}
    return _labelled(rows, kinds), fits


def _positions(
    further: Bool[Array, "samples slots"], branch: Int[Array, "samples slots"], branches: int
) -> Int[Array, "samples slots"]:
    """The positions of slots in their samples; every branch goes on where what they have in common ends."""
    position = jnp.cumsum(further, axis=1) - 1
    for number in range(1, branches):
        # What other branches have before this one.
        position -= jnp.where(branch > number, (further & (branch == number)).sum(1, keepdims=True), 0)
    return position


def _repeated(
    there: Bool[Array, "samples slots"],
    source: Int[Array, "samples slots"],
    place: Int[Array, "samples slots"],
    kinds: Kinds,
) -> Bool[Array, "samples slots"]:
    """Which slots have the position of the one before that exists: they are of one clip that is ``together``."""
    found = jnp.zeros(there.shape, bool)
    slots = jnp.where(there, jnp.arange(there.shape[1]), -1)
    last = jax.lax.cummax(jnp.pad(slots, ((0, 0), (1, 0)), constant_values=-1)[:, :-1], axis=1)
    for number, kind in enumerate(kinds.values()):
        if isinstance(kind, Floats) and kind.together:
            clip = jnp.where(there & (source == number), place // kind.length, -1)
            before = jnp.where(last >= 0, jnp.take_along_axis(clip, jnp.maximum(last, 0), axis=1), -1)
            found |= (clip >= 0) & (clip == before)
    return found


def existing(
    table: Table, choice: Int[Array, "samples"], kinds: Kinds, exists: Mapping[str, Bool[Array, "samples slots"]]
) -> Bool[Array, "samples slots"]:
    """Which slots of the table's rows samples have; arguments as for ``build_stream``."""
    source, place = (jnp.asarray(getattr(table, name))[choice] for name in ("source", "place"))
    there = source != NOTHING
    for number, name in enumerate(kinds):
        if name in exists:
            here = source == number
            there &= ~here | jnp.take_along_axis(exists[name], jnp.where(here, place, 0), axis=1)
    return there


def dealt(lengths: Int[Array, "samples"], packed: int) -> Int[Array, "samples"]:
    """The order of samples that gives rows of ``packed`` ones nearly equal numbers of slots.

    By falling length they are dealt to the rows, forth and back, so that the longest share a row with the shortest.
    """
    turns = jnp.argsort(-lengths, stable=True).reshape(packed, -1)
    forth = (jnp.arange(packed) % 2 == 0)[:, None]
    return jnp.where(forth, turns, turns[:, ::-1]).T.reshape(-1)


_COLUMNS = ("source", "fixed", "place", "token", "learned", "query", "block", "branch")


def _of_stream(vocabulary: Vocabulary, kind: Ids, flat: Int[Array, "samples slots"]) -> Int[Array, "samples slots"]:
    """Ids of a segment, level after level in every clip, as ids of the stream."""
    starts = jnp.repeat(jnp.array(vocabulary[kind.range].starts, jnp.int32), kind.places)
    return flat + jnp.tile(starts, flat.shape[1] // kind.length)


def _fits(there: Bool[Array, "samples slots"], packed: int, length: int) -> Bool[Array, "samples"]:
    """Which samples fit into their rows, taken in order; one that does not leaves its room to those behind it."""
    lengths = there.sum(axis=1).reshape(-1, packed)

    def put(filled: Array, own: Array) -> tuple[Array, Array]:
        fits = filled + own <= length
        return filled + jnp.where(fits, own, 0), fits

    return jax.lax.scan(put, jnp.zeros_like(lengths[:, 0]), lengths.T)[1].T.reshape(-1)


def _offsets(
    table: Table, kinds: Kinds, source: Int[Array, "samples slots"], packed: int, given: Mapping[str, int]
) -> Int[Array, "samples slots"]:
    """Where the tokens of a sample begin in its row, by segment; ``given`` says how many a sample has."""
    clips = clips_of(table, kinds)
    lengths = [given.get(name, clips * kind.length) for name, kind in kinds.items()]
    each = jnp.array(lengths or [0], jnp.int32)
    number = jnp.arange(len(source), dtype=jnp.int32)[:, None] % packed
    return jnp.where(source >= 0, number * each[jnp.maximum(source, 0)], 0)


def clips_of(table: Table, kinds: Kinds) -> int:
    """Clips of a sample."""
    lengths = [kind.length for kind in kinds.values()]
    used = [(table.place[table.source == number], length) for number, length in enumerate(lengths)]
    return max((int(places.max()) // length + 1 for places, length in used if places.size), default=1)


def _labelled(rows: Mapping[str, Array], kinds: Kinds) -> TokenStream:
    """Adds what every slot predicts: a query its own token, another slot what stands behind it."""

    def following(x: Array) -> Array:
        return jnp.concatenate([x[:, 1:], x[:, :1]], axis=1)

    after = jnp.arange(rows["exists"].shape[1]) < rows["exists"].shape[1] - 1
    same = (following(rows["sample"]) == rows["sample"]) & rows["exists"] & following(rows["exists"]) & after
    by_next = same & following(rows["learned"]) & ~rows["query"]
    floats = [number for number, kind in enumerate(kinds.values()) if not isinstance(kind, Ids)]
    is_float = functools.partial(jnp.isin, test_elements=jnp.array(floats or [NOTHING - 1]))
    source = jnp.where(rows["query"], rows["source"], following(rows["source"]))
    predicts = jnp.where(is_float(source), 1 + source, WORD)
    predicts = jnp.where((rows["query"] & rows["exists"]) | by_next, predicts, -1)
    place = jnp.where(rows["query"], rows["place"], following(rows["place"]))
    kept = {name: rows[name] for name in ("place", "token", "query", "exists", "sample", "block", "position")}
    kept["branch"] = rows.get(BRANCH)
    seen = jnp.where(rows["exists"], rows["source"], NOTHING)
    return TokenStream(
        source=seen,
        ids=jnp.where((seen == MARKER) | ~is_float(seen), rows["ids"], 0) * rows["exists"],
        **kept,
        predicts=predicts,
        target=jnp.where(predicts == WORD, following(rows["ids"]), 0),
        target_place=jnp.where(predicts > WORD, place, 0),
    )
