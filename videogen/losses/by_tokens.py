"""Discriminators apart by the number of tokens that a clip was made from (KARL; Duggal et al., 2025, section 4)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.building import check_fields
from videogen.nn import Stack
from videogen.ranges import Count
from videogen.shapes import Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenBuckets:
    """The section of a discriminator that is one for each range of numbers of tokens.

    Attributes:
      of: ``{name, …}`` of the discriminator.
      buckets: how many there are.
      size: tokens of a range: the first bucket has up to 2·size - 1 tokens, each further one size, the last all others.
    """

    of: Mapping[str, Any]
    buckets: Count = 8
    size: Count = 32

    def __post_init__(self):
        check_fields(self)

    def bucket(self, tokens: Int[Array, ""] | int) -> Int[Array, ""]:
        """The number of the bucket of so many tokens."""
        return jnp.clip(tokens // self.size - 1, 0, self.buckets - 1)


class ByTokens(nnx.Module):
    """Equal discriminators with weights of their own, stacked in one module; a call uses one of them.

    The optimizer knows one group: the moments of those that rest fade, and move them a little, where the published ones
    have an optimizer each.

    Args:
      make: builds one from its random streams.
      section: how many, and which is whose.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], section: TokenBuckets, *, rngs: nnx.Rngs):
        self.section = section
        self.stack = Stack(make, section.buckets, rngs=rngs)

    def __call__(self, video: Video, tokens: Int[Array, ""]) -> Float[Array, "batch"]:
        """Logits of clips that were made from so many tokens at most."""
        return self.stack.layer(self.section.bucket(tokens))(video)
