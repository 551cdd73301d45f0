"""What transformer tokenizers over tubelets share: first-frame patches, factorised stacks, the tokenizer contract."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen import quantizers
from videogen.nn import (
    FULL,
    NORMS,
    FactorisedStack,
    FirstFramePatches,
    FirstFramePixels,
    Linear,
    Mean,
    grid_of,
    whole,
)
from videogen.ranges import Count, Triple
from videogen.shapes import Codes, Compression, Latents, TokenGrid, Video, VideoShape, check_video


class TubeletTokenizer(nnx.Module):
    """Causal video tokenizer with a separately patched first frame; codes of a prefix are a prefix of the codes.

    Args:
      patch: ``(time, height, width)`` of a tubelet; the first frame uses ``(1, height, width)``.
      width: token width.
      encoder: spatial pattern and number of temporal layers of the encoder, as ``nn.FactorisedStack`` takes them.
      decoder: the same of the decoder, which runs its temporal layers first.
      quantizer: quantizer config ``{name, …}``.
      stack: the other settings of both ``nn.FactorisedStack``.
      channels: colour channels.
    """

    last_layer = ("pixels",)

    def __init__(
        self,
        patch: Triple,
        width: Count,
        encoder: tuple[str, int],
        decoder: tuple[str, int],
        quantizer: Mapping[str, Any],
        stack: Mapping[str, Any],
        *,
        channels: Count,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.compression = Compression(*patch)
        common = dict(dtype=dtype, rngs=rngs)
        self.patches = FirstFramePatches(self.compression, width, channels=channels, **common)
        self.encoder = FactorisedStack(width, spatial=encoder[0], temporal_layers=encoder[1], **stack, **common)
        self.encoder_norm = NORMS["rms"](width, rngs=rngs)
        self.quantizer = quantizers.build(quantizer, rngs=rngs)
        # Quantizers work in float32, so the projections around them do too.
        self.to_code = Linear(width, self.quantizer.input_width, axes=("embed", None), precision=FULL, rngs=rngs)
        self.from_code = Linear(self.quantizer.width, width, axes=(None, "embed"), precision=FULL, **common)
        self.decoder = FactorisedStack(width, spatial=decoder[0], temporal_layers=decoder[1], **stack, **common)
        self.decoder_norm = NORMS["rms"](width, rngs=rngs)
        self.pixels = FirstFramePixels(self.compression, width, channels=channels, **common)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return self.quantizer.vocabulary

    def grid(self, shape: VideoShape) -> TokenGrid:
        """The token grid of a clip; raises ``UserError`` for a shape the tokenizer cannot take."""
        grid = shape.grid(self.compression, levels=len(self.vocabulary))
        for stack in (self.encoder, self.decoder):
            stack.check(grid.height, grid.width)
        return grid

    def encode(self, video: Video) -> Latents:
        """Pixels to latents before quantisation; latent j depends on frames up to j·t only."""
        self.grid(VideoShape(*video.shape[1:4]))
        x = self.encoder.time(self.encoder.space(self.patches(video)))
        return self.encoder_norm(x)

    def bottleneck(
        self, latents: Latents, *, key: jax.Array | None = None, train: bool = False, mean: Mean = whole
    ) -> tuple[Latents, Codes, dict[str, Float[Array, ""]], dict[str, Any]]:
        """Quantises latents: ``(latents, codes, losses, Quantized.measured)``, called as a quantizer is."""
        quantized = self.quantizer(self.to_code(latents.astype(jnp.float32)), key=key, train=train, mean=mean)
        codes = Codes(quantized.indices, grid_of(latents, len(self.vocabulary)))
        return self.from_code(quantized.latents), codes, quantized.losses, quantized.measured

    def decode(self, latents: Latents) -> Video:
        """Quantised latents to pixels; frame f depends on latents up to ceil(f/t) only."""
        x = self.decoder.space(self.decoder.time(latents))
        return self.pixels(self.decoder_norm(x))

    def encode_chunk(self, cache: Latents | None, chunk: Video) -> tuple[Latents, Latents]:
        """Encodes the next frames of a clip; all chunks together equal ``encode`` of the whole.

        Args:
          cache: what the call before returned; ``None`` begins a clip. It grows with the clip, as does the work,
            unless ``temporal_window`` bounds what temporal layers see (``nn.FactorisedStack.time_chunk``).
          chunk: 1 + k·t frames at the beginning, k·t frames later.

        Returns:
          The cache for the next chunk, and the chunk's latents.
        """
        self.grid(self.compression.chunk(VideoShape(*chunk.shape[1:4]), first=cache is None))
        x = self.encoder.space(self.patches(chunk, continued=cache is not None))
        cache, x = self.encoder.time_chunk(cache, x)
        return cache, self.encoder_norm(x)

    def decode_chunk(self, cache: Latents | None, latents: Latents) -> tuple[Latents, Video]:
        """Decodes the next quantised latents of a clip; all chunks together equal ``decode`` of the whole."""
        continued = cache is not None
        cache, x = self.decoder.time_chunk(cache, latents)
        return cache, self.pixels(self.decoder_norm(self.decoder.space(x)), continued=continued)

    def tokenize(self, video: Video) -> Codes:
        """Pixels to codes."""
        check_video(video)
        return self.bottleneck(self.encode(video))[1]

    def to_latents(self, video: Video) -> Latents:
        """Pixels to the latents that a diffusion generator models: as wide as a code, float32, the posterior's mean."""
        return self.quantizer(self.to_code(self.encode(video).astype(jnp.float32))).latents

    def from_latents(self, latents: Latents) -> Video:
        """The way back from ``to_latents``; pixels clipped to [-1, 1]."""
        return jnp.clip(self.decode(self.from_code(latents)), -1.0, 1.0)

    def from_latents_chunk(self, cache: Latents | None, latents: Latents) -> tuple[Latents, Video]:
        """``from_latents`` of the next latents of a clip, with the cache of ``decode_chunk``."""
        cache, video = self.decode_chunk(cache, self.from_code(latents))
        return cache, jnp.clip(video, -1.0, 1.0)

    def detokenize(self, codes: Codes) -> Video:
        """Codes to pixels, clipped to [-1, 1]."""
        return self.from_latents(self.quantizer.lookup(codes.indices))
