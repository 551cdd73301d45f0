"""Decoding block after block with cached keys and values: one compiled loop, static shapes."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.conditioning import Conditioning
from videogen.generators.sampling import BlockSampler, guide, sample_categorical
from videogen.nn import Stream
from videogen.shapes import TokenGrid


class Decoding:
    """One call of ``NextBlockTransformer.sample``: a pass per block (or token, at the start), over cached keys.

    Args:
      model: the transformer.
      grid: what is drawn.
      conditioning: one entry per example.
      keys: one random key per example.
      sampler: how to draw.
      known: codes of the prefix, whole blocks of them.
    """

    def __init__(
        self,
        model: nnx.Module,
        grid: TokenGrid,
        conditioning: Conditioning,
        keys: jax.Array,
        sampler: BlockSampler,
        known: int,
    ):
        self.model, self.keys, self.sampler, self.known = model, keys, sampler, known
        self.guided = sampler.guidance_scale != 0 and model.context is not None
        if self.guided:
            conditioning = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), conditioning, conditioning.null())
        self.batch = keys.shape[0] * (1 + self.guided)
        self.learned, self.angles = model.places(grid)
        self.length = self.learned.shape[0]
        self.layers = model.stack.unstacked()
        self.context = self.context_mask = None
        if model.context is not None:
            self.context, self.context_mask = model.context(conditioning)

    def run(self, ids: Int[Array, "batch places levels"]) -> Int[Array, "batch places levels"]:
        """Fills the places from ``known`` on; codes before it never change."""
        model, size = self.model, self.model.block_tokens
        caches = tuple(cache for layer in self.layers for cache in layer.begin(self.batch, self.length, self.context))
        if model.start == "tokens" and not self.known:
            carry = jax.lax.fori_loop(0, size, self._token, (ids, caches))
        else:
            # One pass reads all that is known and predicts the block after it.
            first = size if model.start == "given" else 0
            x = model.inputs(ids)[:, : self.known + size - first]
            features, caches = self._pass(jnp.tile(x, (1 + self.guided, 1, 1)), first, caches)
            carry = self._write(ids, self._draw(features[:, -size:], self.known), self.known), caches
        return jax.lax.fori_loop(self.known // size + 1, self.length // size, self._block, carry)[0]

    def _pass(
        self, x: Float[Array, "batch inputs width"], place: Int[Array, ""] | int, caches: tuple
    ) -> tuple[Float[Array, "batch inputs width"], tuple]:
        """Features of the inputs that stand from ``place`` on."""

        def of_places(table: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(jnp.asarray(table), place, x.shape[1])

        x = x + of_places(self.learned).astype(x.dtype)
        rotary = None if self.angles is None else of_places(self.angles)
        stream = Stream(caches)
        for layer in self.layers:
            x = layer(x, mask=self.model.mask, rotary=rotary, context_mask=self.context_mask, stream=stream)
        return self.model.norm(x), stream.cache

    def _draw(
        self, features: Float[Array, "batch places width"], place: Int[Array, ""]
    ) -> Int[Array, "batch places levels"]:
        """Codes of the places from ``place`` on, one uniform number for each place and level."""
        places, levels = features.shape[1], len(self.model.vocabulary)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, place))(self.keys)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (places, levels)))(step_keys)

        def choose(logits: Float[Array, "both places vocabulary"], level: int) -> Int[Array, "both places"]:
            if self.guided:
                logits = guide(logits, self.sampler.guidance(place / self.length))
            ids = sample_categorical(
                uniform[..., level], logits / self.sampler.temperature, self.sampler.top_k, self.sampler.top_p
            )
            return jnp.tile(ids, (1 + self.guided, 1))

        return self.model.head.draw(features, choose)[: self.keys.shape[0]]

    def _embed(self, ids: Int[Array, "batch places levels"]) -> Float[Array, "both places width"]:
        return jnp.tile(self.model.embedding(ids), (1 + self.guided, 1, 1))

    def _starts(self, first: int, last: int) -> Float[Array, "both places width"]:
        vectors = self.model.start_vectors.get_value()[first:last].astype(self.model.embedding.table.dtype)
        return jnp.broadcast_to(vectors, (self.batch, *vectors.shape))

    def _token(self, place: Int[Array, ""], carry: tuple) -> tuple:
        """Draws one code of the first block from the code before it."""
        ids, caches = carry
        before = jax.lax.dynamic_slice_in_dim(ids, jnp.maximum(place - 1, 0), 1, axis=1)
        x = jnp.where(place == 0, self._starts(0, 1), self._embed(before))
        features, caches = self._pass(x, place, caches)
        return self._write(ids, self._draw(features, place), place), caches

    def _block(self, index: Int[Array, ""], carry: tuple) -> tuple:
        """Draws a block from the block before it."""
        ids, caches = carry
        size = self.model.block_tokens
        place = index * size
        x = self._embed(jax.lax.dynamic_slice_in_dim(ids, place - size, size, axis=1))
        if self.model.start == "tokens":
            x = jnp.where(index == 1, jnp.concatenate([x[:, -1:], self._starts(1, size)], axis=1), x)
        features, caches = self._pass(x, place, caches)
        return self._write(ids, self._draw(features, place), place), caches

    def _write(self, ids: Array, drawn: Array, place: Int[Array, ""] | int) -> Array:
        """Puts drawn codes in their places, where the level has a code there that is not known."""
        places, levels = drawn.shape[1:]
        shifts = jnp.array([self.model.shift(level) for level in range(levels)])
        own = place + jnp.arange(places)[:, None] - shifts
        exists = (own >= self.known) & (own < self.length - self.model.delayed)
        before = jax.lax.dynamic_slice_in_dim(ids, place, places, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(ids, jnp.where(exists, drawn, before), place, axis=1)
