"""The video VAE of CogVideoX (Yang et al., 2024; 2B, 5B and 1.5), equal to its publication.

Its group norms take their statistics over time. Its code therefore goes by pieces of a clip, 8 frames to encode and 2
latents to decode, what is over at first joined to the first one; convolutions go on from piece to piece, norms do not.
What lies in a piece thus decides the result, and these pieces are part of the model, not a matter of memory.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from videogen.errors import UserError
from videogen.nn import AdaptiveGroupNorm, Convolution, GroupNorm, ResidualBlock, Stream, average_pool, repeat
from videogen.nn.convolution import VALID, Grid
from videogen.quantizers import GaussianQuantizer
from videogen.ranges import Count, Natural
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokens import Layout

ENCODED_FRAMES = 8
"""Frames of a piece that is encoded."""

DECODED_LATENTS = 2
"""Latent frames of a piece that is decoded."""


def pieces(frames: int, size: int) -> tuple[int, int]:
    """Frames of the first piece of a clip, which takes what is over, and how many pieces of ``size`` follow."""
    count = max(frames // size, 1) - 1
    return frames - count * size, count


def by_pieces(network: Callable[[Grid, Stream], Grid], x: Grid, size: int) -> Grid:
    """What a network makes of the pieces of a clip, one after the other, each with the frames before it in its stream.

    Args:
      network: of frames and what it kept of those before.
      x: the clip.
      size: frames of all pieces but the first.
    """
    first, count = pieces(x.shape[1], size)
    stream = Stream()
    y = network(x[:, :first], stream)
    if not count:
        return y

    def following(cache: tuple[Array, ...], piece: Grid) -> tuple[tuple[Array, ...], Grid]:
        stream = Stream(cache)
        y = network(piece, stream)
        return stream.cache, y

    rest = x[:, first:].reshape(len(x), count, size, *x.shape[2:])
    _, made = jax.lax.scan(following, stream.cache, jnp.moveaxis(rest, 1, 0))
    made = jnp.moveaxis(made, 0, 1)
    return jnp.concatenate([y, made.reshape(len(x), -1, *made.shape[3:])], axis=1)


class Down(nnx.Module):
    """Half of the height and width and, with ``time``, means of two frames; the first of an odd number stays alone."""

    def __init__(self, width: int, time: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        settings = dict(stride=(1, 2, 2), sides=((0, 1), (0, 1)), padding=VALID)
        self.time, self.space = time, Convolution(width, width, (1, 3, 3), **settings, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid) -> Grid:
        if self.time:
            alone = x.shape[1] % 2
            x = jnp.concatenate([x[:, :alone], average_pool(x[:, alone:], (2, 1, 1))], axis=1)
        return self.space(x)


class Up(nnx.Module):
    """Twice the height and width and, with ``time``, the frames; the first of an odd number stays alone."""

    def __init__(self, width: int, time: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.factors = (2, 2, 2) if time else (1, 2, 2)
        self.space = Convolution(width, width, (1, 3, 3), padding=VALID, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid) -> Grid:
        return self.space(repeat(x, self.factors, drop_first=bool(x.shape[1] % 2)))


class Level(nnx.Module):
    """Residual blocks, then down- or up-sampling.

    Args:
      blocks: in their order.
      resample: what follows; ``None``: nothing.
    """

    def __init__(self, blocks: Sequence[ResidualBlock], resample: Down | Up | None = None):
        self.blocks, self.resample = nnx.List(blocks), resample

    def __call__(self, x: Grid, stream: Stream | None = None, condition: Grid | None = None) -> Grid:
        for each in self.blocks:
            x = each(x, stream=stream, condition=condition)
        return x if self.resample is None else self.resample(x)


class Network(nnx.Module):
    """Convolution, levels, norm, swish, convolution.

    Args:
      levels: from the input to the output.
      norm: the last one.
      sides: channels of the input and of the first level, of the last level and of the output.
      sees_input: norms see what goes in.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        norm: GroupNorm | AdaptiveGroupNorm,
        sides: tuple[int, int, int, int],
        sees_input: bool,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common = dict(padding="replicate", dtype=dtype, rngs=rngs)
        self.input, self.output = Convolution(*sides[:2], **common), Convolution(*sides[2:], **common)
        self.levels, self.norm, self.sees_input = nnx.List(levels), norm, sees_input

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        condition = x if self.sees_input else None
        x = self.input(x, stream)
        for level in self.levels:
            x = level(x, stream, condition)
        x = self.norm(x, condition) if self.sees_input else self.norm(x)
        return self.output(jax.nn.swish(x), stream)


