"""The causal 3-D convolutional tokenizer of MAGVIT-v2 (Yu et al., 2023), and the networks it shares with MAGVIT."""

import dataclasses
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from videogen import quantizers
from videogen.errors import UserError, near_matches
from videogen.nn import (
    FULL,
    AdaptiveGroupNorm,
    Convolution,
    DepthToSpace,
    FrameAttention,
    Linear,
    ResidualBlock,
    Stack,
    Stream,
    average_pool,
    blur_pool,
    checkpointed,
    frame_norm,
    repeat,
)
from videogen.nn.convolution import VALID
from videogen.ranges import Count, Natural
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer

DOWNSAMPLING = ("strided", "blurred", "average")
"""A strided convolution; blur pooling and a convolution; the mean of boxes (not causal)."""

Cache = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What an encoder and its mirrored decoder have in common.

    Attributes:
      widths: channels of each level, from the pixels down.
      strides: ``(time, height, width)`` between one level and the next.
      blocks: residual blocks of each level.
      middle_blocks: residual blocks after the last level (before it, in the decoder).
      time_kernel: frames of every kernel; 1 makes an image tokenizer.
      groups: groups of the norms; 0: RMS norms over the channels of each place (``nn.frame_norm``).
      padding: time padding (``nn.convolution.PADDINGS``).
      downsampling: a name in ``DOWNSAMPLING``.
      depth_to_space: up-sampling by depth-to-space; otherwise nearest neighbours and a convolution.
      adaptive: every level of the decoder begins with a group norm that sees the quantised latents.
      attention: behind the middle blocks attention within each frame, and as many blocks once more.
    """

    widths: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]
    blocks: int
    middle_blocks: int
    time_kernel: int
    groups: int
    padding: str
    downsampling: str
    depth_to_space: bool = True
    adaptive: bool = True
    attention: bool = False

    @classmethod
    def of(
        cls,
        width: Count,
        multipliers: Sequence[Count],
        spatial_strides: Sequence[Count],
        temporal_strides: Sequence[Count],
        **other: Any,
    ) -> "Layout":
        """Checks and combines the per-level settings of a config."""
        between = len(multipliers) - 1
        for name, strides in (("spatial_strides", spatial_strides), ("temporal_strides", temporal_strides)):
            if len(strides) != between:
                raise UserError(f"{len(multipliers)} multipliers need {between} {name}, got {list(strides)}")
        if other["downsampling"] not in DOWNSAMPLING:
            known = near_matches(other["downsampling"], DOWNSAMPLING)
            raise UserError(f"unknown downsampling {other['downsampling']!r}{known}")
        if other["downsampling"] == "average" and other["padding"] != "same":
            raise UserError("average pooling in time is not causal; use downsampling='strided' or 'blurred'")
        strides = tuple((t, s, s) for t, s in zip(temporal_strides, spatial_strides, strict=True))
        return cls(tuple(width * m for m in multipliers), strides, **other)

    @classmethod
    def causal(
        cls,
        width: Count,
        multipliers: Sequence[Count],
        blocks: Count,
        spatial_strides: Sequence[Count],
        temporal_strides: Sequence[Count],
        *,
        middle_blocks: Natural | None = None,
        time_kernel: Count = 3,
        norm_groups: Count = 32,
        padding: str = "zero",
        downsampling: str = "strided",
    ) -> "Layout":
        """That of MAGVIT-v2, from the settings of ``ConvolutionalTokenizer``."""
        if padding in ("same", VALID):
            raise UserError(f"padding {padding!r} lets the future into the past; use 'zero' or 'replicate'")
        return cls.of(
            width,
            multipliers,
            spatial_strides,
            temporal_strides,
            blocks=blocks,
            middle_blocks=blocks if middle_blocks is None else middle_blocks,
            time_kernel=time_kernel,
            groups=norm_groups,
            padding=padding,
            downsampling=downsampling,
            depth_to_space=True,
            adaptive=True,
        )

    @property
    def kernel(self) -> tuple[int, int, int]:
        """(time, height, width) of the convolutions."""
        return (self.time_kernel, 3, 3)

    def factors(self) -> list[tuple[int, int, int]]:
        """Places of each level that one latent stands for, along each axis."""
        steps = itertools.accumulate(reversed(self.strides), lambda a, b: tuple(map(operator.mul, a, b)))
        return [*reversed(list(steps)), (1, 1, 1)]

    def compression(self) -> Compression:
        """Pixels per latent along each axis."""
        return Compression(*self.factors()[0], first_alone=self.padding != "same")


class Level(nnx.Module):
    """Residual blocks, stacked where their shapes are equal; the first one changes the width if need be."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, layout: Layout, *, remat: str, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        common = dict(groups=layout.groups, padding=layout.padding, dtype=dtype)
        self.remat = remat
        changes = inputs != outputs
        self.change = ResidualBlock(inputs, outputs, layout.kernel, **common, rngs=rngs) if changes else None

        def make(r: nnx.Rngs) -> ResidualBlock:
            return ResidualBlock(outputs, outputs, layout.kernel, **common, rngs=r)

        self.blocks = Stack(make, blocks - changes, remat=remat, rngs=rngs)

    def __call__(self, x: Array, stream: Stream | None = None) -> Array:
        if self.change is not None:
            x = checkpointed(self.change, self.remat, x) if stream is None else self.change(x, stream=stream)
        return self.blocks(x, stream=stream)


