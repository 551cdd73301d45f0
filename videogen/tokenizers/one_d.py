"""Tokens without a place: learned queries gather a whole clip into a row of codes, of which a part may be enough.

LARP (Wang et al., ICLR 2025) and One-D-Piece (Miwa et al., 2025) are settings of ``OneD``; the encoder of FlexTok
(``one_d_flow``) is the same, KARL (``karl``) adds to ``OneD``, and ``one_d_any_size`` takes clips of many sizes.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import diffusion, quantizers
from videogen.errors import UserError
from videogen.nn import (
    FULL,
    Linear,
    MicroBatch,
    TransformerSection,
    normal,
    parameter,
    patchify,
    read_transformer,
    sincos_positions,
    truncated_normal,
    unpatchify,
    zeros,
)
from videogen.ranges import Count, OneOf, Positive, Triple
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers import lengths as length_rules
from videogen.tokenizers.base import Compared, Encoded, Tokenizer
from videogen.tokens import Layout

DROPPED = ("hidden", "replaced")
"""How the decoder does without a token: it is in no attention, or a learned vector stands in its place."""


class Queried(Tokenizer):
    """What tokenizers with learned queries share: all but the decoder.

    The encoder is a transformer over a joint sequence of patches and learned queries in which everything sees
    everything; of its outputs only the queries' are kept. Nothing is causal, and a clip has one latent frame: there is
    no streaming, and a generator's window cannot slide.

    What is coded may be the latents of another tokenizer in the place of pixels (``over_latents``): then ``clip`` is
    their grid, and they are brought to mean 0 and variance 1 by statistics of the first steps of training.

    Args:
      clip: ``(frames, height, width)`` of every clip; an image is a clip of one frame.
      patch: ``(time, height, width)`` of a patch, a divisor of the clip.
      queries: number of codes of a clip; free, whatever the number of patches.
      encoder: the section of the transformer over [patches; queries].
      quantizer: quantizer config ``{name, …}``.
      lengths: length rule ``{name, …}``; without one every code is seen.
      query_scale: standard deviation of the fresh queries.
      channels: colour channels, or those of the latents.
      normalise: what is coded are latents of any scale.
    """

    sides = ("query",)
    drops = True

    def __init__(
        self,
        clip: Triple,
        patch: Triple,
        queries: int,
        encoder: TransformerSection,
        quantizer: Mapping[str, Any],
        *,
        lengths: Mapping[str, Any] | None,
        query_scale: float,
        channels: int,
        normalise: bool,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.clip, self.patch, self.dtype, self.channels = VideoShape(*clip), tuple(patch), dtype, channels
        self.compression = Compression(*clip, first_alone=False)
        self.places = self.clip.grid(self.feature_compression).shape
        self.codes = queries
        self.lengths = length_rules.build(lengths or {"name": "all"})
        self.statistics = diffusion.LatentStatistics(channels) if normalise else None
        width = encoder.width
        self.patches = Linear(self.area, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.queries = parameter(rngs, (queries, width), (None, "embed"), normal(query_scale))
        self.encoder = encoder.stack(remat=remat, dtype=dtype, rngs=rngs)
        self.encoder_norm = encoder.last_norm(rngs=rngs)
        self.quantizer = quantizers.build(quantizer, rngs=rngs)
        # Quantizers work in float32, so the projection before them does too.
        self.to_code = Linear(width, self.quantizer.input_width, axes=("embed", None), precision=FULL, rngs=rngs)

    @property
    def area(self) -> int:
        """Numbers in a patch."""
        return math.prod(self.patch) * self.channels

    @property
    def feature_compression(self) -> Compression:
        return Compression(*self.patch, first_alone=False)

    def layout(self, shape: VideoShape) -> Layout:
        """A token for every query; raises ``UserError`` for any clip but those it was built for."""
        check_clip(shape, self.clip)
        return self.layout_of((self.codes,))

    def encode(self, video: Video, request: int | None = None) -> Encoded:
        """Pixels to ``[batch, queries, code]`` before quantisation, float32.

        Args:
          video: in [-1, 1], or latents.
          request: how many codes the decoder is to see, the first ones; ``None`` leaves it to the length rule. The
            latents are the same for all.
        """
        extra = {} if request is None else {length_rules.ASKED: self._asked(request, len(video))}
        return Encoded(self.to_code(self.encoder_norm(self._gather(video)).astype(jnp.float32)), extra=extra)

    def _gather(self, video: Video) -> Float[Array, "batch queries width"]:
        """What the queries find in clips."""
        patches = self._patches(video)
        x = jnp.concatenate([patches, self._fresh_queries(len(video))], axis=1)
        return self.encoder(x)[:, patches.shape[1] :]

    def _fresh_queries(self, batch: int) -> Float[Array, "batch queries width"]:
        return jnp.broadcast_to(self.queries.get_value().astype(self.dtype), (batch, *self.queries.shape))

    def _patches(self, video: Video) -> Float[Array, "batch patches width"]:
        """Patches of clips, with their places; raises ``UserError`` for clips of another shape."""
        self.layout(VideoShape(*video.shape[1:4]))
        patches = self.patches(patchify(self.normalised_input(video).astype(self.dtype), self.patch))
        return patches.reshape(video.shape[0], -1, patches.shape[-1]) + self._places(patches.shape[-1])

    def normalised_input(self, video: Video) -> Video:
        """Pixels as they are, latents of mean 0 and variance 1."""
        return video if self.statistics is None else self.statistics.normalise(video)

    def restored(self, video: Video) -> Video:
        """The inverse of ``normalised_input``."""
        return video if self.statistics is None else self.statistics.restore(video)

    def compare(
        self,
        encoded: Encoded,
        latents: Latents,
        video: Video,
        key: jax.Array,
        micro: MicroBatch | None = None,
        **seen: Any,
    ) -> Compared:
        compared = super().compare(encoded, latents, video, key, micro, **seen)
        return compared._replace(sums={} if self.statistics is None else self.statistics.sums(video))

    def update(self, sums: Mapping[str, Any], candidates: Any, key: jax.Array | None = None) -> None:
        super().update(sums, candidates, key)
        if self.statistics is not None:
            self.statistics.update(sums["compared"])

    def _asked(self, request: int, batch: int) -> Bool[Array, "batch queries"]:
        if not 1 <= request <= self.codes:
            raise UserError(f"this tokenizer has 1 … {self.codes} tokens for a clip, and {request} are asked for")
        return length_rules.first(jnp.full(batch, request), (batch, self.codes))

    def _places(self, width: int) -> Float[Array, "patches width"]:
        """Fixed features of every patch's place."""
        return jnp.asarray(sincos_positions(self.places, width), self.dtype)


