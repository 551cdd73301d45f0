"""OneVAE's tokenizer (2025): one causal network whose latents are continuous, or codes, with a finer first frame."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.nn import Convolution, Linear, Mean, Stream, scaled_identity, whole
from videogen.ranges import Count, Natural, OneOf
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.convolutional import Autoencoder, Cache
from videogen.tokenizers.convolutional import Layout as Networks
from videogen.tokens import GRID, Layout, SegmentLayout, Tokens

FIRST, REST = "first", "rest"
"""The segments of a clip whose first frame has finer latents."""

FIRST_FRAMES = ("plain", "fine")

Parts = dict[str, Latents]
"""Latents by segment; an image has no ``rest``, and no later chunk of a clip has a ``first``."""


class OneVae(Autoencoder):
    """A causal VAE in the style of Wan2.1 for discrete and continuous use.

    Causal 3-D convolutions, RMS norms over channels, attention within each frame in the middle. With the quantizer
    ``two_paths`` one network serves both uses: ``in_mode("continuous")`` is the same tokenizer, whose tokens are
    latents and not codes.

    With ``first_frame="fine"`` the first frame, which nothing before it tells of, has latents on a finer grid: the
    encoder sees it once more without its last down-sampling. These stand in the place of its own latent, as a segment
    of their own. The decoder brings them down to one latent for the frames that follow; and takes them through its
    first layers as they are, behind whose up-sampling they stand for the first frame. All layers are shared but two:
    the one that brings them down, and a linear map of their features.

    Args:
      width, multipliers, blocks, spatial_strides, temporal_strides, quantizer, middle_blocks, padding, remat: as
        ``ConvolutionalTokenizer`` takes them; there are ``middle_blocks`` on either side of the attention.
      first_frame: ``plain``, or ``fine`` latents of the first frame.
      attention: whether there is attention in the middle.
      norm_groups: groups of the norms; 0: RMS norms over channels, as published.
    """

    prefix_equal = streams = True

    def __init__(
        self,
        width: Count,
        multipliers: Sequence[Count],
        blocks: Count,
        spatial_strides: Sequence[Count],
        temporal_strides: Sequence[Count],
        quantizer: Mapping[str, Any],
        *,
        first_frame: Annotated[str, OneOf(*FIRST_FRAMES)] = "plain",
        middle_blocks: Natural = 1,
        attention: bool = True,
        norm_groups: Natural = 0,
        padding: Annotated[str, OneOf("zero", "replicate")] = "zero",
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        networks = Networks.of(
            *(width, multipliers, spatial_strides, temporal_strides),
            **dict(blocks=blocks, middle_blocks=middle_blocks, time_kernel=3, groups=norm_groups, padding=padding),
            **dict(downsampling="strided", adaptive=False, attention=attention),
        )
        super().__init__(networks, quantizer, channels=3, remat=remat, dtype=dtype, rngs=rngs)
        self.fine = first_frame == "fine"
        if not self.fine:
            return
        self.factor = networks.strides[-1][1] if networks.strides else 1
        if self.factor == 1:
            raise UserError("a fine first frame leaves out the last of the spatial_strides, which must be above 1")
        deep, code, step = networks.widths[-1], self.quantizer.width, (1, self.factor, self.factor)
        self.shrink = Convolution(code, code, (1, 3, 3), stride=step, dtype=dtype, rngs=rngs)
        self.adapter = Linear(
            deep, deep, axes=("embed", None), initializer=scaled_identity(1.0), dtype=dtype, rngs=rngs
        )

    def in_mode(self, mode: str) -> "OneVae":
        """This tokenizer with the same weights and the other path of ``two_paths``: ``discrete`` or ``continuous``."""
        other = nnx.merge(*nnx.split(self))
        other.quantizer.mode = mode
        return other

    @property
    def variants(self) -> Mapping[str, Tokenizer]:
        return {"continuous": self.in_mode("continuous")} if self.vocabulary else {}

    @property
    def features(self) -> dict[str, int]:
        """With a fine first frame latents lie on two grids, so that no term of a loss reads them."""
        return {} if self.fine else super().features

    @property
    def begins(self) -> Mapping[str, int]:
        """``rest`` begins with the second latent frame."""
        return {REST: 1} if self.fine else {}

    @property
    def compressions(self) -> Mapping[str, Compression]:
        if not self.fine:
            return super().compressions
        time, height, width = self.compression.time, self.compression.height, self.compression.width
        return {FIRST: Compression(time, height // self.factor, width // self.factor), REST: self.compression}

    def layout(self, shape: VideoShape) -> Layout:
        """``video``, or with a fine first frame ``first`` (1, 2·h, 2·w) and ``rest`` (t - 1, h, w), of which an image
        has the first only; raises ``UserError`` for a clip that it has no latents for."""
        if not self.fine:
            return super().layout(shape)
        time, height, width = shape.grid(self.compression).shape
        lengths = {FIRST: (1, self.factor * height, self.factor * width)}
        return self._layout(lengths | ({REST: (time - 1, height, width)} if time > 1 else {}))

    def _layout(self, lengths: Mapping[str, Sequence[int]]) -> Layout:
        kind = dict(vocabulary=self.vocabulary, channels=0 if self.vocabulary else self.quantizer.width)
        sides = {name: tuple(zip(GRID, of_part, strict=True)) for name, of_part in lengths.items()}
        return Layout.of(**{name: SegmentLayout(of_part, **kind) for name, of_part in sides.items()})

    def encode(self, video: Video, request: None = None) -> Encoded:
        """Posteriors, float32: ``[batch, time, height, width, input_width]``, or these by segment."""
        self.layout(VideoShape(*video.shape[1:4]))
        return self._encoded(video)

    def _encoded(self, video: Video, stream: Stream | None = None) -> Encoded:
        latents = self.encoder(video, stream)
        if not self.fine:
            return Encoded(latents)
        if stream is not None and not stream.first:
            return Encoded({REST: latents})
        # The plain latent of the first frame is not used, but later ones have seen what led to it.
        first = self.encoder(video[:, :1], downs=len(self.encoder.downs) - 1)
        return Encoded({FIRST: first} | ({REST: latents[:, 1:]} if latents.shape[1] > 1 else {}))

    def bottleneck(
        self, encoded: Encoded, *, key: Array | None = None, train: bool = False, mean: Mean = whole
    ) -> tuple[Latents | Parts, Tokens, dict[str, Float[Array, ""]], dict[str, Any]]:
        if not self.fine:
            return super().bottleneck(encoded, key=key, train=train, mean=mean)
        shapes = {name: encoded.values[name].shape[:4] for name in (FIRST, REST) if name in encoded.values}
        layout = self._layout({name: shape[1:] for name, shape in shapes.items()})
        # All places of a clip at once: an example takes one path.
        places = [
            encoded.values[name].reshape(shape[0], -1, self.quantizer.input_width) for name, shape in shapes.items()
        ]
        quantized = self.quantizer(jnp.concatenate(places, axis=1), key=key, train=train, mean=mean)
        latents = Tokens.from_flat(quantized.latents, self._layout_of_floats(layout))
        tokens = Tokens.from_flat(quantized.indices, layout) if self.vocabulary else latents
        return _values(latents), tokens, quantized.losses, quantized.measured

    def _layout_of_floats(self, layout: Layout) -> Layout:
        width = self.quantizer.width
        return Layout.of(**{name: SegmentLayout(segment.sides, channels=width) for name, segment in layout.segments})

    def lookup(self, tokens: Tokens) -> Latents | Parts:
        if not self.fine:
            return super().lookup(tokens)
        values = _values(tokens)
        return {name: self.quantizer.lookup(ids) for name, ids in values.items()} if self.vocabulary else values

    def decode(self, latents: Latents | Parts) -> Video:
        """Latents, or with a fine first frame those of both segments, to pixels.

        Raises:
          UserError: the first frame is not there.
        """
        if self.fine and FIRST not in latents:
            raise UserError("these latents have no first frame: later chunks of a clip go through decode_chunk")
        return self._decoded(latents)

    def _decoded(self, latents: Latents | Parts, stream: Stream | None = None) -> Video:
        decoder = self.decoder
        if not self.fine:
            return decoder(latents, stream)
        first, parts = latents.get(FIRST), [latents[REST]] if REST in latents else []
        if first is not None:
            parts.insert(0, self.shrink(first).astype(first.dtype))
        x = jnp.concatenate(parts, axis=1)
        x = decoder.ups[0](decoder.level(0, decoder.deepest(x, stream), x, stream), stream)
        if first is not None:
            own = self.adapter(decoder.level(0, decoder.deepest(first), first))
            x = jnp.concatenate([own.astype(x.dtype), x[:, 1:]], axis=1)
        return decoder.shallower(1, x, x, stream)

    def encode_chunk(self, cache: Cache | None, chunk: Video) -> tuple[Cache, Encoded]:
        self.check_chunk(chunk, first=cache is None)
        stream = Stream(cache)
        encoded = self._encoded(chunk, stream)
        return stream.cache, encoded

    def decode_chunk(self, cache: Cache | None, latents: Latents | Parts) -> tuple[Cache, Video]:
        stream = Stream(cache)
        video = self._decoded(latents, stream)
        return stream.cache, video


def _values(tokens: Tokens) -> dict[str, Array]:
    return {name: segment.values for name, segment in tokens.items()}
