"""Tokens of a batch, and those of several segments as one row for generators that draw one token after another."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from videogen.data.token_files import MASKS, PREFIX
from videogen.errors import UserError
from videogen.generators import Generator
from videogen.generators.disturbance import Relabel, disturbed
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape
from videogen.tasks.base import Batch, to_video
from videogen.tokenizers import Tokenizer
from videogen.tokens import Layout, Segment, Tokens


def tokens_of(batch: Batch, tokenizer: Tokenizer | None, layout: Layout, keys: jax.Array | None = None) -> Tokens:
    """Tokens of a batch: from the token cache, or by the frozen tokenizer.

    Args:
      batch: with ``tokens/SEGMENT``, or with what the tokenizer encodes (``Tokenizer.field``).
      tokenizer: of clips.
      layout: of tokens that come from a cache.
      keys: one of each clip, for a tokenizer that draws.
    """
    if not any(name.startswith(PREFIX) for name in batch):
        return tokenizer.tokenize(to_video(batch[tokenizer.field]), keys=keys)
    segments = {}
    for name, segment in layout.segments:
        values, masks = batch[f"{PREFIX}{name}"], (batch.get(f"{PREFIX}{name}/{mask}") for mask in MASKS)
        segments[name] = Segment(values.reshape(-1, *segment.shape, segment.width), segment, *masks)
    return Tokens.of(**segments)


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


def relabel_of(tokenizer: Tokenizer, batch: Batch) -> Relabel | None:
    """``Tokenizer.relabel`` of the clips of a batch; ``None`` where only their tokens are there."""
    if "video" not in batch:
        return None
    return functools.partial(tokenizer.relabel, jax.lax.stop_gradient(tokenizer.encode(to_video(batch["video"]))))


def in_row(
    tokens: Tokens, row: Layout, generator: Generator, relabel: Relabel | None, key: jax.Array, micro: MicroBatch
) -> tuple[Tokens, dict[str, Tokens]]:
    """Tokens of several segments in one row, and what is shown of them: ``{"inputs": …}``, or nothing where it is they.

    Args:
      tokens: of the clips.
      row: ``row_of`` their layout.
      generator: which learns them.
      relabel: of a residual tokenizer in training: where the generator is shown wrong ids, the later ones change.
      key: decides which.
      micro: which examples of the batch these are.
    """
    shown = {}
    if relabel is not None and generator.token_drop > 0:
        seen, tokens = disturbed(tokens, relabel, generator.token_drop, generator.head, key, micro)
        shown["inputs"] = Tokens.single(seen.flat, row)
    return Tokens.single(tokens.flat, row), shown
