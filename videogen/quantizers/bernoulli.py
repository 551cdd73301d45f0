"""Bits that are drawn in training (Instella-T2I, arXiv 2506.21022, binary autoencoder)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.nn import Mean, draw, example_keys, mean_where, whole
from videogen.quantizers.base import Quantized, count_levels, require_key, weighted
from videogen.quantizers.binary import BinaryQuantizer
from videogen.quantizers.estimators import straight_through
from videogen.ranges import Count, Positive, Weight


class BernoulliQuantizer(BinaryQuantizer):
    """A bit for every logit z: drawn with probability ``sigmoid(z / temperature)`` in training, ``z > 0`` otherwise.

    Codes are the bits as numbers 0 and 1: a linear layer behind them adds up the rows of the bits that are 1. The
    gradient is that of ``p = sigmoid(z)``, without the temperature: ``b + p - stop_gradient(p)``. The loss
    ``uncertainty`` is the weight times the mean of ``p (1 - p)``, which is 1/4 where nothing is decided and 0 where all
    is.

    Args:
      bits: code width.
      levels: ids per place; the bits are split evenly, the first bit of a level is the lowest one of its id. ``None``:
        one for each bit, so that there is no id of more than one.
      temperature: of the draw; towards 0 it becomes the threshold. 0.1 is that of the public model.
      uncertainty_weight: weight of the loss; the published one was not found.
    """

    remedy = "lower uncertainty_weight, raise the temperature, or use fewer bits"

    def __init__(
        self,
        bits: Count,
        *,
        levels: Count | None = None,
        temperature: Positive = 0.1,
        uncertainty_weight: Weight = 0.01,
        rngs: nnx.Rngs | None = None,
    ):
        # Every bit by itself: there is no joint entropy.
        super().__init__(bits, bits if levels is None else levels, 1, rngs)
        self.temperature, self.uncertainty_weight = temperature, uncertainty_weight

    def lookup(self, indices: Int[Array, "... levels"]) -> Float[Array, "... width"]:
        """The bits of ids, 0 and 1."""
        return 0.5 * (self.signs(indices) + 1.0)

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Bits of logits; with ``train`` they are drawn with ``key``, one or one of each example."""
        z = latents.astype(jnp.float32)
        p, bits = jax.nn.sigmoid(z), z > 0
        if train:
            keys = example_keys(require_key(key, "drawing bits"), len(z))
            bits = draw(jax.random.uniform, keys, z.shape) < jax.nn.sigmoid(z / self.temperature)
        ids = self.ids(jnp.where(bits, 1.0, -1.0))
        losses = weighted({"uncertainty": (self.uncertainty_weight, mean_where(p * (1 - p), exists, mean))})
        counts = count_levels(ids, self.vocabulary, exists)
        return Quantized(straight_through(p, bits.astype(jnp.float32)), ids, losses, {"counts": counts})