def check_clip(shape: VideoShape, only: VideoShape) -> None:
    """Raises ``UserError`` for any clip but those that a tokenizer was built for."""
    if shape != only:
        built, got = ("×".join(map(str, (s.frames, s.height, s.width))) for s in (only, shape))
        raise UserError(f"this tokenizer codes clips of {built} as a whole, got {got}; set data.clip to that")


class OneD(Queried):
    """Holistic tokenizer: clips of one fixed shape become ``queries`` codes, each of which may depend on every pixel.

    Decoder: a transformer over [codes; patch queries], in which everything sees everything. Latents have the
    quantizer's code width, so that a prior (``losses.AutoregressivePrior``) sees what the decoder sees.

    A length rule decides which codes the decoder sees. Trained with a tail drop, codes are ordered by what they are
    worth: the first k decode to the best picture of k codes, and more codes add to it.

    Args:
      clip: ``(frames, height, width)`` of every clip; an image is a clip of one frame.
      patch: ``(time, height, width)`` of a patch, a divisor of the clip.
      queries: number of codes of a clip; free, whatever the number of patches.
      encoder: section of the transformer over [patches; queries] (``nn.read_transformer``), with layer norms.
      decoder: section of the transformer over [codes; patch queries].
      quantizer: quantizer config ``{name, …}``.
      lengths: length rule ``{name, …}``; without one every code is seen.
      dropped: how the decoder does without a code, one of ``DROPPED``.
      query_scale: standard deviation of the fresh queries. Queries as large as patches begin with different codes;
        small ones, as published, begin with almost the same.
      channels: colour channels, or those of latents.
      normalise: what is coded are latents of any scale.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    last_layer = ("pixels",)

    def __init__(
        self,
        clip: Triple,
        patch: Triple,
        queries: Count,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        quantizer: Mapping[str, Any],
        *,
        lengths: Mapping[str, Any] | None = None,
        dropped: Annotated[str, OneOf(*DROPPED)] = "hidden",
        query_scale: Positive = 0.02,
        channels: Count = 3,
        normalise: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        read, write = (read_transformer(section, norm="layer") for section in (encoder, decoder))
        made_with = dict(remat=remat, dtype=dtype, rngs=rngs)
        about = dict(lengths=lengths, query_scale=query_scale, channels=channels, normalise=normalise)
        super().__init__(clip, patch, queries, read, quantizer, **about, **made_with)
        self.from_code = Linear(
            self.quantizer.width, write.width, axes=(None, "embed"), precision=FULL, dtype=dtype, rngs=rngs
        )
        initial = truncated_normal(0.02)
        self.no_code = parameter(rngs, (write.width,), (None,), initial) if dropped == "replaced" else None
        self.patch_type = parameter(rngs, (write.width,), (None,), initial)
        self.decoder, self.decoder_norm = write.stack(**made_with), write.last_norm(rngs=rngs)
        self.pixels = Linear(write.width, self.area, axes=("embed", None), initializer=zeros, dtype=dtype, rngs=rngs)

    def decode(self, latents: Latents, kept: Bool[Array, "batch queries"] | None = None) -> Video:
        """Quantised latents to pixels; every pixel may depend on every code that is kept, and on no other."""
        codes, seen = self.from_code(latents), None
        batch, count, width = codes.shape
        patches = self._places(width) + self.patch_type.get_value().astype(self.dtype)
        if kept is not None and self.no_code is not None:
            codes = jnp.where(kept[..., None], codes, self.no_code.get_value().astype(codes.dtype))
        elif kept is not None:
            seen = jnp.concatenate([kept, jnp.ones((batch, len(patches)), bool)], axis=1)
        codes = codes + jnp.asarray(sincos_positions([count], width), codes.dtype)
        x = jnp.concatenate([codes, jnp.broadcast_to(patches, (batch, *patches.shape))], axis=1)
        x = self.pixels(self.decoder_norm(self.decoder(x, **self._hiding(seen))[:, count:]))
        return self.restored(unpatchify(x.reshape(batch, *self.places, -1), self.patch).astype(jnp.float32))

    def _hiding(self, seen: Bool[Array, "batch tokens"] | None) -> dict[str, Any]:
        """What a transformer is told so that it sees these tokens only; ``None``: all."""
        return {"key_mask": seen}
