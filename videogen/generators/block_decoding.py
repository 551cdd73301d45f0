"""Decoding block after block with cached keys and values: compiled loops, static shapes."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from videogen.errors import UserError
from videogen.generators.stepping import Stepper
from videogen.nn import KeyValues, Stream
from videogen.tokens import Tokens

Values = Shaped[Array, "batch places levels"]
"""Codes or normalised latents in order of generation."""


class Decoding(Stepper):
    """The steps of a ``NextBlockTransformer``: a pass per block (or token, at the start), over cached keys.

    A step draws the latent frames of a block. Its memory are the values of the whole sequence, and the caches, of which
    there are none before the first step. A cache has one length, so all examples are at the same frame. With a head
    that knows an end, tokens from the end of an example on do not exist (``Segment.exists``) and are 0.
    """

    def __post_init__(self):
        model, conditioning = self.model, self.conditioning
        self.guided = self.sampler.guidance_scale != 1 and model.context is not None
        if self.guided:
            conditioning = conditioning.with_null()
        self.batch = self.keys.shape[0] * (1 + self.guided)
        self.grid = self.layout.only.grid
        self.known_places = self.known * self.grid.tokens_per_frame
        self.hidden = model.absent(self.grid)
        self.learned, self.angles = model.places(self.grid)
        self.length = self.learned.shape[0]
        self.layers = model.stack.unstacked()
        self.context = self.context_mask = self.states = self.seen = None
        self.mask, self.ahead = model.mask, 0
        if model.context is not None:
            self.context, self.context_mask = model.context(conditioning)
        if model.deep_text is not None:
            # What a layer sees of the text stands ahead of its tokens in the cache.
            self.states, text = model.deep_text.states(self.context, model.stack.depth), self.context_mask
            self.context, self.context_mask, self.ahead = None, None, text.shape[1]
            self.seen = jnp.concatenate([text, jnp.ones((self.batch, self.length), bool)], axis=1)
            known = {"prefix": self.ahead + model.mask.prefix, "start": self.ahead}
            self.mask = dataclasses.replace(model.mask, **known)

    @property
    def frames(self) -> int:
        return self.model.block[0]

    def begin(self, prefix: Tokens | None) -> tuple[Values, None]:
        model, grid = self.model, self.grid
        if prefix is not None and prefix.only.exists is not None:
            raise UserError("a prefix in which tokens are missing has ended already: it cannot be gone on with")
        if self.known not in model.prefixes(grid.time):
            raise UserError(
                f"a prefix must hold whole blocks of {model.block_tokens} codes and {model.block[0]} latent frames, "
                f"from {model.given_frames} to fewer than {grid.time} of these, got {self.known}"
            )
        dtype = jnp.int32 if model.head.discrete else jnp.float32
        values = jnp.zeros((self.keys.shape[0], grid.tokens, model.head.levels), dtype)
        if prefix is not None:
            known = prefix.only.values.reshape(len(values), self.known_places, -1)
            values = values.at[:, : self.known_places].set(known)
        return model.sequence(values, grid), None

    def reconditioned(self, memory: tuple[Values, tuple | None]) -> tuple[Values, tuple | None]:
        values, caches = memory
        if caches is None or (self.context is None and self.states is None):
            return memory
        if self.states is not None:
            return values, tuple(map(self._with_text, caches, self.empty_caches()))
        every = len(caches) // len(self.layers)
        said = [
            (*caches[i * every : (i + 1) * every - 1], layer.cross_attention.keys_values(self.context))
            for i, layer in enumerate(self.layers)
        ]
        return values, tuple(cache for layer in said for cache in layer)

    def _with_text(self, cache: KeyValues, fresh: KeyValues) -> KeyValues:
        """A cache whose text is that of a fresh one."""
        text = jnp.arange(self.ahead + self.length) < self.ahead
        key, value = jnp.where(text, fresh.key, cache.key), jnp.where(text[:, None], fresh.value, cache.value)
        return dataclasses.replace(cache, key=key, value=value)

    def empty_caches(self) -> tuple[KeyValues, ...]:
        """The caches of all layers before the first token."""
        if self.states is None:
            made = [layer.begin(self.batch, self.length, self.context) for layer in self.layers]
            return tuple(cache for caches in made for cache in caches)
        made = []
        for layer, states in zip(self.layers, self.states, strict=True):
            (cache,), text = layer.begin(self.batch, self.ahead + self.length), layer.beside(states)
            made.append(cache.append(text.key, text.value))
        return tuple(made)

    def open(self, memory: tuple[Values, tuple | None]) -> tuple[Values, tuple]:
        """Reads all that is known in one pass, which draws the block after it; or draws that token by token."""
        model, size, (values, caches) = self.model, self.model.block_tokens, memory
        if caches is not None:
            return values, caches
        caches = self.empty_caches()
        if model.start == "tokens" and not self.known:
            return jax.lax.fori_loop(0, size, self._token, (values, caches))
        first, place = size if model.given else 0, self.known_places
        x = model.inputs(values, self.grid)[:, : place + size - first]
        features, caches = self.pass_through(jnp.tile(x, (1 + self.guided, 1, 1)), first, caches)
        return self._write(values, self._draw(features[:, -size:], place), place), caches

    def advance(self, memory: tuple[Values, tuple], at: Int[Array, ""]) -> tuple[tuple[Values, tuple], Tokens]:
        size, place = self.model.block_tokens, at * self.grid.tokens_per_frame
        blocks, late = self.frames * self.grid.tokens_per_frame // size, self.model.delayed // size
        # The last levels of a frame come later than its first one: with them the next frames have begun.
        begun = jnp.where(at == self.known, 1, late)
        first = place // size
        memory = jax.lax.fori_loop(first + begun, first + blocks + late, self._block, memory)
        drawn = jax.lax.dynamic_slice_in_dim(memory[0], place, blocks * size + self.model.delayed, axis=1)
        exists = None
        if self.model.ends:
            exists = jnp.cumsum(memory[0][..., 0] == self.model.head.end, axis=1) == 0
            exists = jax.lax.dynamic_slice_in_dim(exists, place, blocks * size, axis=1)
        return memory, self.model.tokens(drawn, self.layout.with_time(self.frames), exists)

    def pass_through(
        self, x: Float[Array, "batch inputs width"], place: Int[Array, ""] | int, caches: tuple
    ) -> tuple[Float[Array, "batch inputs width"], tuple]:
        """Features of the inputs that stand from ``place`` on."""

        def of_places(table: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(jnp.asarray(table), place, x.shape[1])

        x = x + of_places(self.learned).astype(x.dtype)
        rotary = None if self.angles is None else of_places(self.angles)
        stream = Stream(caches)
        for layer in self.layers:
            masks = dict(mask=self.mask, key_mask=self.seen, context_mask=self.context_mask)
            x = layer(x, **masks, rotary=rotary, stream=stream)
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
        features, caches = self.pass_through(x, place, caches)
        return self._write(values, self._draw(features, place), place), caches

    def _block(self, index: Int[Array, ""], carry: tuple) -> tuple:
        """Draws a block from the block before it."""
        values, caches = carry
        size = self.model.block_tokens
        place = index * size
        x = self._embed(jax.lax.dynamic_slice_in_dim(values, place - size, size, axis=1), place - size)
        if self.model.start == "tokens":
            x = jnp.where(index == 1, jnp.concatenate([x[:, -1:], self._starts(1, size)], axis=1), x)
        features, caches = self.pass_through(x, place, caches)
        return self._write(values, self._draw(features, place), place), caches

    def _write(self, values: Values, drawn: Values, place: Int[Array, ""] | int) -> Values:
        """Puts drawn values in their places, where the level has one there that is not known."""
        places, levels = drawn.shape[1:]
        shifts = jnp.array([self.model.shift(level) for level in range(levels)])
        own = place + jnp.arange(places)[:, None] - shifts
        exists = (own >= self.known_places) & (own < self.length - self.model.delayed)
        before = jax.lax.dynamic_slice_in_dim(values, place, places, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(values, jnp.where(exists, drawn, before), place, axis=1)
