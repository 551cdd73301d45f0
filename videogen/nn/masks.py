"""Attention masks as values: every backend understands the same frozen dataclasses.

A mask says which key positions a query position may see. ``allowed`` uses operators only, so that it works on NumPy
arrays, on traced arrays and inside a Pallas kernel. Padding depends on the data, so it is an array
(``key_mask`` of ``nn.attend``), not a mask value.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Full:
    """Every query sees every key."""

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return (query >= 0) & (key >= 0)


@dataclasses.dataclass(frozen=True)
class Causal:
    """A query sees itself and the past."""

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return key <= query


@dataclasses.dataclass(frozen=True)
class CausalWindow:
    """A query sees the last ``size`` positions, itself included."""

    size: int

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return (key <= query) & (key > query - self.size)


@dataclasses.dataclass(frozen=True)
class BlockCausal:
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

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        if self.start:
            query, key = query - self.start, key - self.start
        allowed = key // self.block <= query // self.block
        if self.causal_first:
            allowed = allowed & ((key <= query) | (query >= self.block))
        return allowed | (key < self.prefix - self.start) if self.prefix else allowed


@dataclasses.dataclass(frozen=True)
class PrefixLM:
    """The first ``prefix`` positions see each other; the rest is causal."""

    prefix: int

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return (key <= query) | (key < self.prefix)


@dataclasses.dataclass(frozen=True)
class Window:
    """A query sees keys at distance at most ``radius``."""

    radius: int

    def allowed(self, query: Int[Array, "q 1"], key: Int[Array, "1 k"]) -> Bool[Array, "q k"]:
        return abs(query - key) <= self.radius


Mask = Full | Causal | CausalWindow | BlockCausal | PrefixLM | Window


def mask_array(mask: Mask, queries: int, keys: int) -> Bool[Array, "q k"]:
    """The mask of ``queries`` × ``keys`` positions as a dense array (reference backend and tests)."""
    return mask.allowed(jnp.arange(queries)[:, None], jnp.arange(keys)[None, :])