class CogVideoX(Tokenizer):
    """Continuous latents of 4 × 8 × 8 pixels; raw ones, as published code calls them.

    A clip has 1 + 8k frames: an odd number of latent frames decodes to as many frames as were encoded, and an even one
    to 4 frames each, which is what the published code does with it. The first latent of a clip is not that of its first
    picture: the norms of the first 9 frames see all of them.

    Args:
      widths: channels of each level, from the pixels down.
      latents: channels of a latent.
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      temporal: how many levels halve the frames: the first of the encoder, and the first (coarsest) of the decoder.
      groups: of the norms.
      channels: colour channels.
      remat: unused; what is trained of it keeps all.
    """

    last_layer = ("decoder", "output")

    def __init__(
        self,
        widths: Sequence[Count] = (128, 256, 256, 512),
        latents: Count = 16,
        *,
        blocks: Count = 3,
        temporal: Natural = 2,
        groups: Count = 32,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if temporal >= len(widths):
            raise UserError(f"temporal must be less than the number of levels, {len(widths)}; got {temporal}")
        common = dict(dtype=dtype, rngs=rngs)
        self.dtype, last, deep = dtype, len(widths) - 1, widths[-1]
        self.compression = Compression(2**temporal, 2**last, 2**last)
        self.quantizer = GaussianQuantizer(latents)

        def block(a: int, b: int, norm: Callable[[int], nnx.Module] | None = None) -> ResidualBlock:
            settings = dict(groups=groups, padding="replicate", bias=True, over_time=True, norm=norm)
            return ResidualBlock(a, b, **settings, **common)

        levels = []
        for i, (a, b) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True)):
            own = [block(a if j == 0 else b, b) for j in range(blocks)]
            levels.append(Level(own, Down(b, i < temporal, **common) if i < last else None))
        levels.append(Level([block(deep, deep) for _ in range(2)]))
        norm = GroupNorm(deep, groups=groups, over_time=True, rngs=rngs)
        self.encoder = Network(levels, norm, (channels, widths[0], deep, 2 * latents), False, **common)

        def norm_at(level: int) -> Callable[[int], nnx.Module]:
            factors = (2 ** min(level, temporal), 2**level, 2**level)
            settings = dict(groups=groups, over_time=True, factors=factors, absolute=True)
            return lambda width: AdaptiveGroupNorm(width, latents, **settings, **common)

        levels = [Level([block(deep, deep, norm_at(0)) for _ in range(2)])]
        for i, (a, b) in enumerate(zip((deep, *widths[:0:-1]), widths[::-1], strict=True)):
            own = [block(a if j == 0 else b, b, norm_at(i)) for j in range(blocks + 1)]
            levels.append(Level(own, Up(b, i < temporal, **common) if i < last else None))
        sides = (latents, deep, widths[0], channels)
        self.decoder = Network(levels, norm_at(last)(widths[0]), sides, True, **common)

    def layout(self, shape: VideoShape) -> Layout:
        """The tokens of a clip; raises ``UserError`` unless it has 1 + 8k frames and sides that divide by 8."""
        layout, period = super().layout(shape), 2 * self.compression.time
        if layout.only.shape[0] % 2 == 0:
            below = shape.frames // period * period + 1
            raise UserError(
                f"a clip must have 1 + {period}·k frames, got {shape.frames}; use {below} or {below + period} "
                "(an even number of latent frames decodes to another number of frames)"
            )
        return layout

    def posterior(self, video: Video) -> Latents:
        """Means and log variances of latents, float32, of any number of frames that the encoder can take."""
        return by_pieces(self.encoder, video.astype(self.dtype), ENCODED_FRAMES).astype(jnp.float32)

    def encode(self, video: Video, request: None = None) -> Encoded:
        self.layout(VideoShape(*video.shape[1:4]))
        return Encoded(self.posterior(video))

    def decode(self, latents: Latents) -> Video:
        return by_pieces(self.decoder, latents.astype(self.dtype), DECODED_LATENTS).astype(jnp.float32)
