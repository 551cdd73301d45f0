"""Decoding block after block with cached keys and values: one compiled loop, static shapes."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from videogen.conditioning import Conditioning
from videogen.generators.sampling import BlockSampler
from videogen.nn import Stream
from videogen.shapes import TokenGrid

Values = Shaped[Array, "batch places levels"]
"""Codes or normalised latents in order of generation."""


class Decoding:
    """One call of ``NextBlockTransformer.sample``: a pass per block (or token, at the start), over cached keys.

    Args:
      model: the transformer.
      grid: what is drawn.
      conditioning: one entry per example.
      keys: one random key per example.
      sampler: how to draw.
      known: places of the prefix, whole blocks of them.
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
            conditioning = conditioning.with_null()
        self.batch = keys.shape[0] * (1 + self.guided)
        self.grid, self.hidden = grid, model.absent(grid)
        self.learned, self.angles = model.places(grid)
        self.length = self.learned.shape[0]
        self.layers = model.stack.unstacked()
        self.context = self.context_mask = None
        if model.context is not None:
            self.context, self.context_mask = model.context(conditioning)

    def run(self, values: Values) -> Values:
        """Fills the places from ``known`` on; those before it never change."""
        model, size = self.model, self.model.block_tokens
        caches = tuple(cache for layer in self.layers for cache in layer.begin(self.batch, self.length, self.context))
        if model.start == "tokens" and not self.known:
            carry = jax.lax.fori_loop(0, size, self._token, (values, caches))
        else:
            # One pass reads all that is known and predicts the block after it.
            first = size if model.start == "given" else 0
            x = model.inputs(values, self.grid)[:, : self.known + size - first]
            features, caches = self._pass(jnp.tile(x, (1 + self.guided, 1, 1)), first, caches)
            carry = self._write(values, self._draw(features[:, -size:], self.known), self.known), caches
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
        self, features: Float[Array, "both places width"], place: Int[Array, ""] | int
    ) -> Shaped[Array, "batch places levels"]:
        """Values of the places from ``place`` on."""
        step_keys, null = jax.vmap(lambda key: jax.random.fold_in(key, place))(self.keys), None
        if self.guided:
            features, null = jnp.split(features, 2)
        return self.model.head.draw(features, null, step_keys, self.sampler.of_head(place / self.length))[0]

    def _embed(self, values: Values, place: Int[Array, ""] | int) -> Float[Array, "both places width"]:
        """Inputs of the values that stand from ``place`` on."""
        hidden = None
        if self.hidden is not None:
            hidden = jax.lax.dynamic_slice_in_dim(jnp.asarray(self.hidden), place, values.shape[1])
            hidden = jnp.broadcast_to(hidden, values.shape)
        return jnp.tile(self.model.head.embed(values, hidden), (1 + self.guided, 1, 1))

    def _starts(self, first: int, last: int) -> Float[Array, "both places width"]:
        vectors = self.model.start_vectors.get_value()[first:last].astype(self.model.dtype)
        return jnp.broadcast_to(vectors, (self.batch, *vectors.shape))

    def _token(self, place: Int[Array, ""], carry: tuple) -> tuple:
        """Draws one place of the first block from the place before it."""
        values, caches = carry
        last = jnp.maximum(place - 1, 0)
        before = jax.lax.dynamic_slice_in_dim(values, last, 1, axis=1)
        x = jnp.where(place == 0, self._starts(0, 1), self._embed(before, last))
        features, caches = self._pass(x, place, caches)
        return self._write(values, self._draw(features, place), place), caches

    def _block(self, index: Int[Array, ""], carry: tuple) -> tuple:
        """Draws a block from the block before it."""
        values, caches = carry
        size = self.model.block_tokens
        place = index * size
        x = self._embed(jax.lax.dynamic_slice_in_dim(values, place - size, size, axis=1), place - size)
        if self.model.start == "tokens":
            x = jnp.where(index == 1, jnp.concatenate([x[:, -1:], self._starts(1, size)], axis=1), x)
        features, caches = self._pass(x, place, caches)
        return self._write(values, self._draw(features, place), place), caches

    def _write(self, values: Values, drawn: Values, place: Int[Array, ""] | int) -> Values:
        """Puts drawn values in their places, where the level has one there that is not known."""
        places, levels = drawn.shape[1:]
        shifts = jnp.array([self.model.shift(level) for level in range(levels)])
        own = place + jnp.arange(places)[:, None] - shifts
        exists = (own >= self.known) & (own < self.length - self.model.delayed)
        before = jax.lax.dynamic_slice_in_dim(values, place, places, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(values, jnp.where(exists, drawn, before), place, axis=1)
