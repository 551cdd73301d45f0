"""Codes as bits: golden bytes, every road there and back, and what is no clip."""

import numpy as np
import pytest

from videogen.data.bits import Packing, width
from videogen.errors import UserError
from videogen.tokens import Layout, SegmentLayout


def packing(tokens: int, vocabulary: tuple[int, ...], kept: str = "all") -> Packing:
    return Packing(Layout.of(row=SegmentLayout((("query", tokens),), vocabulary)), kept)


def test_golden_bytes():
    """Most significant bit first (users' notes on tokens, case 4)."""
    assert packing(3, (4096,)).pack({"row": np.array([[1], [2], [4095]])}) == bytes.fromhex("001002fff0")
    # Lopsided ids of 18 bits: 1 and 2^17.
    assert packing(2, (262144,)).pack({"row": np.array([[1], [131072]])}) == bytes.fromhex("0000600000")
    # Two levels of 2 and 3 bits: 01 100, 11 111.
    assert packing(2, (4, 8)).pack({"row": np.array([[1, 4], [3, 7]])}) == bytes([0b01100111, 0b11000000])
    # The first two of three, 2 bits each: 01 says two.
    first = np.array([True, True, False])
    assert packing(3, (4,), "prefix").pack({"row": np.array([[3], [1], [2]])}, first) == bytes([0b01110100])
    # The first and the last, which 101 says.
    some = np.array([True, False, True])
    assert packing(3, (4,), "set").pack({"row": np.array([[3], [1], [2]])}, some) == bytes([0b10111100])


def test_segments_follow_one_another_without_a_gap():
    sides = {"coarse": SegmentLayout((("time", 1),), (8,)), "fine": SegmentLayout((("time", 1), ("width", 2)), (2, 2))}
    codes = {"coarse": np.array([[5]]), "fine": np.array([[[1, 0], [0, 1]]])}
    whole = Packing(Layout.of(**sides))
    assert whole.pack(codes) == bytes([0b10110010]) and whole.size() == 1
    part = Packing(Layout.of(**sides), "prefix")
    # 01: the first two of three tokens.
    kept = np.array([True, True, False])
    assert part.pack(codes, kept) == bytes([0b01101100])
    found, said = part.unpack(bytes([0b01101100]))
    np.testing.assert_array_equal(said, kept)
    np.testing.assert_array_equal(found["coarse"], [[5]])
    np.testing.assert_array_equal(found["fine"], [[[1, 0], [0, 0]]])


def test_every_row_keeps_as_many():
    rows = Packing(Layout.of(row=SegmentLayout((("time", 2), ("query", 3)), (4,))), "prefix")
    codes, kept = {"row": np.array([[[3], [1], [2]], [[0], [2], [1]]])}, np.array([True, True, False] * 2)
    # 01: two of each row of three.
    assert rows.pack(codes, kept) == bytes([0b01110100, 0b10000000]) and rows.size(kept) == 2
    found, said = rows.unpack(bytes([0b01110100, 0b10000000]))
    np.testing.assert_array_equal(said, kept)
    np.testing.assert_array_equal(found["row"][..., 0], [[3, 1, 0], [0, 2, 0]])
    with pytest.raises(UserError, match="no first part of all"):
        rows.pack(codes, np.array([True, True, False, True, False, False]))


def test_widths():
    assert [width(codes) for codes in (1, 2, 3, 4, 5, 4096, 64000)] == [0, 1, 2, 2, 3, 12, 16]


@pytest.mark.parametrize("vocabulary", [(4096,), (2, 3, 5), (1, 7), (64000,)])
@pytest.mark.parametrize("tokens", [1, 2, 9, 256])
def test_there_and_back(vocabulary, tokens):
    rng = np.random.default_rng(tokens)
    codes = {"row": rng.integers(0, vocabulary, (tokens, len(vocabulary)))}
    prefixes = [np.arange(tokens) < count for count in {1, tokens // 2 + 1, tokens}]
    sets = [rng.random(tokens) < 0.5, np.zeros(tokens, bool), np.ones(tokens, bool)]
    for kind, masks in {"all": [np.ones(tokens, bool)], "prefix": prefixes, "set": sets}.items():
        how = packing(tokens, vocabulary, kind)
        said = {"all": 0, "prefix": width(tokens), "set": tokens}[kind]
        for mask in masks:
            content = how.pack(codes, mask)
            assert len(content) == how.size(mask) == -(-(said + mask.sum() * sum(map(width, vocabulary))) // 8)
            found, kept = how.unpack(content)
            np.testing.assert_array_equal(kept, mask)
            np.testing.assert_array_equal(found["row"], np.where(mask[:, None], codes["row"], 0))


def test_the_set_of_kept_tokens_is_counted():
    """150 of 256 tokens at 12 bits are 1,800 bits, and 256 more say which (case 2); a prefix says it in 8."""
    first = np.arange(256) < 150
    assert packing(256, (4096,), "set").size(first) == (1800 + 256) // 8
    assert packing(256, (4096,), "prefix").size(first) == (1800 + 8) // 8
    assert packing(256, (4096,)).size() == 384


def test_what_is_no_clip_is_refused():
    for codes in ([[4096]], [[-1]]):
        with pytest.raises(UserError, match="must lie in 0 … 4095"):
            packing(1, (4096,)).pack({"row": np.array(codes)})
    for kept in ([False, True], [False, False]):
        with pytest.raises(UserError, match="no first part of all"):
            packing(2, (4,), "prefix").pack({"row": np.zeros((2, 1), int)}, np.array(kept))
    with pytest.raises(UserError, match="all tokens are packed"):
        packing(2, (4,)).pack({"row": np.zeros((2, 1), int)}, np.array([True, False]))
    with pytest.raises(UserError, match="3 tokens of a clip take 5 bytes, and here are 4"):
        packing(3, (4096,)).unpack(bytes(4))
    with pytest.raises(UserError, match="0 bytes are too few for a clip of 9 tokens"):
        packing(9, (4096,), "prefix").unpack(b"")
    # Two bits hold 3, and there are three codes only.
    with pytest.raises(UserError, match="an id that the vocabulary does not have"):
        packing(1, (3,)).unpack(bytes([0b11000000]))
    with pytest.raises(UserError, match="no bits to write"):
        Packing(Layout.of(row=SegmentLayout((("query", 2),), (), 3)))
    with pytest.raises(UserError, match="kept"):
        packing(2, (4,), "some")
