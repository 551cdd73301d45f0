"""From the values of a place to the vector a network sees there."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError, near_matches
from videogen.heads import digits
from videogen.nn import Embedding, Linear, parameter, truncated_normal

JOINS = ("sum", "concatenation")
"""How the vectors of the levels become one: added up, or side by side and through a linear layer."""


class IdEmbedding(nnx.Module):
    """One learned vector for each digit of the ids of a place, joined; all digits share one table.

    Args:
      bases: sizes of the digits of every level (``heads.digits``).
      width: of the result.
      join: a name in ``JOINS``.
      special: ids past the vocabulary, of a single level of a single digit.
      hidden: one more vector for each digit stands where the id is not shown.
    """

    def __init__(
        self,
        bases: digits.Bases,
        width: int,
        *,
        join: str = "sum",
        special: int = 0,
        hidden: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if join not in JOINS:
            raise UserError(f"unknown join {join!r} of a head{near_matches(join, JOINS)}")
        self.bases, self.ids = bases, tuple(size + special for level in bases for size in level)
        self.level_of = tuple(level for level, sizes in enumerate(bases) for _ in sizes)
        sizes = [size + hidden for size in self.ids]
        self.offsets = tuple(sum(sizes[:digit]) for digit in range(len(sizes)))
        part = width if join == "sum" else -(-width // len(sizes))
        self.table = Embedding(sum(sizes), part, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        joined = join == "concatenation"
        self.of_bits = not joined and not hidden and set(self.ids) == {2}
        self.join = Linear(len(sizes) * part, width, axes=(None, "embed"), dtype=dtype, rngs=rngs) if joined else None

    def __call__(
        self, ids: Int[Array, "... levels"], hidden: Bool[Array, "... one_or_levels"] | None = None
    ) -> Float[Array, "... width"]:
        """The vector of each place; ``hidden`` says of which levels the id is not shown."""
        parts = digits.split(ids, self.bases)
        if self.of_bits:
            return self._of_bits(parts)
        if hidden is not None:
            if hidden.shape[-1] > 1:
                hidden = hidden[..., np.array(self.level_of)]
            parts = jnp.where(hidden, np.array(self.ids, np.int32), parts)
        x = self.vectors(parts)
        return x.sum(axis=-2) if self.join is None else self.join(x.reshape(*x.shape[:-2], -1))

    def _of_bits(self, bits: Int[Array, "... digits"]) -> Float[Array, "... width"]:
        """The sum of the vectors of bits, as one product: 64 vectors for each place would fill the memory."""
        off = np.array(self.offsets, np.int32)
        zero, one = self.table(off), self.table(off + 1)
        return bits.astype(zero.dtype) @ (one - zero) + zero.sum(axis=0)

    def vectors(self, parts: Int[Array, "... digits"]) -> Float[Array, "... digits width"]:
        """The vectors of the first digits of a place, before they are joined."""
        return self.table(parts + np.array(self.offsets[: parts.shape[-1]], np.int32))


class FloatEmbedding(nnx.Module):
    """A linear layer from normalised latents; with ``hidden``, a learned vector where they are not shown.

    Args:
      channels: of the latents.
      width: of the result.
      hidden: whether there are places that show nothing.
      layers: 1, or 2 with a GELU between them (Divot, section 2.3).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        hidden: bool = False,
        layers: int = 1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.linear = Linear(channels, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.second = Linear(width, width, axes=("embed", None), dtype=dtype, rngs=rngs) if layers == 2 else None
        self.hidden = parameter(rngs, (width,), ("embed",), truncated_normal(0.02)) if hidden else None

    def __call__(
        self, values: Float[Array, "... channels"], hidden: Bool[Array, "... one"] | None = None
    ) -> Float[Array, "... width"]:
        """The vector of each place; ``hidden`` says which places show nothing."""
        x = self.linear(values)
        x = x if self.second is None else self.second(jax.nn.gelu(x))
        return x if hidden is None else jnp.where(hidden, self.hidden.get_value().astype(x.dtype), x)
