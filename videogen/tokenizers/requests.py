"""What an adaptive tokenizer is asked for: a mean error per clip, of a grid of errors, in at most so many tokens.

KARL (arXiv 2507.07995, sections 2 and 4 and its public code). Errors are means of ``|reconstruction - clip|`` over the
pixels of a clip, of values in [-1, 1].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.nn import draw

BINS = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32),
    0.38,
)
"""The errors that can be asked for: those of the public code; the paper lists another grid from 0 to 0.4."""

NEAR_LOSSLESS = 0.04
"""Errors up to this are asked for in the pass that finds out what so many tokens can do."""

DRIFT = 0.99
"""The share of its probability that an error keeps in a step whose smallest error was no larger."""


class Request(NamedTuple):
    """What is asked of a tokenizer that decides for itself how many tokens a clip needs (``Tokenizer.adapts``).

    Attributes:
      error: the largest error of a clip, above 0, one number or ``[batch]``, rounded up to one of ``BINS``. It is what
        is asked for, and no promise. ``None``: the tokenizer's own.
      budget: the most tokens of a clip, the first ones; ``None``: all.
    """

    error: float | Float[Array, "batch"] | None = None
    budget: int | None = None


def bin_of(error: float | Float[Array, "*batch"]) -> Int[Array, "*batch"]:
    """The first of ``BINS`` that is not below an error; the last one for all that are larger."""
    return jnp.minimum(jnp.searchsorted(jnp.asarray(BINS, jnp.float32), error), len(BINS) - 1)


def harder(bins: Int[Array, "batch"], keys: jax.Array) -> Int[Array, "batch"]:
    """For each example one of the bins below its own, all equally likely; the first stays."""
    return jax.vmap(lambda key, last: jax.random.randint(key, (), 0, last))(keys, bins)


def easier(bins: Int[Array, "batch"], keys: jax.Array) -> Int[Array, "batch"]:
    """For each example one of the bins above its own, all equally likely; the last stays."""
    drawn = jax.vmap(lambda key, own: jax.random.randint(key, (), own + 1, len(BINS)))(keys, bins)
    return jnp.minimum(drawn, len(BINS) - 1)


class Shares(nnx.Variable):
    """How likely each of ``BINS`` is to be drawn; state of the run that no gradient trains."""


class RequestedErrors(nnx.Module):
    """Which errors are asked for where the best possible is wanted; they drift to those that are not yet reached.

    At first the bins up to ``NEAR_LOSSLESS`` are equally likely. Every step multiplies the shares of all bins that the
    smallest error of the batch does not exceed by ``DRIFT``, and all are scaled to a sum of 1.
    """

    def __init__(self):
        near = np.asarray(BINS) <= NEAR_LOSSLESS
        self.shares = Shares(jnp.asarray(near / near.sum(), jnp.float32))

    def draw(self, keys: jax.Array) -> Int[Array, "batch"]:
        """A bin for each key."""
        shares = jnp.log(self.shares.get_value())
        return draw(lambda key, _: jax.random.categorical(key, shares), keys, keys.shape)

    def update(self, smallest: Float[Array, ""]) -> None:
        """Moves the shares, once per step, by the smallest error of the step's whole batch."""
        shares = self.shares.get_value()
        shares = jnp.where(jnp.asarray(BINS, jnp.float32) >= smallest, DRIFT * shares, shares)
        self.shares.set_value(shares / shares.sum())
