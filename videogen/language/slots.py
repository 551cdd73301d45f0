"""What fills the parts of a layout, what stands in the next slots of rows, and rows that are being drawn."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


class Filled(NamedTuple):
    """The tokens of a part of a layout.

    Attributes:
      values: local ids ``int32 [batch, slots]``, or floats ``[batch, tokens, channels]``.
      exists: which ids are text, or which floats there are; ``None``: all.
      sizes: how many tokens each of the floats stands for in the attention; ``None``: one.
    """

    values: Shaped[Array, "batch ..."]
    exists: Bool[Array, "batch slots"] | None = None
    sizes: Float[Array, "batch slots"] | None = None


Given = Mapping[tuple[str, int], Filled]
"""What fills the parts of a layout, by segment and clip."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Rows that are being drawn.

    Attributes:
      caches: of all layers; with guidance of twice the rows, the second half without text.
      features: behind the last slot that exists, which predict the next.
      position: of the next slot.
    """

    caches: Any
    features: Float[Array, "rows width"]
    position: Int[Array, "rows"]


class Slots(NamedTuple):
    """What stands in the next slots of all rows.

    Attributes:
      x: vectors.
      exists: no padding.
      clip: the number of the clip whose tokens they are; -1: of none.
      further: each has a position of its own; else it may have that of the one before. ``None``: those that exist.
      sizes: how many tokens each stands for in the attention; ``None``: one.
    """

    x: Float[Array, "rows slots width"]
    exists: Bool[Array, "rows slots"]
    clip: Int[Array, "rows slots"] | int = -1
    further: Bool[Array, "rows slots"] | None = None
    sizes: Float[Array, "rows slots"] | None = None

    @classmethod
    def joined(cls, parts: Sequence["Slots"]) -> "Slots":
        """One behind the other."""
        sized = any(part.sizes is not None for part in parts)
        found = []
        for part in parts:
            shape = part.exists.shape
            further = part.exists if part.further is None else part.further
            sizes = jnp.ones(shape) if part.sizes is None else part.sizes
            found.append((part.x, part.exists, jnp.broadcast_to(jnp.asarray(part.clip), shape), further, sizes))
        joined = cls(*(jnp.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True)))
        return joined if sized else joined._replace(sizes=None)
