"""Cached keys and values of a sequence that is continued: buffers of fixed size, compaction and eviction."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn.masking import NEGATIVE, Masking
from videogen.nn.masks import INDEX, NONE, Full, Mask, Tags
from videogen.nn.reference import Heads, masked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """What is known of every place of a cache, where that is more than how many are filled.

    Attributes:
      exists: whether there is a key: it was written, is no padding and was not evicted.
      index: the position of the key in its sequence, which masks and rules of eviction compare.
      bias: added to the scores of the key, such as the logarithm of how many tokens it stands for.
      tags: the other tags that masks compare.
      end: the position of the token that comes next.
    """

    exists: Bool[Array, "batch places"]
    index: Int[Array, "batch places"]
    bias: Float[Array, "batch places"]
    tags: dict[str, Int[Array, "batch places"]]
    end: Int[Array, "batch"]

    @classmethod
    def empty(cls, batch: int, length: int, tags: tuple[str, ...]) -> "Places":
        """Places without a key."""
        none = jnp.zeros((batch, length), jnp.int32)
        return cls(none != 0, none, none.astype(jnp.float32), dict.fromkeys(tags, none), jnp.zeros(batch, jnp.int32))

    def next(
        self, count: int, exists: Bool[Array, "batch new"] | None, bias: Float[Array, "batch new"] | None, tags: Tags
    ) -> "Places":
        """The next ``count`` tokens; only those that exist are counted by their positions, unless these are given."""
        shape = (len(self.end), count)
        if missing := set(self.tags) - set(tags):
            raise UserError(f"the cache keeps the tag {min(missing)!r}, which the next tokens lack")
        exists = jnp.ones(shape, bool) if exists is None else exists
        index = tags[INDEX] if INDEX in tags else self.end[:, None] + jnp.cumsum(exists, 1, dtype=jnp.int32) - 1
        index = jnp.broadcast_to(jnp.asarray(index, jnp.int32), shape)
        bias = jnp.zeros(shape) if bias is None else bias.astype(jnp.float32)
        own = {tag: jnp.broadcast_to(jnp.asarray(tags[tag], jnp.int32), shape) for tag in self.tags}
        end = jnp.maximum(self.end, jnp.max(jnp.where(exists, index + 1, 0), axis=1))
        return Places(exists, index, bias, own, end)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of the positions seen so far, in buffers of fixed size.

    The caches of stacked layers are one, with the layers in front: every layer has a length of its own.

    Attributes:
      key, value: buffers, laid out as the products want them: transposing them would copy all of them at every step.
      length: places that are filled; of every example, ``[batch]``, in a ``ragged`` cache.
      places: what else is known of them. Without, all that is filled exists, and place and position are the same.
    """

    key: Float[Array, "batch heads head_width places"]
    value: Float[Array, "batch heads places head_width"]
    length: Int[Array, ""] | Int[Array, "batch"]
    places: Places | None = None

    def append(
        self,
        key: Heads,
        value: Heads,
        *,
        exists: Bool[Array, "batch new"] | None = None,
        bias: Float[Array, "batch new"] | None = None,
        tags: Tags = NONE,
    ) -> "KeyValues":
        """The cache with the keys and values of the next tokens; the rest is kept only by a cache with ``places``."""

        def write(buffer: Array, new: Array, axis: int) -> Array:
            def one(buffer: Array, new: Array, start: Array, axis: int) -> Array:
                return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), start, axis)

            if self.length.ndim:
                return jax.vmap(lambda *x: one(*x, axis - 1))(buffer, new, self.length)
            return one(buffer, new, self.length, axis)

        count, places = key.shape[1], self.places
        keys, values = write(self.key, key.transpose(0, 2, 3, 1), 3), write(self.value, value.swapaxes(1, 2), 2)
        if places is not None:
            new = places.next(count, exists, bias, tags)
            written = {
                name: jax.tree.map(lambda old, new: write(old, new, 1), getattr(places, name), getattr(new, name))
                for name in ("exists", "index", "bias", "tags")
            }
            places = Places(**written, end=new.end)
        return KeyValues(keys, values, self.length + count, places)

    def ragged(self) -> "KeyValues":
        """The cache with a length of every example, so that those that keep less have room for more."""
        return dataclasses.replace(self, length=jnp.broadcast_to(self.length, self.key.shape[:1]))

    def compact(self, keep: Bool[Array, "batch places"]) -> "KeyValues":
        """The cache with only the keys to ``keep``, moved to the front in their order; positions stay what they are.

        The length becomes that of the example that keeps the most, or, if ``ragged``, that of every example.
        """
        places = self._known()
        keep = keep & places.exists
        order, counts = jnp.argsort(~keep, axis=1, stable=True), keep.sum(1, dtype=jnp.int32)

        def move(x: Int[Array, "batch places"]) -> Int[Array, "batch places"]:
            return jnp.take_along_axis(x, order, axis=1)

        moved = Places(
            exists=move(keep),
            index=move(places.index),
            bias=move(places.bias),
            tags=jax.tree.map(move, places.tags),
            end=places.end,
        )
        key = jnp.take_along_axis(self.key, order[:, None, None, :], axis=3)
        value = jnp.take_along_axis(self.value, order[:, None, :, None], axis=2)
        return KeyValues(key, value, counts if self.length.ndim else counts.max(), moved)

    def evict(self, rule: "SlidingWindow") -> "KeyValues":
        """The cache with only the keys that ``rule`` keeps."""
        places = self._known()
        return self.compact(rule.keep(places.index, places.end[:, None]))

    def _known(self) -> Places:
        if self.places is None:
            raise UserError(
                "this cache does not know its places: begin it with tags=(), or with the tags masks compare"
            )
        return self.places


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
    """Keeps what the next token sees through ``CausalWindow(size) | First(sinks)`` (StreamingLLM; Xiao et al., 2023).

    Attributes:
      size: positions of the window, that of the next token included.
      sinks: positions at the start that stay.
    """

    size: int
    sinks: int = 0

    def keep(self, index: Int[Array, "batch places"], end: Int[Array, "batch 1"]) -> Bool[Array, "batch places"]:
        """Which keys stay, by their positions and that of the next token."""
        return (index < self.sinks) | (index > end - self.size)


