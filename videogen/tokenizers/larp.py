"""LARP's tokenizer (Wang et al., ICLR 2025): learned queries gather a whole clip into codes without a place."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import (
    FULL,
    NORMS,
    Linear,
    block_stack,
    normal,
    parameter,
    patchify,
    sincos_positions,
    truncated_normal,
    unpatchify,
    zeros,
)
from videogen.ranges import Count, Natural, Positive, Triple
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokens import Layout

NORM = "layer"


class Larp(Tokenizer):
    """Holistic tokenizer: clips of one fixed shape become ``queries`` codes, each of which may depend on every pixel.

    Encoder and decoder are transformers over a joint sequence in which everything sees everything: patches and learned
    queries, then codes and patch queries. Nothing is causal, and a clip has one latent frame: there is no streaming,
    and a generator's window cannot slide. Latents have the quantizer's code width, so that a prior
    (``losses.AutoregressivePrior``) sees what the decoder sees.

    Args:
      clip: ``(frames, height, width)`` of every clip.
      patch: ``(time, height, width)`` of a patch, a divisor of the clip.
      queries: number of codes of a clip; free, whatever the number of patches.
      width: token width.
      heads: attention heads.
      mlp_width: hidden width of the MLPs.
      encoder_layers: layers over [patches; queries].
      decoder_layers: layers over [codes; patch queries].
      quantizer: quantizer config ``{name, …}``.
      query_scale: standard deviation of the fresh queries. Queries as large as patches begin with different codes;
        small ones, as published, begin with almost the same.
      channels: colour channels.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    last_layer = ("pixels",)
    sides = ("query",)

    def __init__(
        self,
        clip: Triple,
        patch: Triple,
        queries: Count,
        width: Count,
        heads: Count,
        mlp_width: Count,
        encoder_layers: Natural,
        decoder_layers: Natural,
        quantizer: Mapping[str, Any],
        *,
        query_scale: Positive = 0.02,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.clip, self.patch, self.dtype = VideoShape(*clip), tuple(patch), dtype
        self.compression = Compression(*clip, first_alone=False)
        self.places = self.clip.grid(Compression(*patch, first_alone=False)).shape
        area = math.prod(patch) * channels

        def stack(layers: int) -> nnx.Module:
            sections = dict(attention={"heads": heads}, mlp={"hidden": mlp_width}, norm=NORM)
            return block_stack(width, layers, **sections, remat=remat, dtype=dtype, rngs=rngs)

        self.patches = Linear(area, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.queries = parameter(rngs, (queries, width), (None, "embed"), normal(query_scale))
        self.encoder, self.encoder_norm = stack(encoder_layers), NORMS[NORM](width, rngs=rngs)
        self.quantizer = quantizers.build(quantizer, rngs=rngs)
        # Quantizers work in float32, so the projection before them does too.
        self.to_code = Linear(width, self.quantizer.input_width, axes=("embed", None), precision=FULL, rngs=rngs)
        self.from_code = Linear(
            self.quantizer.width, width, axes=(None, "embed"), precision=FULL, dtype=dtype, rngs=rngs
        )
        self.patch_type = parameter(rngs, (width,), (None,), truncated_normal(0.02))
        self.decoder, self.decoder_norm = stack(decoder_layers), NORMS[NORM](width, rngs=rngs)
        self.pixels = Linear(width, area, axes=("embed", None), initializer=zeros, dtype=dtype, rngs=rngs)

    def layout(self, shape: VideoShape) -> Layout:
        """A token for every query; raises ``UserError`` for any clip but those it was built for."""
        if shape != self.clip:
            built, got = ("×".join(map(str, (s.frames, s.height, s.width))) for s in (self.clip, shape))
            raise UserError(f"this tokenizer codes clips of {built} as a whole, got {got}; set data.clip to that")
        return self.layout_of(self.queries.get_value().shape[:1])

    def encode(self, video: Video, request: None = None) -> Encoded:
        """Pixels to ``[batch, queries, code]`` before quantisation, float32."""
        self.layout(VideoShape(*video.shape[1:4]))
        patches = self.patches(patchify(video.astype(self.dtype), self.patch))
        patches = patches.reshape(video.shape[0], -1, patches.shape[-1]) + self._places(patches.shape[-1])
        queries = jnp.broadcast_to(self.queries.get_value().astype(self.dtype), (len(video), *self.queries.shape))
        x = self.encoder(jnp.concatenate([patches, queries], axis=1))[:, patches.shape[1] :]
        return Encoded(self.to_code(self.encoder_norm(x).astype(jnp.float32)))

    def decode(self, latents: Latents) -> Video:
        """Quantised latents to pixels; every pixel may depend on every code."""
        codes = self.from_code(latents)
        batch, count, width = codes.shape
        codes = codes + jnp.asarray(sincos_positions([count], width), codes.dtype)
        patches = self._places(width) + self.patch_type.get_value().astype(self.dtype)
        x = jnp.concatenate([codes, jnp.broadcast_to(patches, (batch, *patches.shape))], axis=1)
        x = self.pixels(self.decoder_norm(self.decoder(x)[:, count:]))
        return unpatchify(x.reshape(batch, *self.places, -1), self.patch).astype(jnp.float32)

    def _places(self, width: int) -> Float[Array, "patches width"]:
        """Fixed features of every patch's place."""
        return jnp.asarray(sincos_positions(self.places, width), self.dtype)
