"""What all heads share.

A head knows what the values of a place are: ids, bits or normalised latents. A generator knows only features. So the
head turns values into inputs (``embed``), says how likely values are (``loss``) and draws them (``draw``).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.heads import digits
from videogen.heads.inputs import FloatEmbedding, IdEmbedding
from videogen.heads.sampling import HeadSampler
from videogen.nn import draw

Features = Float[Array, "batch *places width"]
Values = Int[Array, "batch *places levels"] | Float[Array, "batch *places channels"]
Mask = Bool[Array, "batch *places"] | Bool[Array, "batch *places levels"]
SPECIAL = ("end",)
"""Ids beside the codes: ``end`` stands behind the last code of a sequence. Places behind it need no id of their own."""

Sums = tuple[Float[Array, ""], Float[Array, ""]]
"""A sum and a count, whose quotient is a mean."""


class Head(nnx.Module):
    """Base of the heads. Subclasses have ``self.inputs``, the embedding of their values."""

    discrete = True
    """Values are ids ``int32 [batch, *places, levels]``; else normalised latents ``[batch, *places, channels]``."""

    independent_levels = False
    """Levels are independent given the features, so that each may be predicted at another place."""

    cuts = False
    """``top_k`` and ``top_p`` mean something."""

    greedy = False
    """At temperature 0 it takes the likeliest value; others draw at temperatures above 0 only."""

    levels: int
    """Numbers at a place: levels or channels."""

    end: int | None = None
    """The id behind the last value of a sequence; ``None`` for heads whose sequences have no end of their own."""

    def embed(self, values: Values, hidden: Bool[Array, "batch *places one_or_levels"] | None = None) -> Features:
        """Inputs of a network at places with these values.

        Args:
          values: what is at each place.
          hidden: where the value is not shown and a learned vector stands instead; by levels of ids, or (a last axis
            of 1) by places. Only for a head that was built with ``hidden``.
        """
        return self.inputs(values, hidden)

    def input_embedding(self, width: int, *, hidden: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
        """An embedding of these values for another network; it is called as ``embed`` is."""
        raise NotImplementedError

    def loss(
        self,
        features: Features,
        targets: Values,
        mask: Mask,
        key: jax.Array | None,
        *,
        train: bool = True,
        measured: Mask | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Sums]]:
        """The loss as a sum and a count, and metrics as sums and counts; float32. The caller divides.

        Args:
          features: of each place.
          targets: its true values.
          mask: the places, or their levels, that count.
          key: one, or one of each example; for heads whose loss is random.
          train: whether this is a training loss (label smoothing).
          measured: the places or levels that metrics count; by default those of the mask.
        """
        raise NotImplementedError

    def draw(
        self, features: Features, null_features: Features | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Values, Float[Array, "batch *places"] | None]:
        """Values of each place, and their log-probabilities or log-densities where the head knows them.

        Args:
          features: of each place, with the conditioning.
          null_features: without it; ``None`` draws without guidance.
          keys: one of each example: a draw does not depend on its neighbours in the batch.
          sampler: how to draw.
        """
        raise NotImplementedError

    def random_values(self, keys: jax.Array, shape: Sequence[int]) -> Values:
        """Values that have nothing to do with the data, ``[batch, *places, levels]``; a key for each example."""
        raise NotImplementedError

    def check(self, sampler: HeadSampler) -> None:
        """Refuses a sampler that asks for what the head cannot do, with a ``UserError``."""
        if sampler.cold and not self.greedy:
            raise UserError("this head draws at temperatures above 0: near-greedy is sampler.temperature=0.01")
        if not self.cuts and (sampler.top_k or sampler.top_p < 1):
            raise UserError("this head does not cut its distribution: leave sampler.top_k at 0 and sampler.top_p at 1")


class IdHead(Head):
    """Base of the heads over ids, which may be split into digits.

    Args:
      vocabulary: ids of each level of the codes.
      bases: sizes of the digits of each level.
      width: of features and inputs.
      special: names, in ``SPECIAL``, of ids past the vocabulary, which are shown, learned and drawn as all others.
      join: how the vectors of digits become one input, a name in ``heads.inputs.JOINS``.
      hidden: whether ids may be hidden: a learned vector then stands in their place.
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        bases: digits.Bases,
        width: int,
        *,
        special: Sequence[str] = (),
        join: str = "sum",
        hidden: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if special and (len(bases) > 1 or len(bases[0]) > 1):
            raise UserError("special ids need codes of one level in a head without factors")
        self.vocabulary, self.bases, self.special, self.join = tuple(vocabulary), bases, len(special), join
        self.levels = len(self.vocabulary)
        self.end = self.vocabulary[0] + tuple(special).index("end") if "end" in special else None
        self.sizes = tuple(size + self.special for level in bases for size in level)
        self.level_of = tuple(level for level, sizes in enumerate(bases) for _ in sizes)
        self.inputs = self.input_embedding(width, hidden=hidden, dtype=dtype, rngs=rngs)

    def input_embedding(self, width: int, *, hidden: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs) -> IdEmbedding:
        settings = dict(join=self.join, special=self.special, hidden=hidden)
        return IdEmbedding(self.bases, width, **settings, dtype=dtype, rngs=rngs)

    def random_values(self, keys: jax.Array, shape: Sequence[int]) -> Int[Array, "batch *places levels"]:
        limits = jnp.array(self.vocabulary)
        return draw(lambda key, size: jax.random.randint(key, size, 0, limits), keys, shape)

    def of_digit(self, mask: Mask, digit: int, places: int) -> Bool[Array, "batch *places"]:
        """Which places of a digit count; ``places`` is the number of axes of places, the batch included."""
        return mask if mask.ndim == places else mask[..., self.level_of[digit]]


class FloatHead(Head):
    """Base of the heads over normalised latents.

    Args:
      channels: of the latents.
      width: of features and inputs.
      hidden: whether values may be hidden: a learned vector then stands in their place.
      layers: of the embedding of values: 1, or 2 with a GELU between them.
    """

    discrete = False

    def __init__(
        self, channels: int, width: int, *, hidden: bool = False, layers: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.channels, self.layers = channels, layers
        self.levels = channels
        self.inputs = self.input_embedding(width, hidden=hidden, dtype=dtype, rngs=rngs)

    def input_embedding(self, width: int, *, hidden: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs) -> FloatEmbedding:
        return FloatEmbedding(self.channels, width, hidden=hidden, layers=self.layers, dtype=dtype, rngs=rngs)

    def random_values(self, keys: jax.Array, shape: Sequence[int]) -> Float[Array, "batch *places channels"]:
        return draw(jax.random.normal, keys, shape)
