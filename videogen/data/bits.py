"""Codes as bits: exactly as many as they have, for files whose size is the rate.

A clip's bits are, in this order: which tokens are kept, then the codes of those that are, level by level of a token,
the most significant bit first; zeros fill up the last byte. Tokens that are a first part of all say how many they are
less one; any other set takes a bit of each token.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from videogen.errors import UserError

Codes = Int[np.ndarray, "tokens levels"]


def width(codes: int) -> int:
    """Bits of the id of one of so many codes."""
    return (codes - 1).bit_length()


def size(tokens: int, vocabulary: Sequence[int], kept: int | None = None, *, prefix: bool = True) -> int:
    """Bytes of a clip.

    Args:
      tokens: of a clip.
      vocabulary: codes of each level.
      kept: how many tokens are kept; ``None``: all, which takes no bits to say.
      prefix: the first ones.
    """
    said = 0 if kept is None else width(tokens) if prefix else tokens
    return math.ceil((said + (tokens if kept is None else kept) * sum(map(width, vocabulary))) / 8)


def pack(
    codes: Codes, vocabulary: Sequence[int], kept: Bool[np.ndarray, "tokens"] | None = None, *, prefix: bool = True
) -> bytes:
    """The bits of a clip.

    Args:
      codes: ids of all tokens, from 0.
      vocabulary: codes of each level.
      kept: which tokens are kept; ``None``: all.
      prefix: the kept ones are the first ones, at least one.

    Raises:
      UserError: an id that the vocabulary does not have, or ``kept`` is no prefix.
    """
    if codes.min(initial=0) < 0 or (codes >= np.asarray(vocabulary)).any():
        raise UserError(f"ids must lie in 0 … {', '.join(str(n - 1) for n in vocabulary)} of their level")
    said = np.zeros(0, np.uint8)
    if kept is not None and prefix:
        count = int(kept.sum())
        if not count or not kept[:count].all():
            raise UserError("the tokens that are kept are no first part of all")
        said, codes = _digits(np.array([count - 1]), width(len(kept)))[0], codes[:count]
    elif kept is not None:
        said, codes = kept.astype(np.uint8), codes[kept]
    levels = [_digits(codes[:, i], width(count)) for i, count in enumerate(vocabulary)]
    return np.packbits(np.concatenate([said, np.concatenate(levels, axis=1).ravel()])).tobytes()


def unpack(
    content: bytes, tokens: int, vocabulary: Sequence[int], *, some: bool = False, prefix: bool = True
) -> tuple[Codes, Bool[np.ndarray, "tokens"] | None]:
    """The codes of a clip, 0 where a token is not kept, and which are kept (``None`` without ``some``).

    Args:
      content: what ``pack`` gave.
      tokens: of a clip.
      vocabulary: codes of each level.
      some: the bits say which tokens are kept.
      prefix: these are the first ones.

    Raises:
      UserError: there are more or fewer bits than these codes have, or an id is not in the vocabulary.
    """
    bits, kept, count, start = np.unpackbits(np.frombuffer(content, np.uint8)), None, tokens, 0
    if some:
        start = width(tokens) if prefix else tokens
        if len(bits) < start:
            raise UserError(f"{len(content)} bytes are too few for a clip of {tokens} tokens")
        kept = np.arange(tokens) <= _numbers(bits[:start]) if prefix else bits[:start].astype(bool)
        count = int(kept.sum())
    widths = [width(codes) for codes in vocabulary]
    wanted = size(tokens, vocabulary, count if some else None, prefix=prefix)
    if len(content) != wanted:
        raise UserError(f"{count} tokens of a clip take {wanted} bytes, and here are {len(content)}")
    rows = bits[start : start + count * sum(widths)].reshape(count, sum(widths))
    levels = [_numbers(part) for part in np.split(rows, np.cumsum(widths)[:-1], axis=1)]
    found = np.stack(levels, axis=1).astype(np.int32)
    if (found >= np.asarray(vocabulary)).any():
        raise UserError("the bits hold an id that the vocabulary does not have")
    codes = np.zeros((tokens, len(widths)), np.int32)
    codes[slice(None) if kept is None else kept] = found
    return codes, kept


def _digits(numbers: Int[np.ndarray, "numbers"], count: int) -> np.ndarray:
    """``[numbers, count]`` bits, the most significant first."""
    return ((numbers[:, None].astype(np.int64) >> np.arange(count - 1, -1, -1)) & 1).astype(np.uint8)


def _numbers(digits: np.ndarray) -> np.ndarray:
    """The numbers whose bits stand along the last axis."""
    return digits.astype(np.int64) @ (1 << np.arange(digits.shape[-1] - 1, -1, -1, dtype=np.int64))