EVICTIONS = {"window": SlidingWindow}
"""Rules by which a cache forgets keys."""


def attend_to_cache(
    query: Heads,
    cache: KeyValues,
    mask: Mask,
    key_mask: Bool[Array, "batch keys"] | None = None,
    asking: Places | None = None,
    probe: Int[Array, "batch probes"] | None = None,
) -> Heads | tuple[Heads, Float[Array, "batch heads places"]]:
    """Attention of already scaled queries to all of ``cache``.

    Args:
      query: of the positions that were appended last, or of a sequence beside the cached one.
      cache: keys and values; each of its heads is that of as many heads of the queries as there are more of them.
      mask: by positions and tags.
      key_mask: which keys exist, of a cache without places.
      asking: the places of the queries, for a cache that has places.
      probe: which of the queries are asked for the mass that they give each key, the second result, as of ``attend``.

    Raises:
      UserError: the mask compares tags that the cache does not keep.
    """
    q = query.swapaxes(1, 2)
    batch, heads, queries, width = q.shape
    stored = cache.key.shape[1]
    shape = (batch, heads, queries, cache.key.shape[3])
    q = q if heads == stored else q.reshape(batch, stored, -1, width)
    scores = jnp.matmul(q, cache.key, preferred_element_type=jnp.float32).reshape(shape)
    kept = set() if cache.places is None else set(cache.places.tags)
    for tag in mask.needs - {INDEX} - kept:
        raise UserError(f"the mask compares the tag {tag!r}, which the cache does not keep; begin it with that tag")
    if cache.places is not None:
        scores = masked(scores, _masking(cache.places, mask, asking), shape)
    elif not isinstance(mask, Full):
        first = cache.length - queries
        allowed = mask.allowed(first + jnp.arange(queries)[:, None], jnp.arange(shape[3])[None, :])
        scores = jnp.where(allowed, scores, NEGATIVE)
    if key_mask is not None:
        scores = jnp.where(key_mask[:, None, None, :], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1)
    mass = None if probe is None else jnp.take_along_axis(weights, probe[:, None, :, None], axis=2).sum(2)
    weights = weights.astype(cache.value.dtype)
    weights = weights if heads == stored else weights.reshape(batch, stored, -1, shape[3])
    out = jnp.matmul(weights, cache.value).reshape(batch, heads, queries, width).swapaxes(1, 2)
    return out if probe is None else (out, mass)


def _masking(places: Places, mask: Mask, asking: Places) -> Masking:
    """Who sees which of the cached keys, by positions and tags of both."""
    query_tags, key_tags = ({INDEX: side.index, **side.tags} for side in (asking, places))
    return Masking(mask, key_mask=places.exists, key_bias=places.bias, query_tags=query_tags, key_tags=key_tags)
