"""A tokenizer with continuous latents whose tokens are normalised (``videogen.tokenizers.normaliser``)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.nn import MicroBatch
from videogen.shapes import Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.normaliser import Normaliser
from videogen.tokenizers.wrapped import Wrapped
from videogen.tokens import Layout, Tokens


class Normalised(Wrapped):
    """Its tokens are normalised latents, and ``lookup`` gives the raw ones back; its networks see raw ones only.

    The statistics are part of it: they are saved, exported and hashed with its weights, so that a token cache and a
    generator of other statistics are refused like those of another tokenizer.

    Args:
      tokenizer: one with continuous latents; it stays as it is.
      normaliser: of its latents.

    Raises:
      UserError: a tokenizer with codes, one that is normalised already, or without latent frames where these have
        statistics of their own.
    """

    normalised = True

    def __init__(self, tokenizer: Tokenizer, normaliser: Normaliser):
        if tokenizer.vocabulary:
            raise UserError("a normaliser is for continuous latents, and this tokenizer gives codes")
        if tokenizer.normalised:
            raise UserError("the latents of this tokenizer are normalised already")
        if normaliser.frames and tokenizer.sides[0] != "time":
            raise UserError("the tokens of this tokenizer have no latent frames; normalise them by channel")
        self.tokenizer, self.normaliser = tokenizer, normaliser

    @property
    def coder(self) -> Tokenizer:
        return self

    @property
    def drops(self) -> bool:
        return self.tokenizer.drops

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the last layer of the decoder."""
        return ("tokenizer", *self.tokenizer.last_layer)

    @property
    def drawn_with(self) -> Mapping[str, Any]:
        """How the tokenizer draws."""
        return self.tokenizer.drawn_with

    @property
    def streams(self) -> bool:
        # A chunk does not know which latent frames of the clip it holds.
        return self.tokenizer.streams and not self.normaliser.frames

    def layout(self, shape: VideoShape) -> Layout:
        return self._own(self.tokenizer.layout(shape))

    def layout_of(self, lengths: Sequence[int]) -> Layout:
        return self._own(self.tokenizer.layout_of(lengths))

    def _own(self, layout: Layout) -> Layout:
        width = self.normaliser.width
        return Layout(tuple((name, dataclasses.replace(s, channels=width)) for name, s in layout.segments))

    def bottleneck(
        self, encoded: Encoded, **settings: Any
    ) -> tuple[Latents, Tokens, dict[str, Float[Array, ""]], dict[str, Any]]:
        """As of the tokenizer, with normalised tokens; the latents are raw, as ``decode`` takes them."""
        latents, tokens, losses, measured = self.tokenizer.bottleneck(encoded, **settings)
        values, layout = self.normaliser.normalise(tokens.only.values), self._own(tokens.layout).only
        segment = dataclasses.replace(tokens.only, values=values, layout=layout)
        return latents, tokens.replace(**{tokens.names[0]: segment}), losses, measured

    def lookup(self, tokens: Tokens) -> Latents:
        """The raw latents of normalised ones."""
        return self.normaliser.restore(tokens.only.values)

    def decode(self, latents: Latents, kept: Any = None, **settings: Any) -> Video:
        return self.tokenizer.decode(latents, **({} if kept is None else {"kept": kept}), **settings)

    def decode_chunk(self, cache: Any, latents: Latents) -> tuple[Any, Video]:
        return self.tokenizer.decode_chunk(cache, latents)

    def denoise(
        self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None, **seen: Any
    ) -> Video:
        return self.tokenizer.denoise(latents, video, key, micro, **seen)
