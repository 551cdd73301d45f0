"""Ids of a stream: what stands for them, how likely they are, and drawing among those that a layout allows."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.heads import Categorical, HeadSampler
from videogen.heads.sampling import draw_ids
from videogen.language.backbones import Backbone
from videogen.nn import Embedding, draw
from videogen.nn.masking import NEGATIVE


class Words(nnx.Module):
    """Vectors and logits of the ids that the backbone does not know; with its own it is one softmax over all of them.

    Args:
      size: ids of the stream.
      known: the first ones, which the backbone has vectors and logits for.
      width: of the backbone.
      predicted: ids are predicted; else there are no logits.
    """

    def __init__(self, size: int, known: int, width: int, *, predicted: bool = True, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.size, self.known, own = size, known, size - known
        common = dict(dtype=dtype, rngs=rngs)
        self.head = Categorical((own,), width, **common) if predicted and own else None
        self.table = Embedding(own, width, axes=(None, "embed"), **common) if not predicted and own else None

    def embed(self, backbone: Backbone, ids: Int[Array, "batch slots"]) -> Float[Array, "batch slots width"]:
        """The vector of each id."""
        own = jnp.maximum(ids - self.known, 0)
        added = self.head.embed(own[..., None]) if self.table is None else self.table(own)
        if not self.known:
            return added
        return jnp.where((ids < self.known)[..., None], backbone.embed(jnp.minimum(ids, self.known - 1)), added)

    def logits(self, backbone: Backbone, x: Float[Array, "batch slots width"]) -> Float[Array, "batch slots ids"]:
        """Of all ids of the stream, float32."""
        parts = [backbone.scores(x).astype(jnp.float32)] if self.known else []
        return jnp.concatenate([*parts, self.head.logits(x)[0]], axis=-1)

    def nll(
        self, backbone: Backbone, x: Float[Array, "batch slots width"], targets: Int[Array, "batch slots"]
    ) -> tuple[Float[Array, "batch slots"], Bool[Array, "batch slots"]]:
        """Negative log-probability of each target in nats, and whether it is the likeliest id."""
        logits = self.logits(backbone, x)
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return -found, logits.argmax(-1) == targets

    def draw(
        self,
        backbone: Backbone,
        x: Float[Array, "batch width"],
        keys: jax.Array,
        sampler: HeadSampler,
        allowed: Bool[Array, "ids"] | Bool[Array, "batch ids"],
    ) -> Int[Array, "batch"]:
        """One id for each example, among those that are ``allowed``; the likeliest of them at temperature 0."""
        logits = jnp.where(allowed, self.logits(backbone, x[:, None])[:, 0], NEGATIVE)
        if sampler.cold:
            return logits.argmax(-1).astype(jnp.int32)
        return draw_ids(draw(jax.random.uniform, keys, logits.shape[:1]), logits, None, sampler)[0]
