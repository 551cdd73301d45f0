"""A tokenizer whose own decoder is replaced by a de-tokenizer trained on its codes (Divot, FlexTok)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.nn import Mean, MicroBatch, whole
from videogen.shapes import Latents, Video
from videogen.tokenizers.base import Encoded
from videogen.tokenizers.wrapped import Wrapped
from videogen.tokens import Tokens


class Detokenized(Wrapped):
    """Encoder and quantizer of one module, decoder of the other; the codes are those of the tokenizer.

    The de-tokenizer sees the code vectors that ids stand for, or the latents of a tokenizer without ids. It is causal:
    of a tokenizer without a first frame of its own (``Compression.first_alone``), it sees the first latent twice and
    what it makes of the first one is left out.

    Args:
      tokenizer: a tokenizer, which stays as it is: nothing is trained through it.
      detokenizer: a de-tokenizer.

    Raises:
      UserError: the strides of the two differ.
    """

    def __init__(self, tokenizer: nnx.Module, detokenizer: nnx.Module):
        self.tokenizer, self.detokenizer = tokenizer, detokenizer
        sides = [(c.time, c.height, c.width) for c in (tokenizer.compression, detokenizer.compression)]
        if sides[0] != sides[1]:
            theirs, ours = ("×".join(map(str, side)) for side in sides)
            raise UserError(
                f"the tokenizer compresses by {theirs} (time × height × width), the de-tokenizer's pyramid by {ours}; "
                "set its spatial_strides and temporal_strides to match"
            )

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the last layer of the decoder."""
        return ("detokenizer", *self.detokenizer.last_layer)

    @property
    def growing(self) -> tuple[str, ...]:
        # The decoder's features have a bounded past.
        return tuple(name for name in self.tokenizer.growing if name == "encode")

    @property
    def diffuses(self) -> bool:
        return self.detokenizer.diffuses

    def bottleneck(
        self, encoded: Encoded, *, key: jax.Array | None = None, train: bool = False, mean: Mean = whole
    ) -> tuple[Latents, Tokens, dict[str, Float[Array, ""]], dict[str, Any]]:
        """``(code vectors, tokens, no losses, statistics)``; always as in evaluation, whatever the arguments."""
        _, tokens, _, statistics = self.tokenizer.bottleneck(encoded)
        return self.lookup(tokens), tokens, {}, statistics

    def denoise(self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None) -> Video:
        if self.compression.first_alone:
            return self.detokenizer.denoise(latents, video, key, micro)
        video = jnp.concatenate([video[:, :1], video], axis=1)
        return self.detokenizer.denoise(self.causal(latents), video, key, micro)[:, 1:]

    def decode(self, latents: Latents, **settings: Any) -> Video:
        """Code vectors to pixels; ``settings`` go to the de-tokenizer (``steps`` of a diffusion)."""
        video = self.detokenizer.decode(self.causal(latents), **settings)
        return video if self.compression.first_alone else video[:, 1:]

    def decode_chunk(self, cache: Any, latents: Latents) -> tuple[Any, Video]:
        if self.compression.first_alone:
            return self.detokenizer.decode_chunk(cache, latents)
        begins = cache is None
        cache, video = self.detokenizer.decode_chunk(cache, self.causal(latents) if begins else latents)
        return cache, video[:, 1:] if begins else video

    def causal(self, latents: Latents) -> Latents:
        """Latents as the de-tokenizer takes them: where the first is not of one frame alone, it comes twice."""
        return latents if self.compression.first_alone else jnp.concatenate([latents[:, :1], latents], axis=1)
