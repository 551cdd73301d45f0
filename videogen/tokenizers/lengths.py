"""Length rules: which tokens of an example the decoder sees (``Segment.kept``), drawn or decided for each example.

Tokens that are dropped count in the losses of the quantizer, unlike padding (``exists``). A length counts tokens along
the last side: of ``("query",)`` those of the clip, of ``("time", "query")`` those of every latent frame, which all keep
as many.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from videogen import building
from videogen.building import check_fields
from videogen.errors import UserError
from videogen.nn import example_keys, named_key
from videogen.quantizers.base import require_key
from videogen.ranges import Count, Number, OneOf
from videogen.tokens import SegmentLayout

HALTING = "halting"
"""The name in ``Encoded.extra`` of the logits ``[batch, *sides]`` that a token is not needed."""

DISTRIBUTIONS = ("uniform", "power_of_two", "uniform_power_of_two")

ASKED = "asked"
"""The name in ``Encoded.extra`` of the tokens that the request asks for ``[batch, *sides]``: the rule is not asked."""

Kept = Bool[Array, "batch ..."] | None


class LengthRule:
    """A rule decides which tokens of every example are kept."""

    def kept(
        self,
        shape: Sequence[int],
        *,
        exists: Bool[Array, "batch ..."] | None = None,
        extra: Mapping[str, Any] | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Kept:
        """Which tokens the decoder sees, ``[batch, *sides]``; ``None``: all.

        Args:
          shape: ``[batch, *sides]``.
          exists: which tokens are no padding; ``None``: all.
          extra: ``Encoded.extra``.
          key: one, or one of each example; in training, for what is drawn.
          train: whether this is training; in evaluation nothing is drawn.
        """
        raise NotImplementedError

    kept_tokens = "all"
    """Which tokens it may leave out in evaluation: a name in ``data.bits.KEPT``."""

    def bits(self, layout: SegmentLayout) -> float:
        """Bits that tell which tokens of an example are kept, beside those of the tokens themselves."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class All(LengthRule):
    """Every token is kept."""

    def kept(self, shape: Sequence[int], **known: Any) -> Kept:
        return None

    def bits(self, layout: SegmentLayout) -> float:
        return 0.0


@dataclasses.dataclass(frozen=True)
class TailDrop(LengthRule):
    """In training an example keeps its first k tokens, k drawn for each; in evaluation it keeps all.

    With n the number of tokens of the example that exist:

    * ``uniform``: k is even in minimum … n (One-D-Piece, section 4, which draws one k for the examples of a device);
    * ``power_of_two``: even in the powers of two from minimum to below n, and n (FlexTok's ``pow2``);
    * ``uniform_power_of_two``: uniform, rounded up to a power of two, and n at most (FlexTok's ``uniform_pow2``).

    An example of fewer tokens than ``minimum`` keeps all.

    Args:
      distribution: one of these.
      minimum: fewest tokens that are kept.
    """

    distribution: Annotated[str, OneOf(*DISTRIBUTIONS)] = "uniform"
    minimum: Count = 1

    def __post_init__(self):
        check_fields(self)

    def kept(
        self,
        shape: Sequence[int],
        *,
        exists: Bool[Array, "batch ..."] | None = None,
        extra: Mapping[str, Any] | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Kept:
        if not train:
            return None
        if self.minimum > shape[-1]:
            raise UserError(f"tail drop keeps at least {self.minimum} tokens, and there are {shape[-1]}")
        counts = jnp.full(shape[0], shape[-1]) if exists is None else exists.sum(-1).reshape(shape[0], -1).max(-1)
        keys = named_key(example_keys(require_key(key, "tail drop"), shape[0]), "lengths")
        lengths = jax.vmap(lambda key, count: self.length(key, count, shape[-1]))(keys, counts)
        return first(lengths, shape, exists)

    def length(self, key: jax.Array, count: Int[Array, ""] | int, longest: int) -> Int[Array, ""]:
        """Draws k for an example.

        Args:
          key: random key.
          count: tokens of the example that exist.
          longest: the largest count there may be.
        """
        powers = 2 ** np.arange((longest - 1).bit_length() + 1)
        if self.distribution == "power_of_two":
            start = (self.minimum - 1).bit_length()  # the first power that is not below the minimum
            above = jnp.sum((powers >= self.minimum) & (powers < count))
            drawn = jnp.asarray(powers)[start + jax.random.randint(key, (), 0, above + 1)]
        else:
            drawn = jax.random.randint(key, (), self.minimum, count + 1)
        if self.distribution == "uniform_power_of_two":
            drawn = jnp.asarray(powers)[jnp.sum(powers < drawn)]
        return jnp.minimum(drawn, count)

    def bits(self, layout: SegmentLayout) -> float:
        """Those of one of the lengths there are."""
        longest = layout.shape[-1]
        if self.distribution == "uniform":
            return math.log2(longest - self.minimum + 1)
        return math.log2(sum(self.minimum <= 2**i < longest for i in range(longest.bit_length())) + 1)


@dataclasses.dataclass(frozen=True)
class Halting(LengthRule):
    """A token is dropped where ``sigmoid(logit) > threshold``, of the logits in ``Encoded.extra["halting"]``.

    KARL, sections 2 and 7. Without ``cut`` what is kept may be any set of tokens, the empty one included: the decoder
    must be able to do without all. The logits are trained by a cross-entropy of their own; no gradient passes the rule.

    Args:
      threshold: probability above which a token is not needed.
      cut: also drop all tokens behind the first that is dropped: what is kept is a prefix, of one token at least.
    """

    threshold: Annotated[float, Number(float, 0, 1, above=True, below=True)] = 0.75
    cut: bool = False

    def __post_init__(self):
        check_fields(self)

    def kept(
        self,
        shape: Sequence[int],
        *,
        exists: Bool[Array, "batch ..."] | None = None,
        extra: Mapping[str, Any] | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Kept:
        if HALTING not in (extra or {}):
            raise UserError("the length rule 'halting' needs an encoder that says which tokens are not needed")
        kept = jax.nn.sigmoid(extra[HALTING].astype(jnp.float32)) <= self.threshold
        return jnp.cumprod(kept, axis=-1).astype(bool).at[..., 0].set(True) if self.cut else kept

    @property
    def kept_tokens(self) -> str:
        return "prefix" if self.cut else "set"

    def bits(self, layout: SegmentLayout) -> float:
        """One bit of every token; with ``cut`` those of a length along the last side."""
        rows = layout.tokens // layout.shape[-1]
        return rows * math.log2(layout.shape[-1]) if self.cut else float(layout.tokens)


def first(
    lengths: Int[Array, "batch"], shape: Sequence[int], exists: Bool[Array, "batch ..."] | None = None
) -> Bool[Array, "batch ..."]:
    """The first ``lengths`` tokens of each example along the last side, of those that exist: ``[batch, *sides]``."""
    order = jnp.arange(shape[-1]) if exists is None else jnp.cumsum(exists, axis=-1) - exists
    return jnp.broadcast_to(order < lengths.reshape(-1, *[1] * (len(shape) - 1)), tuple(shape))


LENGTHS: dict[str, type[LengthRule]] = {"all": All, "tail_drop": TailDrop, "halting": Halting}


def build(config: Mapping[str, Any]) -> LengthRule:
    """Builds a length rule from ``{name, …}``."""
    return building.build(LENGTHS, config, "length rule")
