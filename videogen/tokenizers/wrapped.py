"""Tokenizers around another one."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.lengths import LengthRule
from videogen.tokens import Layout, Segment, Tokens


class Wrapped(Tokenizer):
    """Base of tokenizers around another one, ``self.tokenizer``, whose tokens and promises are theirs."""

    tokenizer: Tokenizer

    @property
    def compression(self) -> Compression:
        """Pixels per latent of the wrapped tokenizer."""
        return self.tokenizer.compression

    @property
    def quantizer(self) -> nnx.Module:
        """The quantizer of the wrapped tokenizer."""
        return self.tokenizer.quantizer

    @property
    def coder(self) -> Tokenizer:
        return self.tokenizer.coder

    @property
    def compressions(self) -> Mapping[str, Compression]:
        return self.tokenizer.compressions

    def centres(self, shape: VideoShape) -> dict[str, Float[np.ndarray, "time height width 3"]]:
        return self.tokenizer.centres(shape)

    @property
    def sides(self) -> tuple[str, ...]:
        return self.tokenizer.sides

    @property
    def lengths(self) -> LengthRule:
        return self.tokenizer.lengths

    @property
    def normalised(self) -> bool:
        return self.tokenizer.normalised

    @property
    def prefix_equal(self) -> bool:
        return self.tokenizer.prefix_equal

    @property
    def streams(self) -> bool:
        return self.tokenizer.streams

    @property
    def growing(self) -> tuple[str, ...]:
        return tuple(self.tokenizer.growing)

    @property
    def diffuses(self) -> bool:
        return self.tokenizer.diffuses

    @property
    def scales(self) -> bool:
        return self.tokenizer.scales

    @property
    def residual(self) -> bool:
        return self.tokenizer.residual

    def layout(self, shape: VideoShape) -> Layout:
        return self.tokenizer.layout(shape)

    def layout_of(self, lengths: Sequence[int]) -> Layout:
        return self.tokenizer.layout_of(lengths)

    def encode(self, video: Video, request: Any = None) -> Encoded:
        return self.tokenizer.encode(video, request)

    def encode_chunk(self, cache: Any, chunk: Video) -> tuple[Any, Encoded]:
        return self.tokenizer.encode_chunk(cache, chunk)

    def bottleneck(
        self, encoded: Encoded, **settings: Any
    ) -> tuple[Latents, Tokens, dict[str, Float[Array, ""]], dict[str, Any]]:
        return self.tokenizer.bottleneck(encoded, **settings)

    def update(self, sums: Mapping[str, Any], candidates: Any, key: jax.Array | None = None) -> None:
        self.tokenizer.update(sums, candidates, key)

    def lookup(self, tokens: Tokens) -> Latents:
        return self.tokenizer.lookup(tokens)

    def partial(self, tokens: Tokens, segment: str, *, through: bool = False) -> Float[Array, "batch *sides width"]:
        return self.tokenizer.partial(tokens, segment, through=through)

    def relabel(self, encoded: Encoded, tokens: Tokens, segment: str) -> Segment:
        return self.tokenizer.relabel(encoded, tokens, segment)
