"""CDT's tokenizer (Yang et al., 2025): a causal encoder, a KL bottleneck, and a conditional diffusion decoder."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from videogen import detokenizers, quantizers
from videogen.detokenizers import Down, Pyramid, Residual
from videogen.nn import FULL, Linear, MicroBatch, Stream, checkpointed
from videogen.ranges import Count
from videogen.shapes import Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.convolutional import Cache


class Encoder(nnx.Module):
    """A residual block and down-sampling at each level; then two paths, short and long, to the latents, in float32.

    Args:
      pyramid: widths and strides.
      channels: colour channels.
      outputs: width of the latents.
      remat: what the backward pass keeps of each residual block (``nn.REMAT_POLICIES``).
    """

    def __init__(self, pyramid: Pyramid, channels: int, outputs: int, *, remat: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.remat = remat
        common = dict(dtype=dtype, rngs=rngs)
        firsts = (pyramid.edge_kernel, *(None for _ in pyramid.widths[1:]))
        levels = zip((channels, *pyramid.widths), pyramid.widths, firsts, strict=False)
        self.levels = nnx.List([Residual(a, b, pyramid, first=first, **common) for a, b, first in levels])
        pairs = zip(pyramid.widths, pyramid.strides, strict=True)
        self.downs = nnx.List([Down(width, stride, pyramid, **common) for width, stride in pairs])
        pairs = itertools.pairwise(pyramid.widths[::-1])
        self.middle = nnx.List([Residual(a, b, pyramid, dtype=jnp.float32, rngs=rngs) for a, b in pairs])
        self.direct = Linear(pyramid.widths[-1], outputs, axes=("embed", None), precision=FULL, rngs=rngs)
        self.output = Linear(pyramid.widths[0], outputs, axes=("embed", None), precision=FULL, rngs=rngs)

    def __call__(self, video: Video, stream: Stream | None = None) -> Latents:
        remat = self.remat if stream is None else "none"
        x = video
        for level, down in zip(self.levels, self.downs, strict=True):
            x = down(checkpointed(level, remat, x, None, stream), stream)
        x = x.astype(jnp.float32)
        y = self.direct(x)
        for block in self.middle:
            x = checkpointed(block, remat, x, None, stream)
        return y + self.output(x)


class Cdt(Tokenizer):
    """Latents are means (and log variances) at the end of a causal encoder; decoding is one prediction from noise.

    Latent j depends on frames up to j·t only, frame f on latents up to ceil(f/t) only, and a clip may come in chunks.
    Any quantizer may take the place of the Gaussian.

    Args:
      pyramid: levels between pixels and latents, the settings of ``detokenizers.Pyramid.of``.
      decoder: decoder config ``{name, …}`` (``detokenizers.DETOKENIZERS``).
      quantizer: quantizer config ``{name, …}``.
      channels: colour channels.
      remat: what the backward pass keeps of each residual block (``nn.REMAT_POLICIES``).
    """

    last_layer = ("decoder", "denoiser", "output")
    prefix_equal = streams = True

    def __init__(
        self,
        pyramid: Mapping[str, Any],
        decoder: Mapping[str, Any],
        quantizer: Mapping[str, Any],
        *,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        levels = Pyramid.read(pyramid)
        self.compression = levels.compression
        common = dict(channels=channels, remat=remat, dtype=dtype, rngs=rngs)
        self.quantizer = quantizers.build(quantizer, rngs=rngs)
        self.encoder = Encoder(levels, outputs=self.quantizer.input_width, **common)
        self.decoder = detokenizers.build(decoder, inputs=self.quantizer.width, pyramid=levels, **common)

    @property
    def diffuses(self) -> bool:
        return self.decoder.diffuses

    def encode(self, video: Video, request: None = None) -> Encoded:
        self.layout(VideoShape(*video.shape[1:4]))
        return Encoded(self.encoder(video))

    def denoise(self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None) -> Video:
        return self.decoder.denoise(latents, video, key, micro)

    def decode(self, latents: Latents, **settings: Any) -> Video:
        """Quantised latents to pixels; ``settings`` go to the decoder's ``decode`` (``steps`` of a diffusion)."""
        return self.decoder.decode(latents, **settings)

    def encode_chunk(self, cache: Cache | None, chunk: Video) -> tuple[Cache, Encoded]:
        self.check_chunk(chunk, first=cache is None)
        stream = Stream(cache)
        latents = self.encoder(chunk, stream)
        return stream.cache, Encoded(latents)

    def decode_chunk(self, cache: Cache | None, latents: Latents) -> tuple[Cache, Video]:
        return self.decoder.decode_chunk(cache, latents)
