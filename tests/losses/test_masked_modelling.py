"""Masks of visual tokens and of words: exact counts, where they may lie, and what the network sees instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.losses import masked_modelling
from videogen.losses.masked_modelling import drawn_boxes, without_masked

attended_mask = jax.jit(masked_modelling.attended_mask, static_argnums=3)
block_mask = jax.jit(masked_modelling.block_mask, static_argnums=(1, 2))
block_or_attended_mask = jax.jit(masked_modelling.block_or_attended_mask, static_argnums=(2, 3, 4))
disguised = jax.jit(masked_modelling.disguised, static_argnums=(3, 4))
word_mask = jax.jit(masked_modelling.word_mask, static_argnums=2)

KEYS = jax.random.split(jax.random.key(0), 64)


@pytest.mark.parametrize(
    ("grid", "ratio", "count"),
    [((1, 16, 4), 0.9, 57), ((4, 7, 7), 0.15, 29), ((1, 1, 64), 0.5, 32), ((1, 8, 4), 0.0, 0), ((2, 3, 3), 1.0, 18)],
)
def test_blocks_mask_exactly_as_many_on_any_grid(grid, ratio, count):
    found = block_mask(KEYS, grid, ratio)
    assert found.sum(1).tolist() == [count] * len(KEYS)


def test_a_block_covers_at_most_two_thirds_of_a_frame():
    start, stop = (np.asarray(x) for x in drawn_boxes(jax.random.key(1), (4, 7, 9)))
    size = stop - start
    assert (start >= 0).all() and (stop <= [4, 7, 9]).all() and (size >= 1).all()
    assert size.max(0).tolist() == [4, 4, 6]  # floor(2/3 · 7), floor(2/3 · 9)


def test_blocks_hang_together():
    """Beside a masked place there is one far more often than the share of 15 % that single places would show."""
    found = np.asarray(block_mask(KEYS, (1, 14, 14), 0.15)).reshape(-1, 14, 14)
    beside = found[:, :, 1:] & found[:, :, :-1]
    assert beside.sum() / found[:, :, :-1].sum() > 0.5


def test_attended_masks_count_patches_alone():
    """49 patches and [CLS] at 15 %: 7 and not 8."""
    exists = jnp.arange(50)[None].repeat(64, 0) > 0
    found = attended_mask(KEYS, jnp.ones((64, 50)), exists, 0.15)
    assert found.sum(1).tolist() == [7] * 64 and not found[:, 0].any()
    padded = exists & (jnp.arange(50) < 31)
    found = attended_mask(KEYS, jnp.ones((64, 50)), padded, 0.15)
    assert found.sum(1).tolist() == [5] * 64 and not found[:, 31:].any()  # round(4.5)
    for ratio, count in ((0.0, 0), (1.0, 49)):
        assert attended_mask(KEYS, jnp.ones((64, 50)), exists, ratio).sum(1).tolist() == [count] * 64


def test_attention_draws_places_and_even_attention_draws_evenly():
    keys = jax.random.split(jax.random.key(2), 4000)
    exists = jnp.ones((4000, 4), bool)
    mass = jnp.broadcast_to(jnp.array([0.4, 0.3, 0.2, 0.1]), (4000, 4))
    shares = attended_mask(keys, mass, exists, 0.25).mean(0)
    np.testing.assert_allclose(shares, [0.4, 0.3, 0.2, 0.1], atol=0.03)
    np.testing.assert_allclose(attended_mask(keys, jnp.ones((4000, 4)), exists, 0.25).mean(0), 0.25, atol=0.03)
    # Places without any attention are drawn when no others are left.
    nothing = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0, 1.0]), (4000, 4))
    assert attended_mask(keys, nothing, exists, 0.5).mean(0).tolist() == [1, 0, 0, 1]


def test_a_coin_decides_between_blocks_and_attention():
    mass = jnp.broadcast_to(jnp.arange(16.0) ** 8, (64, 16))
    for share, expected in ((1.0, 4), (0.0, 4), (0.5, 4)):
        assert block_or_attended_mask(KEYS, mass, (1, 4, 4), 0.25, share).sum(1).tolist() == [expected] * 64
    # Attention this sharp nearly always takes the last places; half of the masks are not so.
    last = block_or_attended_mask(KEYS, mass, (1, 4, 4), 0.25, 0.0)[:, 13:].sum(1) >= 2
    mixed = block_or_attended_mask(KEYS, mass, (1, 4, 4), 0.25, 0.5)[:, 13:].sum(1) >= 2
    assert float(last.mean()) > 0.95 and 0.3 < float(mixed.mean()) < 0.8


def test_masks_depend_on_the_key_of_their_example_alone():
    grid, mass = (2, 4, 4), jnp.ones((64, 32))
    whole = block_or_attended_mask(KEYS, mass, grid, 0.3)
    np.testing.assert_array_equal(block_or_attended_mask(KEYS[5:8], mass[5:8], grid, 0.3), whole[5:8])


def test_masked_pixels_do_not_reach_the_network():
    rng = np.random.default_rng(0)
    clip = jnp.asarray(rng.uniform(-1, 1, (3, 2, 8, 12, 3)), jnp.float32)
    mask = jnp.asarray(rng.random((3, 24)) < 0.4)
    grid = (2, 4, 3)
    found = without_masked(clip, mask, grid)
    where = np.repeat(np.repeat(np.asarray(mask).reshape(3, 2, 4, 3), 2, 2), 4, 3)
    np.testing.assert_array_equal(found, np.where(where[..., None], 0, clip))
    other = jnp.where(where[..., None], 9.0, clip)
    np.testing.assert_array_equal(without_masked(other, mask, grid), found)
    with pytest.raises(UserError, match="12 columns of pixels do not divide into 5 tokens"):
        without_masked(clip, jnp.zeros((3, 40), bool), (2, 4, 5))


WORDS = jnp.broadcast_to(jnp.array([-1, 0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, -1, -1]), (64, 16))
"""Ten words, of which word 1 has three pieces and word 3 two."""


def test_whole_words_are_masked():
    found = np.asarray(word_mask(KEYS, WORDS, 0.3))
    words = np.asarray(WORDS[0])
    assert not found[:, words < 0].any()
    for pieces in ([2, 3, 4], [6, 7]):
        assert (found[:, pieces].all(1) == found[:, pieces].any(1)).all()
    assert {len(set(words[row])) for row in found} == {3}
    np.testing.assert_allclose(found[:, 1].mean(), 0.3, atol=0.15)
    assert not word_mask(KEYS, WORDS, 0.0).any()
    np.testing.assert_array_equal(word_mask(KEYS, WORDS, 1.0), WORDS >= 0)
    short = jnp.broadcast_to(jnp.array([0, 1, -1]), (64, 3))
    assert word_mask(KEYS, short, 0.15).sum(1).tolist() == [1] * 64
    assert not word_mask(KEYS, jnp.full((64, 3), -1), 0.15).any()


def test_masked_words_are_hidden_replaced_or_left():
    keys = jax.random.split(jax.random.key(3), 2000)
    ids = jnp.broadcast_to(jnp.arange(8), (2000, 8))
    mask = ids < 4
    found = np.asarray(disguised(keys, ids, mask, 99, 50))
    np.testing.assert_array_equal(found[:, 4:], ids[:, 4:])
    hidden = (found[:, :4] == 99).mean()
    left = (found[:, :4] == np.asarray(ids[:, :4])).mean()
    assert hidden == pytest.approx(0.8, abs=0.02) and left == pytest.approx(0.1 + 0.1 / 50, abs=0.02)
