"""TokenFlow (Qu et al., CVPR 2025): one row of scales whose ids stand for what a clip means and for how it looks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building, encoders
from videogen.errors import UserError
from videogen.losses.distillation import at_places
from videogen.nn import (
    FULL,
    Linear,
    Mean,
    MicroBatch,
    Transformer,
    read_transformer,
    resize_cubic,
    sincos_positions,
    whole,
)
from videogen.quantizers import MultiScaleQuantizer
from videogen.ranges import Count, Natural, Triple
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Compared, Encoded, Tokenizer
from videogen.tokenizers.convolutional import Decoder, Encoder
from videogen.tokenizers.convolutional import Layout as Levels
from videogen.tokenizers.lengths import ASKED, first
from videogen.tokenizers.one_d import check_clip
from videogen.tokens import GRID, Layout, Segment, SegmentLayout, Tokens

SEMANTIC = "semantic"
"""The name in ``features`` of what the semantic decoder makes of codes, for a term of the losses (``distillation``)."""

SCALES = {"multi_scale": MultiScaleQuantizer}


@dataclasses.dataclass(frozen=True)
class SemanticSection:
    """What the semantic encoder is made of.

    Attributes:
      encoder: a name in ``encoders.SEEN`` and its settings, ``{name, …}``; it is trained.
      reading: what of it is read: ``last``, its last layer; of SigLIP also ``penultimate``.
      side: of the square that it sees frames resized to, in pixels; 0: that of its preprocessing.
    """

    encoder: Mapping[str, Any]
    reading: str = "last"
    side: Natural = 0


class Projected(nnx.Module):
    """Linear - tanh - linear, float32."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        common = dict(precision=FULL, rngs=rngs)
        self.inner = Linear(inputs, inputs, axes=("embed", None), **common)
        self.outer = Linear(inputs, outputs, axes=("embed", None), **common)

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        return self.outer(jnp.tanh(self.inner(x.astype(jnp.float32))))


