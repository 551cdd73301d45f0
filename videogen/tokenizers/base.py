"""The contract of tokenizers, and what all of them share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.nn import Mean, MicroBatch, grid_of, whole
from videogen.shapes import Codes, Compression, Latents, TokenGrid, Video, VideoShape, check_video


class Tokenizer(nnx.Module):
    """Video -> latents -> codes -> video.

    A system gives ``compression``, ``quantizer``, ``last_layer``, ``encode`` and ``decode``; one that streams gives
    ``encode_chunk`` and ``decode_chunk``, too. The other methods follow from these.

    Attributes:
      compression: pixels per latent along each axis.
      quantizer: makes codes of latents.
      last_layer: path of the last layer of the decoder, where adaptive weights of losses compare gradients.
      prefix_equal: codes of the first frames of a clip are the first codes of the clip.
      on_grid: every code has a place in the picture: their grid is that of the compression.
      streams: there are ``encode_chunk`` and ``decode_chunk``, so that a video may be longer than memory.
      growing: of the directions ``encode`` and ``decode`` those that see the whole past of a clip, whose caches grow.
      diffuses: pixels are drawn by a diffusion process, whose number of steps ``decode`` takes as ``steps``.
    """

    compression: Compression
    quantizer: nnx.Module
    last_layer: tuple[str, ...]
    prefix_equal: bool = False
    on_grid: bool = True
    streams: bool = False
    growing: Sequence[str] = ()
    diffuses: bool = False

    def encode(self, video: Video) -> Latents:
        """Pixels to latents before quantisation: float32, as wide as ``quantizer.input_width``."""
        raise NotImplementedError

    def decode(self, latents: Latents, **settings: Any) -> Video:
        """Quantised latents, as wide as ``quantizer.width``, to pixels."""
        raise NotImplementedError

    def encode_chunk(self, cache: Any, chunk: Video) -> tuple[Any, Latents]:
        """Encodes the next frames of a clip; all chunks together equal ``encode`` of the whole.

        Args:
          cache: what the call before returned; ``None`` begins a clip. Its size grows only if ``growing`` says so.
          chunk: 1 + k·t frames at the beginning, k·t frames later.

        Returns:
          The cache for the next chunk, and the chunk's latents.

        Raises:
          UserError: this tokenizer does not stream, or the chunk has another length.
        """
        raise UserError(f"{type(self).__name__} codes a clip as a whole, so it cannot take it in chunks")

    def decode_chunk(self, cache: Any, latents: Latents) -> tuple[Any, Video]:
        """Decodes the next quantised latents of a clip; all chunks together equal ``decode`` of the whole."""
        raise UserError(f"{type(self).__name__} codes a clip as a whole, so it cannot take it in chunks")

    def denoise(self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None) -> Video:
        """What training compares with ``video``; of a decoder that diffuses, the video that it sees in a noisy one."""
        return self.decode(latents)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Number of codes of each level; empty where latents are continuous."""
        return self.quantizer.vocabulary

    @property
    def coder(self) -> "Tokenizer":
        """The tokenizer whose codes these are: this one, unless only the decoder is its own."""
        return self

    def grid(self, shape: VideoShape) -> TokenGrid:
        """The token grid of a clip; raises ``UserError`` for a shape the tokenizer cannot take."""
        return shape.grid(self.compression, levels=len(self.vocabulary))

    def check_chunk(self, chunk: Video, first: bool) -> None:
        """Raises ``UserError`` for a chunk of a length, or of a height or width, that cannot be coded."""
        self.grid(self.compression.chunk(VideoShape(*chunk.shape[1:4]), first=first))

    def bottleneck(
        self, latents: Latents, *, key: jax.Array | None = None, train: bool = False, mean: Mean = whole
    ) -> tuple[Latents, Codes, dict[str, Float[Array, ""]], dict[str, Any]]:
        """Quantises latents: ``(latents, codes, losses, Quantized.measured)``, called as a quantizer is."""
        quantized = self.quantizer(latents.astype(jnp.float32), key=key, train=train, mean=mean)
        codes = Codes(quantized.indices, grid_of(latents, len(self.vocabulary)))
        return quantized.latents, codes, quantized.losses, quantized.measured

    def tokenize(self, video: Video) -> Codes:
        """Pixels to codes."""
        check_video(video)
        return self.bottleneck(self.encode(video))[1]

    def detokenize(self, codes: Codes) -> Video:
        """Codes to pixels, clipped to [-1, 1]."""
        return self.to_pixels(self.quantizer.lookup(codes.indices))

    def to_latents(self, video: Video) -> Latents:
        """Pixels to the quantised latents that a diffusion generator models; the mean of a Gaussian posterior."""
        return self.bottleneck(self.encode(video))[0]

    def to_pixels(self, latents: Latents) -> Video:
        """Quantised latents to pixels, clipped to [-1, 1]."""
        return jnp.clip(self.decode(latents), -1.0, 1.0)
