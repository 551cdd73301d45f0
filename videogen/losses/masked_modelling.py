"""Which visual tokens and which words are masked, and what a network sees in their place (VIOLET; Fu et al., 2021;
BERT; Devlin et al., 2019).

The loss is the term ``cross_entropy`` of a pass whose logits are the network's at all places, whose ids are those of a
frozen tokenizer (or the words), and whose ``exists`` is one of these masks. Masks are drawn by the task before the
forward pass, from a key of each example. Counts are of the places that may be masked: never [CLS], never padding.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.ranges import Share

Keys = Array
"""A random key of each example, ``[batch]``."""

LARGEST_SIDE = 2 / 3
"""A block covers at most this share of the height and of the width of a frame."""

BLOCKS = 64
"""Blocks that are drawn of each example; what they leave open is masked last."""


def _first(
    order: Float[Array, "places"], exists: Bool[Array, "places"], count: Int[Array, ""]
) -> Bool[Array, "places"]:
    """The ``count`` places with the least values among those that exist."""
    rank = jnp.argsort(jnp.argsort(jnp.where(exists, order, jnp.inf), stable=True), stable=True)
    return exists & (rank < count)


def block_mask(keys: Keys, grid: tuple[int, int, int], ratio: Share) -> Bool[Array, "batch tokens"]:
    """Random boxes of a grid ``(time, height, width)``, one after another until ``floor(ratio · tokens)`` places are
    masked; the last box is cut in raster order, so that the count is exact on every grid.

    A box is up to all frames long and up to ``LARGEST_SIDE`` of a frame high and wide. What no box has covered follows
    in random order.
    """
    tokens = math.prod(grid)
    # A product that is whole but for rounding counts as whole.
    count = math.floor(ratio * tokens + 1e-6)

    def one(key: Array) -> Array:
        boxes, rest = jax.random.split(key)
        start, stop = drawn_boxes(boxes, grid)
        places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(1, tokens, 3)
        inside = ((places >= start[:, None]) & (places < stop[:, None])).all(-1)
        covered = jnp.where(inside.any(0), jnp.argmax(inside, axis=0), BLOCKS)
        within = jnp.where(covered < BLOCKS, jnp.arange(tokens) / tokens, jax.random.uniform(rest, (tokens,)))
        return _first(covered + 0.999 * within, jnp.ones(tokens, bool), count)

    return jax.vmap(one)(keys)


def drawn_boxes(key: Array, grid: tuple[int, int, int]) -> tuple[Int[Array, "boxes 3"], Int[Array, "boxes 3"]]:
    """First and last place (exclusive) along time, height and width of ``BLOCKS`` random boxes inside a grid."""
    most = np.array([grid[0], *(max(1, int(LARGEST_SIDE * side)) for side in grid[1:])])
    sizes, corners = jax.random.uniform(key, (2, BLOCKS, 3))
    size = jnp.minimum(1 + jnp.floor(sizes * most), most).astype(jnp.int32)
    room = jnp.asarray(grid) - size
    start = jnp.minimum(jnp.floor(corners * (room + 1)), room).astype(jnp.int32)
    return start, start + size


def attended_mask(
    keys: Keys, mass: Float[Array, "batch tokens"], exists: Bool[Array, "batch tokens"], ratio: Share
) -> Bool[Array, "batch tokens"]:
    """Exactly ``round(ratio · n)`` of the ``n`` places that exist, drawn without replacement in proportion to ``mass``.

    Args:
      keys: of the examples.
      mass: at least 0: the attention that a token got in a pass without masks (``nn.attend(…, probe=…)``); where it is
        even, places are drawn evenly.
      exists: places that may be masked; [CLS] and padding do not.
      ratio: of those that are masked.
    """

    def one(key: Array, mass: Array, exists: Array) -> Array:
        score = jnp.log(jnp.maximum(mass.astype(jnp.float32), jnp.finfo(jnp.float32).tiny))
        score = score + jax.random.gumbel(key, mass.shape)
        return _first(-score, exists, jnp.floor(ratio * exists.sum() + 0.5))

    return jax.vmap(one)(keys, mass, exists)


def block_or_attended_mask(
    keys: Keys, mass: Float[Array, "batch tokens"], grid: tuple[int, int, int], ratio: Share, blocks: Share = 0.5
) -> Bool[Array, "batch tokens"]:
    """``block_mask`` with probability ``blocks``, else ``attended_mask``, of every example for itself (VIOLET)."""
    parts = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    chosen = jax.vmap(jax.random.uniform)(parts[:, 0]) < blocks
    attended = attended_mask(parts[:, 2], mass, jnp.ones(mass.shape, bool), ratio)
    return jnp.where(chosen[:, None], block_mask(parts[:, 1], grid, ratio), attended)


def without_masked(
    pixels: Float[Array, "batch time height width channel"],
    mask: Bool[Array, "batch tokens"],
    grid: tuple[int, int, int],
) -> Float[Array, "batch time height width channel"]:
    """The clips with zeros where their tokens are masked, so that masked pixels do not reach the network.

    Args:
      pixels: preprocessed frames.
      mask: of the tokens of ``grid``, in raster order.
      grid: ``(time, height, width)``, which must divide the sides of the clips.

    Raises:
      UserError: it does not.
    """
    shown = ~mask.reshape(-1, *grid)
    for axis, size in enumerate(token_size(pixels.shape[1:4], grid), 1):
        shown = jnp.repeat(shown, size, axis=axis)
    return jnp.where(shown[..., None], pixels, 0)


def token_size(clip: tuple[int, int, int], grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """Frames, rows and columns of pixels of a token, where clips have so many and their tokens lie on ``grid``.

    Raises:
      UserError: the grid does not divide the clips.
    """
    for name, side, places in zip(("frames", "rows", "columns"), clip, grid, strict=True):
        if side % places:
            raise UserError(f"{side} {name} of pixels do not divide into {places} tokens")
    return clip[0] // grid[0], clip[1] // grid[1], clip[2] // grid[2]


def word_mask(keys: Keys, words: Int[Array, "batch tokens"], ratio: Share = 0.15) -> Bool[Array, "batch tokens"]:
    """``round(ratio · n)`` of the ``n`` words of every text, at least one unless ``ratio`` is 0, each with all of its
    pieces.

    Args:
      keys: of the texts.
      words: the number of the word of every piece, from 0; -1 for padding and markers. Pieces that are numbered one by
        one are masked one by one.
      ratio: of the words.
    """

    def one(key: Array, words: Array) -> Array:
        places = words.shape[0]
        there = jnp.zeros(places + 1, bool).at[jnp.where(words >= 0, words, places)].set(True)[:places]
        least = jnp.minimum(1, there.sum()) if ratio > 0 else 0
        count = jnp.maximum(jnp.floor(ratio * there.sum() + 0.5), least)
        chosen = _first(jax.random.uniform(key, (places,)), there, count)
        return (words >= 0) & chosen[jnp.maximum(words, 0)]

    return jax.vmap(one)(keys, words)


def disguised(
    keys: Keys,
    ids: Int[Array, "batch tokens"],
    mask: Bool[Array, "batch tokens"],
    masked_id: int,
    vocabulary: int,
    shares: tuple[Share, Share] = (0.8, 0.1),
) -> Int[Array, "batch tokens"]:
    """The ids with those of the mask replaced: by ``masked_id``, by any id, or not at all (BERT: 80 %, 10 %, 10 %)."""

    def one(key: Array, ids: Array, mask: Array) -> Array:
        what, which = jax.random.split(key)
        u = jax.random.uniform(what, ids.shape)
        drawn = jax.random.randint(which, ids.shape, 0, vocabulary, ids.dtype)
        found = jnp.where(u < shares[0], masked_id, jnp.where(u < sum(shares), drawn, ids))
        return jnp.where(mask, found, ids)

    return jax.vmap(one)(keys, ids, mask)
