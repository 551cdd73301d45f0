"""Ids of a large vocabulary as digits of smaller ones: 2^18 codes are 2 × 2^9 (MAGVIT-v2, section 4), or 18 bits.

``bases`` holds for each level of the codes the sizes of its digits, the most significant first.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int

from videogen.errors import UserError

Bases = tuple[tuple[int, ...], ...]


def factor(vocabulary: Sequence[int], factors: int) -> Bases:
    """Each level of ``vocabulary`` as ``factors`` digits of equal size.

    Raises:
      UserError: a level is no ``factors``-th power.
    """
    bases = []
    for size in vocabulary:
        base = round(size ** (1 / factors))
        if base**factors != size:
            raise UserError(f"a vocabulary of {size} is no power of {factors}: it does not split into equal factors")
        bases.append((base,) * factors)
    return tuple(bases)


def bits(vocabulary: Sequence[int]) -> Bases:
    """Each level of ``vocabulary`` as bits.

    Raises:
      UserError: the size of a level is no power of two, or below two.
    """
    for size in vocabulary:
        if size < 2 or size & (size - 1):
            raise UserError(f"a vocabulary of {size} has no whole number of bits: Bernoulli bits need powers of two")
    return tuple((2,) * (size.bit_length() - 1) for size in vocabulary)


def split(ids: Int[Array, "... levels"], bases: Bases) -> Int[Array, "... digits"]:
    """Ids as digits. An id past the end of a level that is a single digit stays as it is."""
    parts = []
    for level, sizes in enumerate(bases):
        rest = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
        own = ids[..., level]
        parts += [own] if len(sizes) == 1 else [own // r % size for r, size in zip(rest, sizes, strict=True)]
    return jnp.stack(parts, axis=-1)


def merge(digits: Int[Array, "... digits"], bases: Bases) -> Int[Array, "... levels"]:
    """The inverse of ``split``."""
    merged, place = [], 0
    for sizes in bases:
        total = digits[..., place]
        for size, digit in zip(sizes[1:], range(place + 1, place + len(sizes)), strict=True):
            total = total * size + digits[..., digit]
        merged.append(total)
        place += len(sizes)
    return jnp.stack(merged, axis=-1).astype(jnp.int32)
