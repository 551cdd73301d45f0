"""A distribution over ids whose levels have features of their own, with an end and a padding id behind the codes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videogen.errors import UserError
from videogen.heads.base import Head, Mask, Sums
from videogen.heads.inputs import IdEmbedding
from videogen.heads.sampling import HeadSampler, draw_ids, guide
from videogen.nn import draw, ones, parameter, truncated_normal

LevelFeatures = Float[Array, "batch *places levels width"]

EPSILON = 1e-6


class LevelsApart(Head):
    """An RMS norm and a linear layer to logits for each level, from features of that level (SignViP, section 3.4).

    The inputs are the vectors of all levels side by side and through one linear layer. Behind the codes stand ``end``,
    which is learned and drawn, and ``pad``, which has no loss and is never drawn. At temperature 0 the likeliest ids
    are taken.

    Args:
      vocabulary: ids of each level, equally many of all.
      width: of features and inputs.
    """

    independent_levels = cuts = greedy = True

    def __init__(self, vocabulary: Sequence[int], width: int, *, dtype: jnp.dtype = jnp.float32, rngs):
        if len(set(vocabulary)) > 1:
            raise UserError(f"levels apart have equally many ids, got {tuple(vocabulary)}")
        self.levels, self.codes = len(vocabulary), vocabulary[0]
        self.end, self.pad = self.codes, self.codes + 1
        self.inputs = IdEmbedding(((self.codes,),) * self.levels, width, join="concatenation", dtype=dtype, rngs=rngs)
        self.scale = parameter(rngs, (self.levels, width), (None, "embed"), ones)
        shape, axes = (self.levels, width, self.codes + 2), (None, "embed", "vocabulary")
        self.kernel, self.dtype = parameter(rngs, shape, axes, truncated_normal(0.02)), dtype

    def logits(self, features: LevelFeatures) -> Float[Array, "batch *places levels vocabulary"]:
        """Float32 logits of the codes and of ``end``, of every level: ``pad`` has no logit that could matter."""
        x = features.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON) * self.scale.get_value()
        kernel = self.kernel.get_value().astype(self.dtype)
        logits = jnp.einsum("...lw,lwv->...lv", x.astype(self.dtype), kernel).astype(jnp.float32)
        return logits[..., : self.pad]

    def loss(
        self,
        features: LevelFeatures,
        targets: Int[Array, "batch *places levels"],
        mask: Mask,
        key: jax.Array | None = None,
        *,
        train: bool = True,
        measured: Mask | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Sums]]:
        """Cross-entropy in nats over levels, and the ``accuracy`` of the likeliest ids; ``pad`` counts nowhere."""
        counted, logits = self._by_level(mask, targets) & (targets != self.pad), self.logits(features)
        here = counted if measured is None else self._by_level(measured, targets) & (targets != self.pad)
        wanted = jnp.where(targets == self.pad, 0, targets)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], axis=-1)[..., 0]
        hits = (here & (logits.argmax(-1) == targets)).sum()
        return jnp.where(counted, nll, 0.0).sum(), counted.sum() * 1.0, {"accuracy": (hits * 1.0, here.sum() * 1.0)}

    @staticmethod
    def _by_level(mask: Mask, targets: Int[Array, "batch *places levels"]) -> Array:
        return jnp.broadcast_to(mask if mask.ndim == targets.ndim else mask[..., None], targets.shape)

    def draw(
        self, features: LevelFeatures, null_features: LevelFeatures | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Int[Array, "batch *places levels"], Float[Array, "batch *places"]]:
        logits, null = self.logits(features), None if null_features is None else self.logits(null_features)
        if sampler.cold:
            logits = logits if null is None else guide(logits, null, sampler.guidance_scale)
            ids = logits.argmax(-1).astype(jnp.int32)
            return ids, jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0].sum(-1)
        ids, log_probability = draw_ids(draw(jax.random.uniform, keys, logits.shape[:-1]), logits, null, sampler)
        return ids, log_probability.sum(-1)

    def random_values(self, keys: jax.Array, shape: Sequence[int]) -> Int[Array, "batch *places levels"]:
        return draw(lambda key, size: jax.random.randint(key, size, 0, self.codes), keys, shape)
