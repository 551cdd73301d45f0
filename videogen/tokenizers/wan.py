"""The video VAEs of Wan 2.1 and 2.2 (Wan team, 2025), which other models use too, equal to their publication.

Their code runs in chunks of 1, 4, 4, … frames, and what a chunk does is part of the model: in the first one nothing is
down- or up-sampled in time, and in up-sampling the second one sees nothing of the first. Here that is a rule of each
resampling, so that a clip may be coded as a whole or in chunks of any length, with equal results.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.nn import Convolution, FrameAttention, Linear, ResidualBlock, RMSNorm, Stream, repeat, unpatchify
from videogen.nn.convolution import VALID, Grid
from videogen.nn.streaming import begins
from videogen.quantizers import GaussianQuantizer
from videogen.ranges import Count
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.convolutional import Cache
from videogen.tokenizers.levels import Levels

EPSILON = 1e-24
"""Under the root of the norms: only what is zero is not brought to length 1."""

TAPS = 3
"""Frames of a kernel."""


class Down(nnx.Module):
    """Half of the height and width and, with ``time``, of the frames behind the first: 1 + 2k become 1 + k."""

    def __init__(self, width: int, time: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.space = Convolution(width, width, (1, 3, 3), stride=(1, 2, 2), sides=((0, 1), (0, 1)), **common)
        stride = dict(stride=(2, 1, 1), padding=VALID)
        self.time = Convolution(width, width, (TAPS, 1, 1), **stride, **common) if time else None

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        x = self.space(x)
        if self.time is None:
            return x
        past = None if stream is None else stream.recall()
        if stream is not None:
            stream.keep(x[:, -1:])
        seen = x if past is None else jnp.concatenate([past, x], axis=1)
        made = self.time(seen) if seen.shape[1] >= TAPS else seen[:, :0]
        return made if past is not None else jnp.concatenate([x[:, :1], made], axis=1)


class Up(nnx.Module):
    """Twice the height and width and, with ``time``, the frames behind the first, which these do not see."""

    def __init__(self, inputs: int, outputs: int, time: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.space = Convolution(inputs, outputs, (1, 3, 3), **common)
        self.time = Convolution(inputs, 2 * inputs, (TAPS, 1, 1), padding=VALID, **common) if time else None

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        if self.time is not None:
            past, first = None if stream is None else stream.recall(), x[:, :0]
            if past is None:
                first, x = x[:, :1], x[:, 1:]
                past = jnp.zeros((len(x), TAPS - 1, *x.shape[2:]), x.dtype)
            seen = jnp.concatenate([past, x], axis=1)
            if stream is not None:
                stream.keep(seen[:, 1 - TAPS :])
            if x.shape[1]:
                made = self.time(seen)
                x = unpatchify(made, (2, 1, 1))
            x = jnp.concatenate([first, x], axis=1)
        return self.space(repeat(x, (1, 2, 2), False))


def averaged(x: Grid, factors: tuple[int, int, int], outputs: int, first: bool) -> Grid:
    """Means of neighbouring channels of boxes: the way around a level of Wan 2.2's encoder.

    The places of a box are channels, those of one channel side by side; ``outputs`` groups of them are averaged. A clip
    begins with frames of zeros where its first one does not fill a box.
    """
    if first:
        x = jnp.pad(x, [(0, 0), (factors[0] - 1, 0), *((0, 0),) * 3])
    batch, t, h, w, channels = x.shape
    a, b, c = factors
    x = x.reshape(batch, t // a, a, h // b, b, w // c, c, channels).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(*x.shape[:4], -1).reshape(*x.shape[:4], outputs, -1).mean(-1)


def spread(x: Grid, factors: tuple[int, int, int], outputs: int, first: bool) -> Grid:
    """Channels, repeated, laid out as the places of boxes: the way around a level of Wan 2.2's decoder.

    Of a clip's first frame only the last of its box stays.
    """
    count = int(np.prod(factors))
    x = jnp.repeat(x, outputs * count // x.shape[-1], axis=-1)
    x = x.reshape(*x.shape[:-1], outputs, count).swapaxes(-1, -2)
    x = unpatchify(x.reshape(*x.shape[:4], -1), factors)
    return x[:, factors[0] - 1 :] if first else x


class Level(nnx.Module):
    """Residual blocks, then down- or up-sampling; in Wan 2.2 with a way around them.

    Args:
      inputs: channels in.
      outputs: channels of the blocks.
      count: of blocks.
      resample: what follows; ``None``: nothing.
      around: places that a box of the way around has; ``None``: there is none.
      up: the way around goes up.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        count: int,
        resample: Down | Up | None,
        around: tuple[int, int, int] | None,
        up: bool,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        widths = [inputs, *[outputs] * count]
        self.blocks = nnx.List([block(a, b, dtype, rngs) for a, b in zip(widths[:-1], widths[1:], strict=True)])
        self.resample, self.around, self.outputs = resample, around, outputs
        self.way = spread if up else averaged

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        y = x
        for each in self.blocks:
            y = each(y, stream=stream)
        y = y if self.resample is None else self.resample(y, stream)
        return y if self.around is None else y + self.way(x, self.around, self.outputs, begins(stream))