class Down(nnx.Module):
    """Down-sampling by ``stride``, as the layout says."""

    def __init__(self, width: int, stride: tuple[int, int, int], layout: Layout, **common: Any):
        self.stride, self.padding, self.kind = stride, layout.padding, layout.downsampling
        step = stride if self.kind == "strided" else (1, 1, 1)
        self.convolution = (
            None
            if self.kind == "average"
            else Convolution(width, width, layout.kernel, stride=step, padding=layout.padding, **common)
        )

    def __call__(self, x: Array, stream: Stream | None = None) -> Array:
        if self.kind == "average":
            return average_pool(x, self.stride)
        if self.kind == "blurred":
            x = blur_pool(x, self.stride, self.padding, stream)
        return self.convolution(x, stream)


class NearestUp(nnx.Module):
    """Nearest-neighbour up-sampling, then a convolution (not causal)."""

    def __init__(self, width: int, stride: tuple[int, int, int], layout: Layout, **common: Any):
        self.stride = stride
        self.convolution = Convolution(width, width, layout.kernel, padding=layout.padding, **common)

    def __call__(self, x: Array, stream: Stream | None = None) -> Array:
        return self.convolution(repeat(x, self.stride, drop_first=False), stream)


class Middle(Level):
    """The middle blocks; with attention between as many on either side."""

    def __init__(self, layout: Layout, *, remat: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, common = layout.widths[-1], dict(remat=remat, dtype=dtype, rngs=rngs)
        super().__init__(width, width, layout.middle_blocks, layout, **common)
        attends = layout.attention
        self.attention = FrameAttention(width, groups=layout.groups, dtype=dtype, rngs=rngs) if attends else None
        self.after = Level(width, width, layout.middle_blocks, layout, **common) if attends else None

    def __call__(self, x: Array, stream: Stream | None = None) -> Array:
        x = super().__call__(x, stream)
        return x if self.after is None else self.after(self.attention(x), stream)


class Encoder(nnx.Module):
    """Convolution; residual levels with down-sampling between them; middle blocks; norm, swish, 1×1×1 convolution."""

    def __init__(self, layout: Layout, channels: int, outputs: int, *, remat: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        widths, deep = layout.widths, layout.widths[-1]
        self.input = Convolution(channels, widths[0], layout.kernel, padding=layout.padding, **common)
        ins = (widths[0], *widths[:-1])
        pairs = zip(ins, widths, strict=True)
        self.levels = nnx.List([Level(a, b, layout.blocks, layout, remat=remat, **common) for a, b in pairs])
        pairs = zip(widths, layout.strides, strict=False)
        self.downs = nnx.List([Down(width, stride, layout, **common) for width, stride in pairs])
        self.middle = Middle(layout, remat=remat, **common)
        self.norm = frame_norm(deep, layout.groups, rngs)
        # Quantizers work in float32, so the projection before them does too.
        self.output = Linear(deep, outputs, axes=("embed", None), precision=FULL, rngs=rngs)

    def __call__(self, video: Video, stream: Stream | None = None, downs: int | None = None) -> Latents:
        """Latents; with fewer ``downs`` than there are the last down-samplings are left out."""
        return self.latents(self.features(video, stream, downs))

    def features(self, video: Video, stream: Stream | None = None, downs: int | None = None) -> Array:
        """What the latents are read from."""
        x = self.input(video, stream)
        for i, level in enumerate(self.levels):
            x = level(x, stream)
            if i < (len(self.downs) if downs is None else downs):
                x = self.downs[i](x, stream)
        return self.middle(x, stream)

    def latents(self, features: Array) -> Latents:
        """Reads latents from features."""
        return self.output(jax.nn.swish(self.norm(features)).astype(jnp.float32))


class Decoder(nnx.Module):
    """The encoder's mirror image, up-sampling between its levels."""

    def __init__(self, layout: Layout, inputs: int, channels: int, *, remat: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        widths, deep = layout.widths[::-1], layout.widths[-1]
        self.input = Convolution(inputs, deep, layout.kernel, padding=layout.padding, **common)
        self.middle = Middle(layout, remat=remat, **common)
        levels, norms, ups = [], [], []
        for i, (width, factors) in enumerate(zip(widths, layout.factors()[::-1], strict=True)):
            before = widths[max(i - 1, 0)]
            if layout.adaptive:
                norms.append(AdaptiveGroupNorm(before, inputs, groups=layout.groups, factors=factors, **common))
            levels.append(Level(before, width, layout.blocks, layout, remat=remat, **common))
            if i < len(layout.strides):
                ups.append(self._up(width, layout.strides[-1 - i], layout, common))
        self.levels, self.norms, self.ups = nnx.List(levels), nnx.List(norms), nnx.List(ups)
        self.norm = frame_norm(widths[-1], layout.groups, rngs)
        self.output = Convolution(widths[-1], channels, layout.kernel, padding=layout.padding, **common)

    @staticmethod
    def _up(width: int, stride: tuple[int, int, int], layout: Layout, common: dict[str, Any]) -> nnx.Module:
        if layout.depth_to_space:
            return DepthToSpace(width, width, layout.kernel, stride=stride, padding=layout.padding, **common)
        return NearestUp(width, stride, layout, **common)

    def __call__(self, latents: Latents, stream: Stream | None = None) -> Video:
        return self.shallower(0, self.deepest(latents, stream), latents, stream)

    def deepest(self, latents: Latents, stream: Stream | None = None) -> Array:
        """What the first level takes."""
        return self.middle(self.input(latents, stream), stream)

    def level(self, number: int, x: Array, latents: Latents, stream: Stream | None = None) -> Array:
        """One level without its up-sampling, from the coarsest one on."""
        if self.norms:
            x = self.norms[number](x, latents)
        return self.levels[number](x, stream)

    def shallower(self, number: int, x: Array, latents: Latents, stream: Stream | None = None) -> Video:
        """Pixels of what a level takes."""
        for i in range(number, len(self.levels)):
            x = self.level(i, x, latents, stream)
            if i < len(self.ups):
                x = self.ups[i](x, stream)
        return self.output(jax.nn.swish(self.norm(x)), stream).astype(jnp.float32)


class Autoencoder(Tokenizer):
    """Encoder, quantizer and decoder of one layout, without streaming."""

    last_layer = ("decoder", "output")

    def __init__(
        self,
        layout: Layout,
        quantizer: Mapping[str, Any],
        *,
        channels: Count,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.compression = layout.compression()
        common = dict(remat=remat, dtype=dtype, rngs=rngs)
        self.quantizer = quantizers.build(quantizer, rngs=rngs)
        self.encoder = Encoder(layout, channels, self.quantizer.input_width, **common)
        self.decoder = Decoder(layout, self.quantizer.width, channels, **common)

    def encode(self, video: Video, request: None = None) -> Encoded:
        self.layout(VideoShape(*video.shape[1:4]))
        return Encoded(self.encoder(video))

    def decode(self, latents: Latents) -> Video:
        return self.decoder(latents)


class ConvolutionalTokenizer(Autoencoder):
    """MAGVIT-v2's tokenizer: latent j depends on frames up to j·t only, frame f on latents up to ceil(f/t) only.

    Args:
      width: channels of the first level …
      multipliers: … times these give the channels of each level, from the pixels down.
      blocks: residual blocks of each level.
      spatial_strides: down-sampling of height and width between the levels.
      temporal_strides: down-sampling of time between the levels.
      quantizer: quantizer config ``{name, …}``.
      middle_blocks: residual blocks at the coarsest level, beyond its own; ``None`` means as many as ``blocks``.
      time_kernel: frames of every kernel; 1, without temporal strides, is an image tokenizer to inflate from.
      norm_groups: groups of the per-frame norms.
      padding: ``zero`` or ``replicate``, what stands before the first frame.
      downsampling: ``strided``, or ``blurred`` (anti-aliased).
      channels: colour channels.
      remat: what the backward pass keeps of each residual block (``nn.REMAT_POLICIES``).
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
        middle_blocks: Natural | None = None,
        time_kernel: Count = 3,
        norm_groups: Count = 32,
        padding: str = "zero",
        downsampling: str = "strided",
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layout = Layout.causal(
            width,
            multipliers,
            blocks,
            spatial_strides,
            temporal_strides,
            middle_blocks=middle_blocks,
            time_kernel=time_kernel,
            norm_groups=norm_groups,
            padding=padding,
            downsampling=downsampling,
        )
        super().__init__(layout, quantizer, channels=channels, remat=remat, dtype=dtype, rngs=rngs)

    def encode_chunk(self, cache: Cache | None, chunk: Video) -> tuple[Cache, Encoded]:
        self.check_chunk(chunk, first=cache is None)
        stream = Stream(cache)
        latents = self.encoder(chunk, stream)
        return stream.cache, Encoded(latents)

    def decode_chunk(self, cache: Cache | None, latents: Latents) -> tuple[Cache, Video]:
        stream = Stream(cache)
        video = self.decoder(latents, stream)
        return stream.cache, video
