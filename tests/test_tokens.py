"""Segments of tokens: sides, masks, order, bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.shapes import TokenGrid
from videogen.tokens import Layout, Segment, SegmentLayout, Tokens

VIDEO = SegmentLayout((("time", 3), ("height", 2), ("width", 4)), (8, 4))
QUERIES = SegmentLayout((("time", 3), ("query", 5)), channels=6)


def video(batch: int = 2, **masks) -> Segment:
    return Segment(jnp.zeros((batch, *VIDEO.shape, 2), jnp.int32), VIDEO, **masks)


def queries(batch: int = 2, **masks) -> Segment:
    return Segment(jnp.zeros((batch, *QUERIES.shape, 6)), QUERIES, **masks)


def test_a_layout_counts_its_tokens_and_is_a_grid():
    assert (VIDEO.tokens, VIDEO.width, VIDEO.bits, VIDEO.length("time"), VIDEO.length("query")) == (24, 2, 5.0, 3, 1)
    assert VIDEO.grid == TokenGrid(3, 2, 4, 2)
    assert QUERIES.grid == TokenGrid(3, 1, 5, 0) and QUERIES.width == 6 and QUERIES.bits == np.inf
    assert SegmentLayout((("query", 7),), (16,)).grid == TokenGrid(1, 1, 7, 1)
    longer = VIDEO.with_length("time", 5)
    assert longer.shape == (5, 2, 4) and longer.vocabulary == VIDEO.vocabulary and VIDEO.shape == (3, 2, 4)
    with pytest.raises(UserError, match="time, height, width; it has no 'query'"):
        VIDEO.with_length("query", 5)


@pytest.mark.parametrize("settings", [{}, {"vocabulary": (2,), "channels": 3}])
def test_a_segment_holds_codes_or_floats(settings):
    with pytest.raises(UserError, match="one of the two"):
        SegmentLayout((("query", 2),), **settings)


def test_segments_keep_their_order_through_a_program():
    tokens = Tokens.of(video=video(), audio=queries())
    back = jax.jit(lambda tokens: tokens)(tokens)
    assert back.names == ("video", "audio") and back.layout == Layout.of(video=VIDEO, audio=QUERIES)
    assert back["audio"].values.shape == (2, 3, 5, 6) and back.layout.tokens == 24 + 15
    assert [name for name, _ in back.replace(video=queries()).items()] == ["video", "audio"]
    assert back.replace(video=queries()).layout["video"] == QUERIES
    for call in (lambda: back["pose"], lambda: back.replace(pose=video())):
        with pytest.raises(UserError, match="no segment 'pose', only video, audio"):
            call()
    for several in (back, back.layout):
        with pytest.raises(UserError, match="one segment .* got video, audio"):
            _ = several.only
    assert Tokens.of(video=video()).only.layout == Layout.of(video=VIDEO).only == VIDEO


def test_a_token_is_seen_when_it_exists_and_is_kept():
    exists, kept = np.random.default_rng(0).random((2, 2, *VIDEO.shape)) < 0.5
    assert video().seen is None
    np.testing.assert_array_equal(video(exists=exists).seen, exists)
    np.testing.assert_array_equal(video(kept=kept).seen, kept)
    np.testing.assert_array_equal(video(exists=exists, kept=kept).seen, exists & kept)


def test_bits_are_those_of_the_tokens_that_are_seen():
    kept = np.zeros((2, *VIDEO.shape), bool)
    kept[0, 0], kept[1, 0, 0, 0] = True, True
    np.testing.assert_array_equal(Tokens.of(video=video(kept=jnp.asarray(kept))).bits(), [8 * 5.0, 5.0])
    np.testing.assert_array_equal(Tokens.of(a=video(), b=video(kept=jnp.asarray(kept))).bits(), [160.0, 125.0])


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "pixels", "rate"),
    [
        (32, (4096,), 256 * 256, 384 / 65536),
        (4 * 16 * 16, (1024,), 16 * 128 * 128, 0.0390625),
        (10, (8, 4), 100, 0.5),
    ],
)
def test_bits_per_pixel_of_published_settings(tokens, vocabulary, pixels, rate):
    segment = SegmentLayout((("query", tokens),), vocabulary)
    assert Layout.of(video=segment).bits / pixels == pytest.approx(rate)
    assert Layout.of(a=segment, b=segment).bits / pixels == pytest.approx(2 * rate)


def test_segments_one_after_another():
    a, b = SegmentLayout((("height", 2), ("width", 2)), (9,)), SegmentLayout((("query", 3),), (9,))
    values = jnp.arange(8).reshape(2, 2, 2, 1), jnp.arange(8, 14).reshape(2, 3, 1)
    tokens = Tokens.of(a=Segment(values[0], a), b=Segment(values[1], b))
    np.testing.assert_array_equal(tokens.flat[..., 0], [[0, 1, 2, 3, 8, 9, 10], [4, 5, 6, 7, 11, 12, 13]])


def test_values_and_masks_have_the_shape_of_the_layout():
    video(exists=jnp.ones((2, *VIDEO.shape), bool)).check()
    with pytest.raises(UserError, match=r"tokens are \[2, 3, 2, 4, 2\], got \[2, 3, 2, 4\]"):
        Segment(jnp.zeros((2, 3, 2, 4), jnp.int32), VIDEO).check()
    with pytest.raises(UserError, match=r"kept is \[2, 3, 2, 4\], got \[2, 24\]"):
        video(kept=jnp.ones((2, 24), bool)).check()
