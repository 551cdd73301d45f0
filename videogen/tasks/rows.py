"""Tokens of several segments as one row, for generators that draw one token after another."""

import dataclasses
from typing import Any

import numpy as np

from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers import Tokenizer
from videogen.tokens import Layout


def check_one_size(section: Any) -> None:
    """Raises ``UserError`` where clips of several sizes are learned from: each would have segments of its own."""
    for key in ("buckets", "image_batch_size"):
        if section[key]:
            raise UserError(f"the tokens of this tokenizer are several segments: leave data.{key} out")


def row_of(layout: Layout) -> Layout:
    """The layout of all tokens one after another (``Tokens.flat``).

    Raises:
      UserError: the segments have different codes.
    """
    segments = [segment for _, segment in layout.segments]
    if len({(segment.vocabulary, segment.channels) for segment in segments}) > 1:
        raise UserError("the segments of this tokenizer have different codes; give its quantizers the same number")
    return Layout.of(row=dataclasses.replace(segments[0], sides=(("token", layout.tokens),)))


def centres_of(tokenizer: Tokenizer, shape: VideoShape) -> tuple[tuple[float, float, float], ...]:
    """Frame, row and column of the middle of every token of the row, in pixels: all segments share the units."""
    centres = tokenizer.centres(shape)
    places = [centres[name].reshape(-1, 3) for name in tokenizer.layout(shape).names]
    return tuple(map(tuple, np.concatenate(places).tolist()))
