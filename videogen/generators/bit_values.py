"""Ids as bits, for generators that denoise bits."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Int

from videogen.heads import digits


class BitsOfIds(nnx.Module):
    """In the place of ``LatentStatistics`` where tokens are ids: their bits take the place of normalised latents.

    Args:
      vocabulary: ids of each level, powers of two; the bits of a level stand together, the highest first.
    """

    def __init__(self, vocabulary: Sequence[int]):
        self.bases = digits.bits(vocabulary)
        self.channels = sum(map(len, self.bases))

    @staticmethod
    def sums(ids: Int[Array, "..."]) -> dict[str, Array]:
        """Nothing is measured."""
        return {}

    def normalise(self, ids: Int[Array, "... levels"]) -> Int[Array, "... bits"]:
        """Bits of ids."""
        return digits.split(ids, self.bases)

    def restore(self, bits: Int[Array, "... bits"]) -> Int[Array, "... levels"]:
        """The inverse of ``normalise``."""
        return digits.merge(bits, self.bases)
