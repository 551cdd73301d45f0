"""Independent bits."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.heads import digits
from videogen.heads.base import Features, IdHead, Mask, Sums
from videogen.heads.sampling import HeadSampler, guide
from videogen.nn import Linear, draw, truncated_normal


class Bernoulli(IdHead):
    """One logit per bit of the ids of a place (Instella-T2I, section on autoregression; Infinity's bitwise head).

    Values are ids of levels with a power of two each; levels of two ids are bits themselves. Guidance and temperature
    act on the logits: a logit of 2 at temperature 2 draws ones with probability sigmoid(1), and at temperature 0 a bit
    is 1 where its logit is above 0.

    Args:
      vocabulary: ids of each level.
      width: of features and inputs.
      join: how the vectors of the bits become one input: ``sum`` or ``concatenation``.
      hidden: whether ids may be hidden: a learned vector then stands in their place.
      remat: of heads with layers.
    """

    independent_levels = greedy = True

    def __init__(
        self,
        vocabulary: Sequence[int],
        width: int,
        *,
        join: str = "sum",
        hidden: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        super().__init__(vocabulary, digits.bits(vocabulary), width, join=join, hidden=hidden, **common)
        settings = dict(axes=("embed", "vocabulary"), initializer=truncated_normal(0.02))
        self.logits_of = Linear(width, len(self.sizes), **settings, **common)

    def logits(self, features: Features) -> Float[Array, "batch *places bits"]:
        """Float32 logits that a bit is 1."""
        return self.logits_of(features).astype(jnp.float32)

    def loss(
        self,
        features: Features,
        targets: Int[Array, "batch *places levels"],
        mask: Mask,
        key: jax.Array | None,
        *,
        train: bool = True,
        measured: Mask | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Sums]]:
        """Binary cross-entropy in nats over bits, and the ``accuracy`` of the likelier value of each."""
        logits, wanted = self.logits(features), digits.split(targets, self.bases)
        counted, at = (self._bits(m, logits) for m in (mask, mask if measured is None else measured))
        nll = jax.nn.softplus(logits) - wanted * logits
        hits = at & ((logits > 0) == (wanted == 1))
        return (
            jnp.where(counted, nll, 0.0).sum(),
            counted.sum() * 1.0,
            {"accuracy": (hits.sum() * 1.0, at.sum() * 1.0)},
        )

    def _bits(self, mask: Mask, logits: Float[Array, "batch *places bits"]) -> Array:
        bits = [self.of_digit(mask, bit, logits.ndim - 1) for bit in range(len(self.sizes))]
        return jnp.stack(bits, axis=-1)

    def draw(
        self, features: Features, null_features: Features | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Int[Array, "batch *places levels"], Float[Array, "batch *places"]]:
        logits = self.logits(features)
        if null_features is not None:
            logits = guide(logits, self.logits(null_features), sampler.guidance_scale)
        if sampler.cold:
            return digits.merge((logits > 0).astype(jnp.int32), self.bases), jnp.zeros(logits.shape[:-1])
        logits = logits / sampler.temperature
        bits = draw(jax.random.uniform, keys, logits.shape) < jax.nn.sigmoid(logits)
        log_probability = jnp.sum(bits * logits - jax.nn.softplus(logits), axis=-1)
        return digits.merge(bits.astype(jnp.int32), self.bases), log_probability
