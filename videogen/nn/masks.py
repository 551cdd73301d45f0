"""Attention masks as values: every backend understands the same frozen dataclasses.

A mask says which keys a query may see. It compares integer tags of the two tokens (sample, segment, order, frame,
kind); the position in the sequence is the tag ``index``, which every token has. Masks compose by ``&`` and ``|``: a
packed prefix language model is ``Same("sample") & (Equal("kind", PREFIX) | Causal())``.

``allowed`` uses operators only, so that it works on NumPy arrays, on traced arrays and inside a Pallas kernel. Padding
depends on the data, so it is an array (``key_mask`` of ``nn.attend``), not a mask value. Tags are given beside the
mask: a NumPy array ``[tokens]`` is static, known when a program is traced; an array ``[batch, tokens]`` depends on the
data.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

INDEX = "index"
"""The tag that is the position in the sequence unless it is given."""

Pairs = Mapping[str, tuple[Int[Array, "*batch q 1"], Int[Array, "*batch 1 k"]]]
"""Tag -> its values for the queries and for the keys, ready to be compared."""

NONE: Pairs = MappingProxyType({})
Tags = Mapping[str, Int[np.ndarray, "tokens"] | Int[Array, "batch tokens"]]


class Mask:
    """Base of all masks."""

    needs: frozenset[str] = frozenset({INDEX})
    """The tags that are compared."""

    table = False
    """Whether values are looked up in tables, which a kernel cannot do."""

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        """Who sees whom, by positions and by the other ``tags``."""
        raise NotImplementedError

    def __and__(self, other: "Mask") -> "Mask":
        parts = [part for part in (*_parts(self, AllOf), *_parts(other, AllOf)) if not isinstance(part, Full)]
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts)) if parts else Full()

    def __or__(self, other: "Mask") -> "Mask":
        parts = (*_parts(self, AnyOf), *_parts(other, AnyOf))
        return Full() if any(isinstance(part, Full) for part in parts) else AnyOf(parts)


def _parts(mask: Mask, kind: type) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, kind) else (mask,)


@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """Every query sees every key."""

    needs = frozenset()

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        return (query >= 0) & (key >= 0)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """A query sees itself and the past."""

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        return key <= query


@dataclasses.dataclass(frozen=True)
class CausalWindow(Mask):
    """A query sees the last ``size`` positions, itself included."""

    size: int

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        return (key <= query) & (key > query - self.size)


@dataclasses.dataclass(frozen=True)
class BlockCausal(Mask):
    """Bidirectional inside blocks of ``block`` positions, causal between blocks.

    Attributes:
      block: positions of a block.
      causal_first: the first block is causal inside, for a start that is generated token by token (NBP section 3.3).
      prefix: the first ``prefix`` positions are visible to all.
      start: where the first block begins; positions before it see no block.
    """

    block: int
    causal_first: bool = False
    prefix: int = 0
    start: int = 0

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        if self.start:
            query, key = query - self.start, key - self.start
        allowed = key // self.block <= query // self.block
        if self.causal_first:
            allowed = allowed & ((key <= query) | (query >= self.block))
        return allowed | (key < self.prefix - self.start) if self.prefix else allowed


@dataclasses.dataclass(frozen=True)
class BlockWindow(Mask):
    """A query sees the last ``size`` blocks, its own and later ones included, and the first ``sinks``.

    Attributes:
      block: positions of a block.
      size: blocks of the window.
      sinks: blocks at the start that all see.
      start: where the first block begins; positions before it are seen by all and see all.
    """

    block: int
    size: int
    sinks: int = 0
    start: int = 0

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        mine, other = (query - self.start) // self.block, (key - self.start) // self.block
        near = (other > mine - self.size) | (other < self.sinks)
        return near | (query < self.start) if self.start else near


@dataclasses.dataclass(frozen=True)
class PrefixLM(Mask):
    """The first ``prefix`` positions see each other; the rest is causal."""

    prefix: int

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        return (key <= query) | (key < self.prefix)


@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """A query sees keys at distance at most ``radius``."""

    radius: int

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        return abs(query - key) <= self.radius


@dataclasses.dataclass(frozen=True)
class First(Mask):
    """Every query sees the keys of the first ``count`` positions."""

    count: int

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        return (key < self.count) & (query == query)


@dataclasses.dataclass(frozen=True)
class Compared(Mask):
    """Base of the masks that compare one ``tag``, by default the position."""

    tag: str = INDEX

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tag})

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        return self.compare(query, key) if self.tag == INDEX else self.compare(*tags[self.tag])

    def compare(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        """Who sees whom, by the values of the tag."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Same(Compared):
    """A query sees keys with its own value of the tag, such as those of its sample."""

    def compare(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return query == key


@dataclasses.dataclass(frozen=True)
class Different(Compared):
    """A query sees keys with another value of the tag than its own."""

    def compare(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return query != key


@dataclasses.dataclass(frozen=True)
class NotLater(Compared):
    """A query sees keys with a value of the tag up to its own."""

    def compare(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return key <= query


@dataclasses.dataclass(frozen=True)
class Within(Compared):
    """A query sees keys whose value of the tag is at most ``before`` below and ``after`` above its own."""

    before: int = 0
    after: int = 0

    def compare(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return (key >= query - self.before) & (key <= query + self.after)


@dataclasses.dataclass(frozen=True)
class Multiple(Compared):
    """Keys whose tag is at least 0 and a multiple of ``of`` are seen by all queries, such as every fourth frame."""

    of: int = 1

    def compare(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return (key >= 0) & (key % self.of == 0) & (query == query)


@dataclasses.dataclass(frozen=True)
class Equal(Compared):
    """Keys whose tag is ``value`` are seen by all queries; with ``side="query"`` such queries see all keys."""

    value: int = 0
    side: str = "key"

    def compare(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        asked, other = (key, query) if self.side == "key" else (query, key)
        return (asked == self.value) & (other == other)


@dataclasses.dataclass(frozen=True)
class NotEqual(Equal):
    """Keys whose tag is not ``value`` are seen by all queries; with ``side="query"`` such queries see all keys."""

    def compare(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        asked, other = (key, query) if self.side == "key" else (query, key)
        return (asked != self.value) & (other == other)


@dataclasses.dataclass(frozen=True)
class Composed(Mask):
    """Base of the masks that are made of others."""

    parts: tuple[Mask, ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def table(self) -> bool:
        return any(part.table for part in self.parts)


@dataclasses.dataclass(frozen=True)
class AllOf(Composed):
    """What all ``parts`` allow; written ``a & b``."""

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        return functools.reduce(operator.and_, (part.allowed(query, key, tags) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class AnyOf(Composed):
    """What any of the ``parts`` allows; written ``a | b``."""

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        return functools.reduce(operator.or_, (part.allowed(query, key, tags) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class Known(Mask):
    """A comparison of a static tag, by positions: its values are looked up in tables.

    Attributes:
      mask: compares one tag.
      query, key: the tag's values at every position, the bytes of int32 numbers.
    """

    mask: Compared
    query: bytes
    key: bytes

    table = True

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"], tags: Pairs = NONE) -> Bool[Array, "q k"]:
        tables = (np.frombuffer(values, np.int32) for values in (self.query, self.key))
        if isinstance(query, jax.Array) or isinstance(key, jax.Array):
            tables = map(jnp.asarray, tables)
        return self.mask.compare(*(values[places] for values, places in zip(tables, (query, key), strict=True)))


def conjuncts(mask: Mask) -> tuple[Mask, ...]:
    """The masks that must all allow a key; none of ``Full``."""
    return () if isinstance(mask, Full) else _parts(mask, AllOf)


def all_of(parts: Iterable[Mask]) -> Mask:
    """What all ``parts`` allow; everything where there are none."""
    return functools.reduce(operator.and_, parts, Full())


def mask_array(
    mask: Mask,
    queries: int,
    keys: int,
    query_tags: Mapping[str, Int[Array, "batch queries"]] = NONE,
    key_tags: Mapping[str, Int[Array, "batch keys"]] = NONE,
) -> Bool[Array, "q k"] | Bool[Array, "batch q k"]:
    """The mask of ``queries`` × ``keys`` positions as a dense array; of every example where it compares given tags."""
    query, key = jnp.arange(queries)[:, None], jnp.arange(keys)[None, :]
    pairs = {tag: (query_tags[tag][:, :, None], key_tags[tag][:, None, :]) for tag in mask.needs if tag in query_tags}
    query, key = pairs.get(INDEX, (query, key))
    return mask.allowed(query, key, pairs)
