"""A step in micro-batches that equals the step of the whole batch: draws by example, and means over all of them."""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from videogen.parallel import constrain

Mean = Callable[[Any], Any]
"""What maps means over the examples at hand to means over the whole batch."""


def whole(mean: Any) -> Any:
    """The ``Mean`` where the examples at hand are the whole batch: the identity."""
    return mean


def mean_where(
    values: Float[Array, "*places elements"], exists: Bool[Array, "*places"] | None, mean: Mean = whole
) -> Float[Array, ""]:
    """Mean over all elements of the places that exist; 0 where none does.

    Args:
      values: any number of axes may follow those of ``exists``.
      exists: which places are no padding; ``None``: all.
      mean: from means over these examples to means over the whole batch. The number of places is that of the whole
        batch, so that the results of its micro-batches, which may have more or less padding, have its result as mean.
    """
    if exists is None:
        return jnp.mean(values)
    found = exists.reshape(exists.shape + (1,) * (values.ndim - exists.ndim))
    return jnp.mean(jnp.where(found, values, 0.0)) / jnp.maximum(mean(jnp.mean(exists)), 1e-12)


class MicroBatch:
    """Which examples of a step's batch are at hand, and what is known of the others.

    Of ``count`` micro-batches number n has the examples n, n + count, n + 2·count, …: each device that holds a row of
    neighbouring examples has its share of every micro-batch, and none is sent to another.

    A loss that is a mean over examples needs nothing of this but ``keys``. One that is another function of means over
    the batch (an entropy of mean probabilities, a quotient of two sums) passes each of these means through ``mean``:
    then the mean of the losses and of the gradients of all micro-batches is that of the whole batch. The train step
    finds the whole means in a pass of its own before the gradients, which computes nothing else.

    Args:
      number: of this micro-batch, from 0.
      count: micro-batches of a step, all equally large.
      known: the whole-batch means, in the order in which the loss asks for them; ``None`` where they are not known yet,
        or this is the whole batch.
    """

    def __init__(self, number: int | Int[Array, ""] = 0, count: int = 1, known: Sequence[Any] | None = None):
        self.number, self.count, self.known = number, count, known
        self.means: list[Any] = []

    def places(self, size: int) -> Int[Array, "size"]:
        """The places in the whole batch of the ``size`` examples at hand."""
        return self.number + self.count * jnp.arange(size)

    def keys(self, key: jax.Array, size: int) -> jax.Array:
        """A random key for each of ``size`` examples, of its place in the whole batch."""
        return jax.vmap(functools.partial(jax.random.fold_in, key))(self.places(size))

    def draw(self, sampler: Callable[..., Array], key: jax.Array, shape: Sequence[int]) -> Array:
        """Random numbers of ``shape``, whose leading axis counts the examples, by ``sampler(key, shape)``."""
        return draw(sampler, self.keys(key, shape[0]), shape)

    def rows(self, sampler: Callable[[int], Array], size: int) -> Array:
        """Of ``sampler(examples)`` for the whole batch the rows of the ``size`` examples at hand, where draws depend on
        one another, such as strata."""
        whole = sampler(self.count * size)
        turns = whole.reshape(size, self.count, *whole.shape[1:])
        return jax.lax.dynamic_index_in_dim(turns, self.number, axis=1, keepdims=False)

    @staticmethod
    def split(whole: Shaped[Array, "examples ..."], count: int) -> Shaped[Array, "count size ..."]:
        """An array by examples in ``count`` micro-batches, in which the devices share the same examples as before."""
        turns = whole.reshape(whole.shape[0] // count, count, *whole.shape[1:])
        return constrain(jnp.moveaxis(turns, 1, 0), None, "batch", *(None,) * (whole.ndim - 1))

    @staticmethod
    def join(parts: Shaped[Array, "count rows ..."], size: int) -> Shaped[Array, "all ..."]:
        """The inverse of ``split``, of arrays that have one or several rows for each of the ``size`` examples."""
        count, rows, *rest = parts.shape
        turns = jnp.moveaxis(parts.reshape(count, size, rows // size, *rest), 0, 1)
        return turns.reshape(count * rows, *rest)

    def mean(self, value: Any) -> Any:
        """A pytree of means over these examples -> means over the whole batch, with the gradient of these examples.

        ``value`` must not depend on what an earlier call returned: that is not the same before the whole is known.
        """
        self.means.append(jax.lax.stop_gradient(value))
        if self.known is None:
            return value
        whole = self.known[len(self.means) - 1]
        return jax.tree.map(lambda w, v: jax.lax.stop_gradient(w) + (v - jax.lax.stop_gradient(v)), whole, value)

    def gathered(self, rows: Shaped[Array, "size ..."]) -> Shaped[Array, "all ..."]:
        """Rows of these examples -> those of the whole batch in its order, with the gradient of these examples.

        A loss that compares all examples with each other is made of these: the mean over the micro-batches of its
        gradients is that of the whole batch, of what is made of single examples and of what is shared by all alike.
        Numbers become float32, whole ones up to 2^24 over the number of micro-batches stay exact.
        """
        if self.count == 1:
            return rows
        rows, mine = jnp.asarray(rows, jnp.float32), jnp.arange(self.count) == self.number
        # The mean over micro-batches, of which one has the row.
        placed = jnp.where(mine.reshape(1, -1, *(1,) * (rows.ndim - 1)), self.count * rows[:, None], 0.0)
        return self.mean(placed.reshape(-1, *rows.shape[1:]))


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The key of a random stream: what is drawn from it does not depend on which other streams there are.

    Args:
      key: one, or one of each example.
      name: of the stream, unique among those of ``key``.
    """
    number = zlib.crc32(name.encode())
    if not key.ndim:
        return jax.random.fold_in(key, number)
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(key)


def example_keys(key: jax.Array, size: int) -> jax.Array:
    """A key for each of ``size`` examples; keys of examples stay as they are."""
    return key if key.ndim else MicroBatch().keys(key, size)


def draw(sampler: Callable[..., Array], keys: jax.Array, shape: Sequence[int]) -> Array:
    """Random numbers of ``shape`` by ``sampler(key, shape)``, each row of the leading axis from the key of its own."""
    return jax.vmap(lambda key: sampler(key, tuple(shape[1:])))(keys)


def split_keys(key: jax.Array, count: int) -> jax.Array:
    """``count`` keys, or as many for each example, ``[count, …]``."""
    if not key.ndim:
        return jax.random.split(key, count)
    return jnp.moveaxis(jax.vmap(functools.partial(jax.random.split, num=count))(key), 1, 0)
