"""HiTVideo's tokenizer (2025): one causal encoder, several layers of codes of different compression, coarse to fine."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError
from videogen.nn import FULL, Linear, Mean, Stream, draw, example_keys, frame_norm, named_key, whole
from videogen.quantizers.base import require_key
from videogen.ranges import Count, Natural, OneOf, Share, Triple
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.convolutional import Cache, Decoder, Down, Encoder, Level
from videogen.tokenizers.convolutional import Layout as Networks
from videogen.tokenizers.hierarchy import FORMS, Hierarchy, drawn_layers
from videogen.tokenizers.lengths import ASKED
from videogen.tokens import GRID, Layout, Segment, SegmentLayout, Tokens


class Stage(nnx.Module):
    """From the features of one layer to those of the next coarser one: down-sampling, residual blocks, read-out."""

    def __init__(
        self,
        stride: Sequence[int],
        outputs: int,
        networks: Networks,
        *,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width, common = networks.widths[-1], dict(dtype=dtype, rngs=rngs)
        self.down = Down(width, tuple(stride), networks, **common)
        self.level = Level(width, width, networks.blocks, networks, remat=remat, **common)
        self.norm = frame_norm(width, networks.groups, rngs)
        self.output = Linear(width, outputs, axes=("embed", None), precision=FULL, rngs=rngs)

    def __call__(self, x: Array, stream: Stream | None = None) -> tuple[Array, Latents]:
        """The features that the next stage takes, and those that are coded, float32."""
        x = self.level(self.down(x, stream), stream)
        return x, self.output(jax.nn.swish(self.norm(x)).astype(jnp.float32))


class HitVideo(Tokenizer):
    """A clip in layers of codes, ``layer_3`` (the coarsest) to ``layer_1``, of which the first ones decode as well.

    The encoder and decoder are those of MAGVIT-v2 down to the grid of ``layer_1``; further stages lead from there to
    coarser grids, in space and time. The layers are coded top down (``hierarchy.Hierarchy``), and the decoder sees the
    sum of their up-sampled codes on the finest grid. The paper's text was not found: this is the reading of its
    abstract in which every layer codes what those above it leave open.

    Features of a layer depend on no frame after those of their own latent. Codes below the first layer depend on codes
    above them, which stand for more frames, so codes are causal in steps of the coarsest layer: the first 1 + k·t
    frames, with t of that layer, have the first codes of the clip, in every layer.

    Layers decode whole or not at all: ``tokenize(video, K)`` keeps the first layers, which must have K tokens together.
    In training at least the last n layers of a clip are dropped with probability ``layer_drop^n``, never the first.

    Args:
      width, multipliers, blocks, spatial_strides, temporal_strides, middle_blocks, norm_groups, padding, remat: of the
        networks down to ``layer_1``, as ``ConvolutionalTokenizer`` takes them; a stage has as many blocks as a level.
      layer_strides: ``(time, height, width)`` down-sampling from each layer to the next coarser one, from ``layer_1``.
      quantizers: quantizer config ``{name, …}`` of each layer by its name.
      code_width: channels of the features that are coded and of their sum.
      form: what a layer codes, a name in ``hierarchy.FORMS``.
      layer_drop: probability in training that the last layer of a clip is dropped.
    """

    last_layer = ("decoder", "output")
    prefix_equal = streams = drops = True

    def __init__(
        self,
        width: Count,
        multipliers: Sequence[Count],
        blocks: Count,
        spatial_strides: Sequence[Count],
        temporal_strides: Sequence[Count],
        layer_strides: Sequence[Triple],
        quantizers: Mapping[str, Mapping[str, Any]],
        *,
        code_width: Count = 32,
        form: Annotated[str, OneOf(*FORMS)] = "residual",
        layer_drop: Share = 0.25,
        middle_blocks: Natural | None = None,
        norm_groups: Natural = 32,
        padding: Annotated[str, OneOf("zero", "replicate")] = "zero",
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        about = dict(middle_blocks=middle_blocks, norm_groups=norm_groups, padding=padding)
        networks = Networks.causal(width, multipliers, blocks, spatial_strides, temporal_strides, **about)
        names = [f"layer_{i + 1}" for i in reversed(range(len(layer_strides) + 1))]
        if set(quantizers) != set(names):
            got = ", ".join(quantizers) or "none"
            raise UserError(f"{len(layer_strides)} layer_strides need quantizers for {', '.join(names)}; got {got}")
        finest, self.layer_drop = networks.compression(), layer_drop
        grown = itertools.accumulate(layer_strides, lambda a, b: tuple(map(operator.mul, a, b)), initial=(1, 1, 1))
        sizes = [(finest.time * t, finest.height * h, finest.width * w) for t, h, w in grown]
        self._compressions = tuple(zip(names, (Compression(*size) for size in reversed(sizes)), strict=True))
        self.compression = self.compressions[names[0]]
        common = dict(remat=remat, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(networks, 3, code_width, **common)
        self.stages = nnx.List([Stage(stride, code_width, networks, **common) for stride in layer_strides])
        configs = {name: quantizers[name] for name in names}
        self.quantizer = Hierarchy(configs, [*reversed(layer_strides)], code_width, form, rngs=rngs)
        self.decoder = Decoder(networks, code_width, 3, **common)

    @property
    def residual(self) -> bool:
        """Whether layers code what those above leave open, or features mixed with it."""
        return self.quantizer.residual

    @property
    def compressions(self) -> Mapping[str, Compression]:
        return dict(self._compressions)

    @property
    def features(self) -> dict[str, int]:
        """Features of layers before they are coded lie on several grids, so that no term of a loss reads them."""
        return {"vectors": self.quantizer.width}

    @property
    def feature_compression(self) -> Compression:
        return self.compressions[self.quantizer.names[-1]]

    def layout(self, shape: VideoShape) -> Layout:
        """One segment for each layer, the coarsest first; raises ``UserError`` for a clip that it has no codes for."""
        shape.grid(self.compression)
        return self._layout({name: shape.grid(pixels).shape for name, pixels in self.compressions.items()})

    def _layout(self, lengths: Mapping[str, Sequence[int]]) -> Layout:
        layers = zip(self.quantizer.names, self.quantizer.layers, strict=True)
        sides = {name: tuple(zip(GRID, of_layer, strict=True)) for name, of_layer in lengths.items()}
        return Layout.of(**{name: SegmentLayout(sides[name], layer.vocabulary) for name, layer in layers})

    def encode(self, video: Video, request: int | None = None) -> Encoded:
        """Features of each layer by its name, float32 ``[batch, time, height, width, code_width]``.

        Args:
          video: in [-1, 1].
          request: how many tokens the decoder is to see: those of the first layers; ``None``: all.

        Raises:
          UserError: no first layers have so many tokens, or the clip has no such grids.
        """
        layout = self.layout(VideoShape(*video.shape[1:4]))
        extra = {} if request is None else {ASKED: self._asked(request, layout, len(video))}
        return Encoded(self._features(video), extra=extra)

    def _features(self, video: Video, stream: Stream | None = None) -> dict[str, Latents]:
        x = self.encoder.features(video, stream)
        found = [self.encoder.latents(x)]
        for stage in self.stages:
            x, features = stage(x, stream)
            found.append(features)
        return dict(zip(self.quantizer.names, reversed(found), strict=True))

    def _asked(self, request: int, layout: Layout, batch: int) -> Bool[Array, "batch layers"]:
        sums = self.budgets(layout)
        if request not in sums:
            known = ", ".join(map(str, sums))
            raise UserError(f"the first layers of this clip have {known} tokens; ask for one of these, not {request}")
        return jnp.broadcast_to(jnp.asarray(sums) <= request, (batch, len(sums)))

    def bottleneck(
        self, encoded: Encoded, *, key: jax.Array | None = None, train: bool = False, mean: Mean = whole
    ) -> tuple[Latents, Tokens, dict[str, Float[Array, ""]], dict[str, Any]]:
        kept = encoded.extra.get(ASKED)
        if kept is None and train and self.layer_drop:
            batch = len(next(iter(encoded.values.values())))
            keys = named_key(example_keys(require_key(key, "layer drop"), batch), "layers")
            uniform = draw(jax.random.uniform, keys, (batch,))
            kept = drawn_layers(uniform, self.layer_drop, len(self.quantizer.names))
        quantized = self.quantizer(encoded.values, key=key, train=train, mean=mean, kept=kept)
        tokens = self._tokens(quantized.indices, kept)
        return quantized.latents, tokens, quantized.losses, quantized.measured

    def relabel(self, encoded: Encoded, tokens: Tokens, segment: str) -> Segment:
        """As for all residual tokenizers: what codes of the layers above leave open is coded."""

        def shown(name: str, ids: Array) -> Array:
            return tokens[name].values if name in tokens.names else ids

        return self._tokens(self.quantizer(encoded.values, disturb=shown).indices)[segment]

    def _tokens(self, ids: Mapping[str, Array], kept: Bool[Array, "batch layers"] | None = None) -> Tokens:
        layout, segments = self._layout({name: x.shape[1:4] for name, x in ids.items()}), {}
        for i, (name, segment) in enumerate(layout.segments):
            mask = None
            if i and kept is not None:
                mask = jnp.broadcast_to(kept[:, i, None, None, None], ids[name].shape[:4])
            segments[name] = Segment(ids[name], segment, kept=mask)
        return Tokens.of(**segments)

    def lookup(self, tokens: Tokens) -> Latents:
        """The sum of the codes of all layers, or of the first ones, where the others are not there or not kept.

        Raises:
          UserError: a layer is there in part, or without one above it.
        """
        names = self.quantizer.names
        if tokens.names != names[: len(tokens.names)]:
            known = ", ".join(names)
            raise UserError(f"these are {', '.join(tokens.names)}, and what decodes are the first of {known}")
        ids, there = {name: segment.values for name, segment in tokens.items()}, tokens.whole_segments()
        if there is not None:
            there = jnp.pad(there, ((0, 0), (0, len(names) - len(tokens.names))))
        return self.quantizer.lookup(ids, there)

    def seen(self, tokens: Tokens) -> dict[str, Bool[Array, "batch ..."]]:
        """Nothing: latents say what is dropped."""
        return {}

    def decode(self, latents: Latents) -> Video:
        """The sum of codes on the finest grid, ``[batch, time, height, width, code_width]``, to pixels."""
        return self.decoder(latents)

    def encode_chunk(self, cache: Cache | None, chunk: Video) -> tuple[Cache, Encoded]:
        self.check_chunk(chunk, first=cache is None)
        stream = Stream(cache)
        features = self._features(chunk, stream)
        return stream.cache, Encoded(features)

    def decode_chunk(self, cache: Cache | None, latents: Latents) -> tuple[Cache, Video]:
        stream = Stream(cache)
        video = self.decoder(latents, stream)
        return stream.cache, video
