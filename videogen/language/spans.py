"""Where the tokens of clips stand in rows of slots, for what acts on them inside of a backbone."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videogen.language.layouts import Floats, Kinds
from videogen.language.stream import TokenStream
from videogen.language.tables import NOTHING, Table
from videogen.nn import ExtraKeys


class RowShape(NamedTuple):
    """How many slots of a row there may be of each kind; static.

    Attributes:
      clips: of a row.
      each: tokens of a clip.
      others: slots that are no tokens of a clip.
      per_frame: tokens of a frame; 0 where they are no whole frames.
    """

    clips: int
    each: int
    others: int
    per_frame: int = 0

    @property
    def slots(self) -> int:
        """Of the longest row."""
        return self.clips * self.each + self.others

    @classmethod
    def of(cls, table: Table, kinds: Kinds, name: str, packed: int = 1) -> "RowShape":
        """Of rows of ``packed`` samples whose clips are the segment ``name``."""
        kind, here = kinds[name], table.source == [*kinds].index(name)
        assert isinstance(kind, Floats)
        seen, others = here.sum(1), ((table.source != NOTHING) & ~here).sum(1)
        per_frame = kind.per_frame if kind.frames > 1 else 0
        return cls(packed * int(seen.max()) // kind.length, kind.length, packed * int(others.max()), per_frame)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spans:
    """The tokens of the clips of rows.

    Attributes:
      clip: which clip of its row each slot is of; -1: of none.
      token: which token of its clip.
      size: how many tokens each slot stands for.
      asking: the last slot of the prompt of every sample of a row, whose attention says what matters.
      place: where the features of each slot of the row are to be found now; ``None``: there.
      shape: how many there may be.
    """

    clip: Int[Array, "rows slots"]
    token: Int[Array, "rows slots"]
    size: Float[Array, "rows slots"]
    asking: Int[Array, "rows samples"]
    place: Int[Array, "rows all_slots"] | None
    shape: RowShape = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        stream: TokenStream,
        number: int,
        shape: RowShape,
        samples: int,
        sizes: Float[Array, "rows tokens"] | None = None,
    ) -> "Spans":
        """Of rows of ``samples`` samples of a stream, of whose segments the clips have this number.

        ``sizes`` are those of all tokens of a row, one clip behind the other.
        """
        here = stream.source == number
        first = jnp.where(stream.predicts >= 0, jnp.arange(here.shape[1]), here.shape[1] - 1)
        rows = jnp.arange(len(here))[:, None]
        asking = jnp.full((len(here), samples), here.shape[1] - 1).at[rows, stream.sample].min(first)
        clip = jnp.where(here, stream.place // shape.each, -1)
        size = jnp.ones(here.shape) if sizes is None else sizes_of(stream, number, sizes)
        return cls(clip, jnp.where(here, stream.token, 0), size, asking, None, shape)

    @classmethod
    def of_prompt(
        cls,
        clip: Int[Array, "rows slots"],
        exists: Bool[Array, "rows slots"],
        shape: RowShape,
        sizes: Float[Array, "rows slots"] | None = None,
    ) -> "Spans":
        """Of rows of one sample that are read up to the end of its prompt; clips stand token after token."""
        before = jnp.cumsum(clip >= 0, axis=1) - 1
        token = jnp.where(clip >= 0, before % max(shape.each, 1), 0)
        last = jnp.max(jnp.where(exists, jnp.arange(exists.shape[1]), 0), axis=1, keepdims=True)
        size = jnp.ones(clip.shape) if sizes is None else sizes
        return cls(jnp.where(exists, clip, -1), token, size, last, None, shape)

    def slots(self) -> tuple[Int[Array, "rows clips each"], Bool[Array, "rows clips each"]]:
        """The slots of the tokens of every clip, in their order, and which there are."""
        clips, each = self.shape.clips, self.shape.each

        def one(clip: Array) -> tuple[Array, Array]:
            group = jnp.where(clip >= 0, clip, clips)
            order = jnp.argsort(group, stable=True)
            count = jnp.zeros(clips + 1, jnp.int32).at[group].add(1)[:clips]
            start = jnp.cumsum(count) - count
            at = start[:, None] + jnp.arange(each)
            return order[jnp.minimum(at, len(clip) - 1)], jnp.arange(each) < count[:, None]

        return jax.vmap(one)(self.clip)

    def others(self, exists: Bool[Array, "rows slots"]) -> tuple[Int[Array, "rows others"], Bool[Array, "rows others"]]:
        """The slots of what is no token of a clip, in their order, and which there are."""
        own = exists & (self.clip < 0)
        count = min(self.shape.others, own.shape[1])
        return jnp.argsort(~own, axis=1, stable=True)[:, :count], jnp.arange(count) < own.sum(1, keepdims=True)


def sizes_of(stream: TokenStream, number: int, sizes: Float[Array, "rows tokens"]) -> Float[Array, "rows slots"]:
    """Of every slot how many tokens it stands for; 1 of those that are not of the segment with this number."""
    here = stream.source == number
    return jnp.where(here, jnp.take_along_axis(sizes, jnp.where(here, stream.place, 0), axis=1), 1.0)


@dataclasses.dataclass(frozen=True)
class Notes:
    """What hooks of a backbone are told of the slots that are passed to it.

    Attributes:
      spans: of clips; ``None``: there is no token of a clip among them.
      beside: by layer, keys and values that text or clips see beside the row.
    """

    spans: Spans | None = None
    beside: Mapping[int, ExtraKeys] = dataclasses.field(default_factory=dict)


def kept_of(ratio: float, count: int) -> int:
    """How many of so many tokens stay where the share ``ratio`` goes, rounded down."""
    return count - math.floor(ratio * count + 1e-6)


def gone_of(ratio: float, count: Int[Array, "..."]) -> Int[Array, "..."]:
    """How many of so many tokens go, as ``kept_of`` counts."""
    return jnp.floor(np.float32(ratio) * count.astype(jnp.float32) + 1e-4).astype(jnp.int32)