def block(inputs: int, outputs: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> ResidualBlock:
    """A residual block of both."""
    return ResidualBlock(inputs, outputs, groups=0, bias=True, epsilon=EPSILON, dtype=dtype, rngs=rngs)


class Network(Levels):
    """What encoder and decoder share: a convolution, levels with two blocks around an attention, norm, convolution.

    Args:
      levels: from the input to the output.
      sides: channels of the input and of the first level, of the last level and of the output.
      middle_first: the two blocks stand before the levels.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        sides: tuple[int, int, int, int],
        middle_first: bool,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.input = Convolution(sides[0], sides[1], **common)
        self.levels, self.middle_first = nnx.List(levels), middle_first
        width = sides[1] if middle_first else sides[2]
        self.first, self.second = (block(width, width, dtype, rngs) for _ in range(2))
        self.attention = FrameAttention(width, groups=0, epsilon=EPSILON, **common)
        self.norm = RMSNorm(sides[2], epsilon=EPSILON, rngs=rngs)
        self.output = Convolution(sides[2], sides[3], **common)

    def middle(self, x: Grid, stream: Stream | None = None) -> Grid:
        return self.second(self.attention(self.first(x, stream=stream)), stream=stream)


class Wan(Tokenizer):
    """Continuous latents of 4 × 8 × 8 pixels (2.1) or 4 × 16 × 16 (2.2); raw ones, as published code calls them.

    Latent j depends on frames up to 4j only, and the first frame of a clip is coded as a picture.

    Args:
      width: channels of the first level of the encoder …
      decoder_width: … and of the last of the decoder.
      latents: channels of a latent.
      multipliers: times the width, of each level from the pixels down.
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      temporal: which of the levels but the last halve the frames.
      around: levels have a way around them (Wan 2.2).
      patch: pixels of a side that become channels first (Wan 2.2: 2).
      channels: colour channels.
      remat: unused; what is trained of it keeps all.
    """

    last_layer = ("decoder", "output")
    prefix_equal = streams = True

    def __init__(
        self,
        width: Count = 96,
        decoder_width: Count = 96,
        latents: Count = 16,
        *,
        multipliers: Sequence[Count] = (1, 2, 4, 4),
        blocks: Count = 2,
        temporal: Sequence[bool] = (False, True, True),
        around: bool = False,
        patch: Count = 1,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(temporal) != len(multipliers) - 1:
            raise UserError(
                f"temporal says of all levels but the last whether frames are halved: {len(temporal)} given"
            )
        common = dict(dtype=dtype, rngs=rngs)
        self.patch, self.around, self.dtype = patch, around, dtype
        side = patch * 2 ** len(temporal)
        self.compression = Compression(2 ** sum(temporal), side, side)
        self.quantizer = GaussianQuantizer(latents)
        down, up = [width * m for m in (1, *multipliers)], [decoder_width * m for m in (*multipliers, multipliers[-1])]
        pixels = channels * patch**2
        levels = []
        for i, (a, b) in enumerate(zip(down[:-1], down[1:], strict=True)):
            last = i == len(temporal)
            box = (1, 1, 1) if last else (1 + temporal[i], 2, 2)
            resample = None if last else Down(b, temporal[i], **common)
            levels.append(Level(a, b, blocks, resample, box if around else None, False, **common))
        sides = (pixels, down[0], down[-1], 2 * latents)
        self.encoder = Network(levels, sides, False, **common)
        levels, up = [], up[::-1]
        for i, (a, b) in enumerate(zip(up[:-1], up[1:], strict=True)):
            last = i == len(temporal)
            twice = None if last else temporal[::-1][i]
            # Without a way around, up-sampling halves the channels.
            a = a // 2 if i and not around else a
            resample = None if last else Up(b, b if around else b // 2, twice, **common)
            box = None if last or not around else (1 + twice, 2, 2)
            levels.append(Level(a, b, blocks + 1, resample, box, True, **common))
        self.decoder = Network(levels, (latents, up[0], up[-1], pixels), True, **common)
        self.posterior = Linear(2 * latents, 2 * latents, axes=(None, None), dtype=dtype, rngs=rngs)
        self.prior = Linear(latents, latents, axes=(None, None), dtype=dtype, rngs=rngs)

    def _encoded(self, video: Video, stream: Stream | None = None) -> Float[Array, "batch ..."]:
        x, p = video.astype(self.dtype), self.patch
        batch, t, h, w, channels = x.shape
        # Published code has the colour first, then the column, then the row of a pixel in its patch.
        x = x.reshape(batch, t, h // p, p, w // p, p, channels).transpose(0, 1, 2, 4, 6, 5, 3)
        x = self.encoder(x.reshape(batch, t, h // p, w // p, -1), stream=stream)
        return self.posterior(x).astype(jnp.float32)

    def _decoded(self, latents: Latents, stream: Stream | None = None) -> Video:
        x, p = self.decoder(self.prior(latents.astype(self.dtype)), stream=stream), self.patch
        batch, t, h, w, _ = x.shape
        x = x.reshape(batch, t, h, w, -1, p, p).transpose(0, 1, 2, 6, 3, 5, 4)
        return x.reshape(batch, t, h * p, w * p, -1).astype(jnp.float32)

    def encode(self, video: Video, request: None = None) -> Encoded:
        self.layout(VideoShape(*video.shape[1:4]))
        return Encoded(self._encoded(video))

    def decode(self, latents: Latents) -> Video:
        return self._decoded(latents)

    def encode_chunk(self, cache: Cache | None, chunk: Video) -> tuple[Cache, Encoded]:
        self.check_chunk(chunk, first=cache is None)
        stream = Stream(cache)
        latents = self._encoded(chunk, stream)
        return stream.cache, Encoded(latents)

    def decode_chunk(self, cache: Cache | None, latents: Latents) -> tuple[Cache, Video]:
        stream = Stream(cache)
        video = self._decoded(latents, stream)
        return stream.cache, video
