"""What transformer tokenizers over tubelets share: first-frame patches, factorised stacks, the tokenizer contract."""

from collections.abc import Mapping
from typing import Any

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
)
from videogen.ranges import Count, Triple
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokens import Layout


class TubeletTokenizer(Tokenizer):
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
    prefix_equal = streams = True

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
    def growing(self) -> tuple[str, ...]:
        stacks = {"encode": self.encoder, "decode": self.decoder}
        return tuple(name for name, stack in stacks.items() if stack.reach is None)

    def layout(self, shape: VideoShape) -> Layout:
        layout = super().layout(shape)
        for stack in (self.encoder, self.decoder):
            stack.check(*layout.only.shape[1:])
        return layout

    def encode(self, video: Video, request: None = None) -> Encoded:
        """Pixels to latents before quantisation; latent j depends on frames up to j·t only."""
        self.layout(VideoShape(*video.shape[1:4]))
        return self._latents(self.encoder.time(self.encoder.space(self.patches(video))))

    def decode(self, latents: Latents) -> Video:
        """Quantised latents to pixels; frame f depends on latents up to ceil(f/t) only."""
        x = self.decoder.space(self.decoder.time(self.from_code(latents)))
        return self.pixels(self.decoder_norm(x))

    def encode_chunk(self, cache: Latents | None, chunk: Video) -> tuple[Latents, Encoded]:
        self.check_chunk(chunk, first=cache is None)
        x = self.encoder.space(self.patches(chunk, continued=cache is not None))
        cache, x = self.encoder.time_chunk(cache, x)
        return cache, self._latents(x)

    def decode_chunk(self, cache: Latents | None, latents: Latents) -> tuple[Latents, Video]:
        continued = cache is not None
        cache, x = self.decoder.time_chunk(cache, self.from_code(latents))
        return cache, self.pixels(self.decoder_norm(self.decoder.space(x)), continued=continued)

    def _latents(self, x: Float[Array, "batch time height width embed"]) -> Encoded:
        return Encoded(self.to_code(self.encoder_norm(x).astype(jnp.float32)))
