"""The contract of tokenizers, and what all of them share."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError
from videogen.nn import Mean, MicroBatch, whole
from videogen.shapes import Compression, Latents, TokenGrid, Video, VideoShape, check_video
from videogen.tokenizers.lengths import ASKED, All, LengthRule
from videogen.tokens import GRID, Layout, Segment, SegmentLayout, Tokens

SEGMENT = "video"
"""The name of the one segment of most tokenizers."""


class Encoded(NamedTuple):
    """What an encoder makes of a clip.

    Attributes:
      values: latents before quantisation, float32 ``[batch, *sides, quantizer.input_width]``; of a system whose tokens
        are several segments what its ``bottleneck`` takes.
      exists: which of them are no padding, ``[batch, *sides]``; ``None``: all.
      extra: what else a system's bottleneck or losses need, by name.
    """

    values: Float[Array, "batch ..."]
    exists: Bool[Array, "batch ..."] | None = None
    extra: Mapping[str, Any] = {}


class Compared(NamedTuple):
    """What training compares, and what else it needs of the examples.

    Attributes:
      video: stands beside the clips; of a decoder that diffuses, what it sees in noisy ones.
      passes: further predictions by name, each with what it should be.
      features: what else terms of losses read, by name.
      sums: what ``update`` needs of the examples, added up over those of a step.
    """

    video: Video
    passes: Mapping[str, tuple[Array, Array]] = {}
    features: Mapping[str, Array] = {}
    sums: Mapping[str, Array] = {}


class Tokenizer(nnx.Module):
    """Video -> latents -> tokens -> video.

    A system gives ``compression``, ``quantizer``, ``last_layer``, ``encode`` and ``decode``; one that streams gives
    ``encode_chunk`` and ``decode_chunk``, too. The other methods follow from these; a system whose tokens are several
    segments gives ``layout``, ``bottleneck`` and ``lookup`` itself.

    Attributes:
      compression: pixels per latent along each axis.
      quantizer: makes codes of latents.
      last_layer: path of the last layer of the decoder, where adaptive weights of losses compare gradients.
      sides: names of the sides that tokens lie along.
      begins: the latent frame of a clip that a segment begins with, by its name, where that is not the first one.
      prefix_equal: tokens of the first frames of a clip are the first tokens of the clip.
      drops: the decoder can do without some of the tokens (``Segment.kept``).
      adapts: it decides by itself which tokens a clip needs for an error that may be asked for (``Request``).
      residual: a segment codes what those before it leave open (``relabel``).
      lengths: decides which tokens the decoder sees; all, but of tokenizers with ``drops``.
      normalised: tokens are normalised latents, of mean 0 and variance 1; ``lookup`` gives the raw ones.
      streams: there are ``encode_chunk`` and ``decode_chunk``, so that a video may be longer than memory.
      growing: of the directions ``encode`` and ``decode`` those that see the whole past of a clip, whose caches grow.
      diffuses: pixels are drawn by a diffusion process, whose number of steps ``decode`` takes as ``steps``.
      scales: every segment adds to what those before it say: there are ``partial`` and ``relabel``.
      field: the array of a batch that is encoded, uint8 ``[batch, time, height, width, channel]``.
      needs: arrays of a batch that ``decode`` is told by name, pictures ``[batch, height, width, 3]``, where they are
        known.
      drawn_with: what decides how ``decode`` draws, for the record of a sample.
    """

    compression: Compression
    quantizer: nnx.Module
    last_layer: tuple[str, ...]
    sides: tuple[str, ...] = GRID
    begins: Mapping[str, int] = MappingProxyType({})
    prefix_equal: bool = False
    drops: bool = False
    adapts: bool = False
    residual: bool = False
    lengths: LengthRule = All()
    normalised: bool = False
    streams: bool = False
    growing: Sequence[str] = ()
    diffuses: bool = False
    scales: bool = False
    field: str = "video"
    needs: Sequence[str] = ()
    drawn_with: Mapping[str, Any] = MappingProxyType({})

    def encode(self, video: Video, request: Any = None) -> Encoded:
        """Pixels to latents before quantisation.

        Args:
          video: in [-1, 1].
          request: how many tokens are asked for, or how good a reconstruction (``requests.Request``); of tokenizers
            that let one choose.
        """
        raise NotImplementedError

    def decode(self, latents: Latents, kept: Bool[Array, "batch ..."] | None = None, **settings: Any) -> Video:
        """Quantised latents, as wide as ``quantizer.width``, to pixels.

        Args:
          latents: ``[batch, *sides, width]``.
          kept: those that may be seen; ``None``: all. Only tokenizers with ``drops`` take another.
          **settings: of a decoder that draws.
        """
        raise NotImplementedError

    def encode_chunk(self, cache: Any, chunk: Video) -> tuple[Any, Encoded]:
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

    def denoise(
        self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None, **seen: Any
    ) -> Video:
        """What training compares with ``video``; of a decoder that diffuses, the video that it sees in a noisy one."""
        return self.decode(latents, **seen, **self.sized(VideoShape(*video.shape[1:4])))

    def sized(self, shape: VideoShape) -> dict[str, Any]:
        """What ``decode`` must be told so that clips have this shape; nothing where the latents say it."""
        return {}

    def compare(
        self,
        encoded: Encoded,
        latents: Latents,
        video: Video,
        key: jax.Array,
        micro: MicroBatch | None = None,
        **seen: Any,
    ) -> Compared:
        """What training compares; ``denoise`` for those whose losses are of pixels.

        Args:
          encoded: of the video.
          latents: the same, quantised.
          video: in [-1, 1].
          key: decides what is drawn.
          micro: which examples of the batch these are; ``None`` means all.
          **seen: what ``seen`` gives.
        """
        return Compared(self.denoise(latents, video, key, micro, **seen))

    def update(self, sums: Mapping[str, Any], candidates: Any, key: jax.Array | None = None) -> None:
        """Moves what is measured and not trained, once per step.

        Args:
          sums: ``update_sums`` of the quantizer, and ``compared``: ``Compared.sums``.
          candidates: as ``Quantizer.update`` takes them.
          key: for what is drawn at random.
        """
        self.quantizer.update(sums["update_sums"], candidates, key)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Number of codes of each level; empty where latents are continuous."""
        return self.quantizer.vocabulary

    @property
    def features(self) -> dict[str, int]:
        """Channels of what terms of losses can read, by name: latents before (``encoded``) and behind the quantizer
        (``vectors``), and of a system of its own what else it gives as ``Encoded.extra``."""
        return {"encoded": self.quantizer.input_width, "vectors": self.quantizer.width}

    @property
    def feature_compression(self) -> Compression:
        """Pixels per place of those features that have places."""
        return self.compression

    @property
    def coder(self) -> "Tokenizer":
        """The tokenizer whose codes these are: this one, unless only the decoder is its own."""
        return self

    @property
    def variants(self) -> "Mapping[str, Tokenizer]":
        """Other uses of the same weights that an evaluation measures as well, by name."""
        return {}

    @property
    def compressions(self) -> Mapping[str, Compression]:
        """Pixels per place of each segment that lies on a grid, by its name."""
        return {SEGMENT: self.compression} if self.on_grid else {}

    @property
    def on_grid(self) -> bool:
        """Whether there is one token for every place of the clip's grid."""
        return self.sides == GRID

    def layout(self, shape: VideoShape) -> Layout:
        """The tokens of a clip; raises ``UserError`` for a shape the tokenizer cannot take."""
        return self.layout_of(shape.grid(self.compression).shape)

    def layout_of(self, lengths: Sequence[int]) -> Layout:
        """The layout of tokens whose ``sides`` have these lengths."""
        channels = 0 if self.vocabulary else self.quantizer.width
        sides = tuple(zip(self.sides, lengths, strict=True))
        return Layout.of(**{SEGMENT: SegmentLayout(sides, self.vocabulary, channels)})

    def grid(self, shape: VideoShape) -> TokenGrid:
        """The one segment of a clip as time × height × width; raises ``UserError`` as ``layout`` does."""
        return self.layout(shape).only.grid

    def budgets(self, layout: Layout) -> list[int]:
        """Numbers of tokens that may be asked for, those worth trying; none where the decoder needs all tokens.

        Of one segment they are the powers of two and all; of tokens in rows (latent frames) those of a row. Of several
        segments they are the tokens of the first ones together.
        """
        if not self.drops:
            return []
        if len(layout.segments) > 1:
            return [*itertools.accumulate(segment.tokens for _, segment in layout.segments)]
        row = layout.only.shape[-1]
        return [2**i for i in range(row.bit_length()) if 2**i < row] + [row]

    def centres(self, shape: VideoShape) -> dict[str, Float[np.ndarray, "time height width 3"]]:
        """Where the tokens of a clip lie, by segment: the middle of what each stands for, in frames, rows and columns.

        They are in the same units for all segments, whatever their compression; segments without a grid have none.
        """
        grids = [(name, segment.shape) for name, segment in self.layout(shape).segments if name in self.compressions]
        return {name: self.compressions[name].centres(sides, self.begins.get(name, 0)) for name, sides in grids}

    def check_chunk(self, chunk: Video, first: bool) -> None:
        """Raises ``UserError`` for a chunk of a length, or of a height or width, that cannot be coded."""
        self.layout(self.compression.chunk(VideoShape(*chunk.shape[1:4]), first=first))

    def bottleneck(
        self, encoded: Encoded, *, key: jax.Array | None = None, train: bool = False, mean: Mean = whole
    ) -> tuple[Latents, Tokens, dict[str, Float[Array, ""]], dict[str, Any]]:
        """Quantises latents: ``(quantised latents, tokens, losses, Quantized.measured)``, called as a quantizer is."""
        values = encoded.values.astype(jnp.float32)
        quantized = self.quantizer(values, key=key, train=train, mean=mean, exists=encoded.exists)
        kept = encoded.extra.get(ASKED)
        if kept is None:
            known = {"exists": encoded.exists, "extra": encoded.extra}
            kept = self.lengths.kept(values.shape[:-1], **known, key=key, train=train)
        layout = self.layout_of(values.shape[1:-1])
        values = quantized.indices if self.vocabulary else quantized.latents
        segments = {name: Segment(values, segment, encoded.exists, kept) for name, segment in layout.segments}
        return quantized.latents, Tokens.of(**segments), quantized.losses, quantized.measured

    def tokenize(self, video: Video, request: Any = None, keys: jax.Array | None = None) -> Tokens:
        """Pixels to tokens: codes, or of a continuous tokenizer the mean of its posterior.

        Args:
          video: in [-1, 1].
          request: as ``encode`` takes it.
          keys: one of each clip, for quantizers that draw outside of training, too.
        """
        check_video(video)
        return self.bottleneck(self.encode(video, request), key=keys)[1]

    def detokenize(self, tokens: Tokens, **settings: Any) -> Video:
        """Tokens to pixels, clipped to [-1, 1]; ``settings`` are those of ``decode``."""
        return jnp.clip(self.decode(self.lookup(tokens), **self.seen(tokens), **settings), -1.0, 1.0)

    def kept_by(self, request: Any = None) -> str:
        """Which tokens may be left out of clips that are encoded with a request: a name in ``data.bits.KEPT``."""
        return "prefix" if isinstance(request, int) else self.lengths.kept_tokens

    def seen(self, tokens: Tokens) -> dict[str, Bool[Array, "batch ..."]]:
        """What ``decode`` must be told of tokens beside their latents: ``kept`` where it may not see all.

        Raises:
          UserError: it cannot do without some.
        """
        if all(segment.seen is None for segment in tokens.segments):
            return {}
        if not self.drops:
            raise UserError(f"{type(self).__name__} decodes whole clips of tokens only, and some are left out here")
        return {"kept": tokens.only.seen}

    def lookup(self, tokens: Tokens) -> Latents:
        """The quantised latents that tokens stand for."""
        return self.quantizer.lookup(tokens.only.values) if self.vocabulary else tokens.only.values

    @property
    def readings(self) -> Mapping[str, slice]:
        """Parts of the channels of quantised latents that mean something by themselves, by name."""
        return {}

    def partial(self, tokens: Tokens, segment: str, *, through: bool = False) -> Float[Array, "batch *sides width"]:
        """What the segments before ``segment`` sum up to, resized to its sides: the input of a next-scale generator.

        Args:
          tokens: at least the segments that are summed; others are not looked at. Before the first one the sum is 0.
          segment: a name in the layout.
          through: ``segment`` itself is in the sum, too.

        Raises:
          UserError: this tokenizer has no such sums, or a segment before is missing.
        """
        raise UserError(f"{type(self).__name__} has no partial sums: its segments do not add up (scales)")

    def relabel(self, encoded: Encoded, tokens: Tokens, segment: str) -> Segment:
        """The tokens of ``segment``, where those before it are shown as ``tokens`` has them, right or wrong.

        What wrong ids leave over is coded, so that all together still sum up to the latents as far as codes can.
        Behind the right ids it gives the right ones. Segments that ``tokens`` lacks are made as well.

        Args:
          encoded: of the clips.
          tokens: one or more first segments; that one and later ones are not looked at.
          segment: a name in the layout.

        Raises:
          UserError: this tokenizer has no such sums.
        """
        raise UserError(f"{type(self).__name__} has no partial sums: its segments do not add up (scales)")
