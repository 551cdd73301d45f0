"""Codes as bits: exactly as many as they have, for files whose size is the rate.

A clip's bits are, in this order: which tokens are kept, then the codes of those that are, segment by segment, level by
level of a token, the most significant bit first; zeros fill up the last byte. Tokens that are a first part of all say
how many they are less one, those in rows (latent frames) how many of each row; any other set takes a bit of each token.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Int

from videogen.building import check_fields
from videogen.errors import UserError
from videogen.ranges import OneOf
from videogen.tokens import Layout

Codes = Mapping[str, Int[np.ndarray, "*sides levels"]]
"""The codes of a clip by the name of their segment."""

Kept = Bool[np.ndarray, "tokens"]
"""Which tokens of a clip are kept, of all segments one after another."""

KEPT = ("all", "prefix", "set")
"""Which tokens may be left out: none, the last ones of every row (at least one stays), or any."""


def width(codes: int) -> int:
    """Bits of the id of one of so many codes."""
    return (codes - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class Packing:
    """How clips are packed; both sides must know it, and no clip repeats it.

    Attributes:
      layout: of the tokens of a clip, which must be codes.
      kept: a name in ``KEPT``.
    """

    layout: Layout
    kept: Annotated[str, OneOf(*KEPT)] = "all"

    def __post_init__(self):
        check_fields(self)
        if not all(segment.vocabulary for _, segment in self.layout.segments):
            raise UserError("continuous latents have no bits to write: take a tokenizer of codes")

    @property
    def row(self) -> int:
        """Tokens of which a first part is kept: those along the last side, of several segments all tokens."""
        return self.layout.only.shape[-1] if len(self.layout.segments) == 1 else self.layout.tokens

    @property
    def said(self) -> int:
        """Bits that say which tokens are kept."""
        return {"all": 0, "prefix": width(self.row), "set": self.layout.tokens}[self.kept]

    @property
    def widths(self) -> Int[np.ndarray, "tokens"]:
        """Bits of each token."""
        of_segments = [sum(map(width, segment.vocabulary)) for _, segment in self.layout.segments]
        return np.repeat(of_segments, [segment.tokens for _, segment in self.layout.segments])

    def size(self, kept: Kept | None = None) -> int:
        """Bytes of a clip of which these tokens are kept; ``None``: all."""
        widths = self.widths
        return math.ceil((self.said + int(widths.sum() if kept is None else widths[kept].sum())) / 8)

    def pack(self, codes: Codes, kept: Kept | None = None) -> bytes:
        """The bits of a clip.

        Args:
          codes: ids of all tokens, from 0; those of tokens that are not kept do not matter.
          kept: which tokens are kept; ``None``: all.

        Raises:
          UserError: an id that the vocabulary does not have, or ``kept`` is not what this packing allows.
        """
        kept = np.ones(self.layout.tokens, bool) if kept is None else np.asarray(kept, bool)
        if self.kept == "all" and not kept.all():
            raise UserError("all tokens are packed, and some are left out here")
        count = int(kept[: self.row].sum())
        if self.kept == "prefix" and (not count or (kept.reshape(-1, self.row) != (np.arange(self.row) < count)).any()):
            raise UserError("the tokens that are kept are no first part of all")
        parts = [_digits(np.array([count - 1]), self.said)[0] if self.kept == "prefix" else kept[: self.said]]
        start = 0
        for name, segment in self.layout.segments:
            own = codes[name].reshape(segment.tokens, -1)[kept[start : start + segment.tokens]]
            if own.min(initial=0) < 0 or (own >= np.asarray(segment.vocabulary)).any():
                limits = ", ".join(str(n - 1) for n in segment.vocabulary)
                raise UserError(f"ids must lie in 0 … {limits} of their level")
            levels = [_digits(own[:, i], width(size)) for i, size in enumerate(segment.vocabulary)]
            parts.append(np.concatenate(levels, axis=1).ravel())
            start += segment.tokens
        return np.packbits(np.concatenate(parts).astype(np.uint8)).tobytes()

    def unpack(self, content: bytes) -> tuple[dict[str, Int[np.ndarray, "*sides levels"]], Kept]:
        """The codes of a clip, 0 where a token is not kept, and which are kept.

        Args:
          content: what ``pack`` gave.

        Raises:
          UserError: there are more or fewer bits than these codes have, or an id is not in the vocabulary.
        """
        bits, tokens, start = np.unpackbits(np.frombuffer(content, np.uint8)), self.layout.tokens, self.said
        if len(bits) < start:
            raise UserError(f"{len(content)} bytes are too few for a clip of {tokens} tokens")
        kept = bits[:start].astype(bool) if self.kept == "set" else np.ones(tokens, bool)
        if self.kept == "prefix":
            kept = np.tile(np.arange(self.row) <= _numbers(bits[:start]), tokens // self.row)
        if len(content) != (wanted := self.size(kept)):
            raise UserError(f"{kept.sum()} tokens of a clip take {wanted} bytes, and here are {len(content)}")
        found, first = {}, 0
        for name, segment in self.layout.segments:
            own, widths = kept[first : first + segment.tokens], [width(size) for size in segment.vocabulary]
            end = start + int(own.sum()) * sum(widths)
            rows = bits[start:end].reshape(int(own.sum()), sum(widths))
            levels = [_numbers(part) for part in np.split(rows, np.cumsum(widths)[:-1], axis=1)]
            read = np.stack(levels, axis=1).astype(np.int32)
            if (read >= np.asarray(segment.vocabulary)).any():
                raise UserError("the bits hold an id that the vocabulary does not have")
            values = np.zeros((segment.tokens, len(widths)), np.int32)
            values[own] = read
            found[name] = values.reshape(*segment.shape, -1)
            start, first = end, first + segment.tokens
        return found, kept


def _digits(numbers: Int[np.ndarray, "numbers"], count: int) -> np.ndarray:
    """``[numbers, count]`` bits, the most significant first."""
    return ((numbers[:, None].astype(np.int64) >> np.arange(count - 1, -1, -1)) & 1).astype(np.uint8)


def _numbers(digits: np.ndarray) -> np.ndarray:
    """The numbers whose bits stand along the last axis."""
    return digits.astype(np.int64) @ (1 << np.arange(digits.shape[-1] - 1, -1, -1, dtype=np.int64))