class SemanticEncoder(nnx.Module):
    """A public encoder, trained along, and what leads from it to codes.

    Args:
      section: what it is made of.
      places: time, height and width of the latents.
      compression: frames of a latent.
      outputs: channels.
    """

    def __init__(
        self,
        section: SemanticSection,
        places: Sequence[int],
        compression: Compression,
        outputs: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.network = encoders.trunk(section.encoder, dtype=dtype, rngs=rngs)
        self.reading, self.side, self.places = section.reading, section.side, tuple(places)
        self.compression = compression
        self.head = Projected(self.network.grid_width(section.reading), outputs, rngs=rngs)

    def __call__(self, video: Video) -> Latents:
        grid = self.network.grid(video, self.side, self.reading).astype(jnp.float32)
        return self.head(at_places(grid, self.places, video.shape[1], self.compression))


class TokenFlow(Tokenizer):
    """Two encoders, one id: semantics and pixels are quantised together, over scales from coarse to fine.

    ``encode`` gives [semantic | pixel] latents side by side on one grid: of a public encoder that is trained, and of
    causal convolutions. ``dual_codebook`` over ``multi_scale`` gives one id for both, and the tokens have a segment for
    each scale, ``scale_1`` to ``scale_n``. Pixels are decoded from the pixel half. The semantic half is decoded to
    vectors like those of the frozen encoder that the trained one begins as a copy of; only training needs them
    (``losses.Distillation`` reads ``semantic``).

    Whole first scales decode (``Segment.kept``). Clips have one shape, which the scales are of; time is an axis of the
    scales in our extension to clips, and an image is a clip of one frame. Where the clip's sides are no multiples of
    the last scale's, the convolutions see it resized, as published for SigLIP: 384 pixels as 27 · 16.

    Args:
      clip: ``(frames, height, width)`` of every clip.
      widths: channels of the semantic and of the pixel half of a latent.
      semantic: section of the semantic encoder (``SemanticSection``).
      pixels: section of the convolutions, settings as of ``convolutional``: width, multipliers, blocks, strides, ….
      decoder: section of the transformer that decodes semantics, over the whole grid (``nn.read_transformer``).
      quantizer: config of ``multi_scale``; its base is a ``dual_codebook`` of these widths, or for comparison any other
        that is as wide as both.
      semantic_width: channels of the decoded semantics, those of the teacher.
      pixel_decoder: settings of the pixel decoder that differ from ``pixels`` (the published second stage trains a
        wider one).
      channels: colour channels.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    last_layer = ("pixel_decoder", "output")
    drops = scales = residual = True

    def __init__(
        self,
        clip: Triple,
        widths: tuple[Count, Count],
        semantic: Mapping[str, Any],
        pixels: Mapping[str, Any],
        decoder: Mapping[str, Any],
        quantizer: Mapping[str, Any],
        semantic_width: Count,
        *,
        pixel_decoder: Mapping[str, Any] | None = None,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.clip, self.compression = VideoShape(*clip), Compression(*clip, first_alone=False)
        levels, of_decoder = (_levels({**pixels, **more}) for more in ({}, pixel_decoder or {}))
        self.quantizer = building.build(SCALES, quantizer, "quantizer of tokenflow", rngs=rngs)
        self.widths = tuple(widths)
        if sum(widths) != self.quantizer.width:
            raise UserError(
                f"the halves {self.widths} of a latent are not {self.quantizer.width} wide, as its codes are"
            )
        self.levels, places = levels.compression(), self.quantizer.scales[-1]
        self.seen_by_pixels = _pixels(self.clip, self.levels, places)
        read, made_with = read_transformer(decoder, norm="layer"), dict(remat=remat, dtype=dtype, rngs=rngs)
        section = building.build({"semantic": SemanticSection}, {"name": "semantic", **semantic}, "section")
        self.semantic = SemanticEncoder(section, places, self.levels, self.widths[0], dtype=dtype, rngs=rngs)
        self.pixel_encoder = Encoder(levels, channels, self.widths[1], **made_with)
        self.pixel_decoder = Decoder(of_decoder, self.widths[1], channels, **made_with)
        self.from_code = Linear(
            self.widths[0], read.width, axes=(None, "embed"), precision=FULL, dtype=dtype, rngs=rngs
        )
        self.semantic_decoder = Transformer(read.stack(**made_with), read.last_norm(rngs=rngs))
        self.to_teacher = Projected(read.width, semantic_width, rngs=rngs)
        self.semantic_width, self.dtype = semantic_width, dtype

    @property
    def features(self) -> dict[str, int]:
        return {**super().features, SEMANTIC: self.semantic_width}

    @property
    def feature_compression(self) -> Compression:
        return self.levels

    @property
    def readings(self) -> Mapping[str, slice]:
        return {SEMANTIC: slice(0, self.widths[0]), "pixel": slice(self.widths[0], None)}

    @property
    def on_grid(self) -> bool:
        return False

    # Tokens ----------------------------------------------------------------------------------------------------------

    def layout(self, shape: VideoShape) -> Layout:
        """A segment for each scale; raises ``UserError`` for any clip but those it was built for."""
        check_clip(shape, self.clip)
        scales = zip(self.quantizer.names, self.quantizer.scales, strict=True)
        sides = {name: tuple(zip(GRID, scale, strict=True)) for name, scale in scales}
        return Layout.of(**{name: SegmentLayout(own, self.vocabulary) for name, own in sides.items()})

    def encode(self, video: Video, request: int | None = None) -> Encoded:
        """Pixels to ``[batch, time, height, width, semantic + pixel]`` before quantisation, float32.

        Args:
          video: in [-1, 1].
          request: how many tokens the decoder is to see, those of one or more first scales; ``None``: all.

        Raises:
          UserError: another clip than those it was built for, or so many tokens end inside of a scale.
        """
        tokens, extra = self.layout(VideoShape(*video.shape[1:4])).tokens, {}
        if request is not None:
            self.quantizer.whole_scales(request)
            extra = {ASKED: first(jnp.full(len(video), request), (len(video), tokens))}
        resized = _resized(video, self.seen_by_pixels)
        return Encoded(jnp.concatenate([self.semantic(video), self.pixel_encoder(resized)], axis=-1), extra=extra)

    def bottleneck(
        self, encoded: Encoded, *, key: jax.Array | None = None, train: bool = False, mean: Mean = whole
    ) -> tuple[Latents, Tokens, dict[str, Float[Array, ""]], dict[str, Any]]:
        found = self.quantizer(encoded.values, key=key, train=train, mean=mean)
        ids, asked = self.quantizer.split(found.indices), encoded.extra.get(ASKED)
        masks = [None] * len(ids) if asked is None else [m[..., 0] for m in self.quantizer.split(asked[..., None])]
        parts = zip(self.layout(self.clip).segments, ids, masks, strict=True)
        tokens = Tokens.of(**{name: Segment(own, layout, kept=kept) for (name, layout), own, kept in parts})
        latents = found.latents if asked is None else self.lookup(tokens)
        return latents, tokens, found.losses, found.measured

    def lookup(self, tokens: Tokens) -> Latents:
        """The sum of the codes of the scales that are there and kept, on the full grid.

        Raises:
          UserError: scales that are missing or left out are not the last ones, or a part of a scale is left out; of
            masks this is looked at where they have values, not while a program is traced.
        """
        if not tokens.names or tokens.names != self.quantizer.names[: len(tokens.names)]:
            known = ", ".join(self.quantizer.names)
            raise UserError(
                f"only whole first scales of {known} decode, and there are {', '.join(tokens.names) or 'none'}"
            )
        there = tokens.whole_segments()
        seen = () if there is None else [*there.T]
        return self.quantizer.total([segment.values for segment in tokens.segments], seen)

    def seen(self, tokens: Tokens) -> dict[str, Bool[Array, "batch ..."]]:
        """Nothing: what is left out is not in the sum that ``lookup`` and ``bottleneck`` give."""
        return {}

    def partial(self, tokens: Tokens, segment: str, *, through: bool = False) -> Latents:
        number = self._number(segment)
        shown = [tokens[name].values for name in self.quantizer.names[: number + through]]
        if not shown:
            return jnp.zeros((len(tokens.segments[0].values), *self.quantizer.scales[0], self.quantizer.width))
        return self.quantizer.at_scale(self.quantizer.total(shown), number)

    def relabel(self, encoded: Encoded, tokens: Tokens, segment: str) -> Segment:
        number = self._number(segment)
        shown = [tokens[name].values for name in self.quantizer.names[:number] if name in tokens.names]
        ids = self.quantizer.relabel(encoded.values, shown, number + 1)[-1]
        return Segment(ids, self.layout(self.clip)[segment])

    def _number(self, segment: str) -> int:
        """Which scale a segment is, from 0."""
        if segment not in self.quantizer.names:
            raise UserError(f"there is no segment {segment!r}, only {', '.join(self.quantizer.names)}")
        return self.quantizer.names.index(segment)

    # Decoding --------------------------------------------------------------------------------------------------------

    def decode(self, latents: Latents, kept: None = None) -> Video:
        """Quantised latents, sums over scales, to pixels."""
        return _resized(self.pixel_decoder(latents[..., self.widths[0] :]), self.clip)

    def semantics(self, latents: Latents) -> Float[Array, "batch time height width channels"]:
        """Quantised latents to vectors like those of the teacher."""
        x = self.from_code(latents[..., : self.widths[0]])
        batch, *places, width = x.shape
        x = x.reshape(batch, math.prod(places), width) + jnp.asarray(sincos_positions(places, width), self.dtype)
        return self.to_teacher(self.semantic_decoder(x)).reshape(batch, *places, self.semantic_width)

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
        return compared._replace(features={SEMANTIC: self.semantics(latents)})


def _levels(section: Mapping[str, Any]) -> Levels:
    return building.build({"pixels": Levels.causal}, {"name": "pixels", **section}, "section")


def _pixels(clip: VideoShape, levels: Compression, places: Triple) -> VideoShape:
    """The clip that the convolutions see, so that their latents have these places."""
    seen = VideoShape(levels.frames(places[0]), places[1] * levels.height, places[2] * levels.width)
    if seen.frames != clip.frames:
        raise UserError(
            f"the last scale has the time {places[0]}, that is {seen.frames} frames, and clips have {clip.frames}; "
            "set the scales, the temporal strides or the clip to agree"
        )
    return seen


def _resized(video: Video, shape: VideoShape) -> Video:
    return resize_cubic(video, (shape.frames, shape.height, shape.width))
