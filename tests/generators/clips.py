"""Tokens on a grid, as tests of generators give and take them."""

from typing import Any

import jax

from videogen.shapes import TokenGrid
from videogen.tokens import Layout, SegmentLayout, Tokens


def layout_of(grid: TokenGrid, vocabulary: tuple[int, ...] = (), channels: int = 0) -> Layout:
    return Layout.of(video=SegmentLayout.on_grid(grid, vocabulary, channels))


def codes_of(values: jax.Array, grid: TokenGrid, vocabulary: tuple[int, ...] | int = 64, **masks: Any) -> Tokens:
    """Codes; a number is the size of every level's vocabulary."""
    if isinstance(vocabulary, int):
        vocabulary = (vocabulary,) * values.shape[-1]
    return Tokens.single(values, layout_of(grid, vocabulary), **masks)


def latents_of(values: jax.Array) -> Tokens:
    """Latents ``[batch, time, height, width, channels]``."""
    return Tokens.single(values, layout_of(TokenGrid(*values.shape[1:4]), channels=values.shape[-1]))
