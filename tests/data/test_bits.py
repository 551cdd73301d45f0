"""Codes as bits: golden bytes, every road there and back, and what is no clip."""

import numpy as np
import pytest

from videogen.data.bits import pack, size, unpack, width
from videogen.errors import UserError


def test_golden_bytes():
    """Most significant bit first (users' notes on tokens, case 4)."""
    assert pack(np.array([[1], [2], [4095]]), (4096,)) == bytes.fromhex("001002fff0")
    # Lopsided ids of 18 bits: 1 and 2^17.
    assert pack(np.array([[1], [131072]]), (262144,)) == bytes.fromhex("0000600000")
    # Two levels of 2 and 3 bits: 01 100, 11 111.
    assert pack(np.array([[1, 4], [3, 7]]), (4, 8)) == bytes([0b01100111, 0b11000000])


def test_widths():
    assert [width(codes) for codes in (1, 2, 3, 4, 5, 4096, 64000)] == [0, 1, 2, 2, 3, 12, 16]


@pytest.mark.parametrize("vocabulary", [(4096,), (2, 3, 5), (1, 7), (64000,)])
@pytest.mark.parametrize("tokens", [1, 2, 9, 256])
def test_there_and_back(vocabulary, tokens):
    rng = np.random.default_rng(tokens)
    codes = rng.integers(0, vocabulary, (tokens, len(vocabulary)))
    content = pack(codes, vocabulary)
    assert len(content) == size(tokens, vocabulary) == -(-tokens * sum(map(width, vocabulary)) // 8)
    found, kept = unpack(content, tokens, vocabulary)
    np.testing.assert_array_equal(found, codes)
    assert kept is None
    for count in {1, tokens // 2 + 1, tokens}:
        first = np.arange(tokens) < count
        content = pack(codes, vocabulary, first)
        assert len(content) == size(tokens, vocabulary, count)
        found, kept = unpack(content, tokens, vocabulary, some=True)
        np.testing.assert_array_equal(kept, first)
        np.testing.assert_array_equal(found, np.where(first[:, None], codes, 0))
    some = rng.random(tokens) < 0.5
    content = pack(codes, vocabulary, some, prefix=False)
    assert len(content) == size(tokens, vocabulary, int(some.sum()), prefix=False)
    found, kept = unpack(content, tokens, vocabulary, some=True, prefix=False)
    np.testing.assert_array_equal(kept, some)
    np.testing.assert_array_equal(found, np.where(some[:, None], codes, 0))


def test_the_set_of_kept_tokens_is_counted():
    """150 of 256 tokens at 12 bits are 1,800 bits, and 256 more say which (case 2); a prefix says it in 8."""
    assert size(256, (4096,), 150, prefix=False) == (1800 + 256) // 8
    assert size(256, (4096,), 150) == (1800 + 8) // 8
    assert size(256, (4096,)) == 384


def test_what_is_no_clip_is_refused():
    for codes in ([[4096]], [[-1]]):
        with pytest.raises(UserError, match="must lie in 0 … 4095"):
            pack(np.array(codes), (4096,))
    for kept in ([False, True], [False, False]):
        with pytest.raises(UserError, match="no first part of all"):
            pack(np.zeros((2, 1), int), (4,), np.array(kept))
    with pytest.raises(UserError, match="3 tokens of a clip take 5 bytes, and here are 4"):
        unpack(bytes(4), 3, (4096,))
    with pytest.raises(UserError, match="0 bytes are too few for a clip of 9 tokens"):
        unpack(b"", 9, (4096,), some=True)
    # Two bits hold 3, and there are three codes only.
    with pytest.raises(UserError, match="an id that the vocabulary does not have"):
        unpack(bytes([0b11000000]), 1, (3,))
