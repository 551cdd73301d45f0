"""VidTok (Tang et al., 2024): continuous or discrete video tokenizers, causal or not, equal to their publication.

Levels apply a 2-D block to each frame and a 1-D block along time in turn; frames are halved and doubled by a learned
mix of a mean (or a repetition) and a convolution. The causal ones repeat the first frame until it fills a latent.
Published code codes longer videos by clips of 17 frames (16 without causality), each by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from videogen import quantizers
from videogen.errors import UserError, near_matches
from videogen.nn import Convolution, FrameAttention, LayerNorm, ResidualBlock, constant, parameter, repeat
from videogen.nn.convolution import VALID, Grid
from videogen.ranges import Count, Natural
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.levels import Levels


class Time(NamedTuple):
    """What a network sees along time.

    Attributes:
      padding: of its convolutions, a name in ``nn.convolution.PADDINGS``.
      linear: frames are doubled by linear interpolation instead of repetition.
    """

    padding: str
    linear: bool

    @property
    def causal(self) -> bool:
        """Whether encoders see no later frame, and the first one is a latent of its own."""
        return self.padding != "same"


TIMES = {
    "causal": Time("replicate", True),
    "causal_1.0": Time("zero", False),
    "symmetric": Time("same", False),
}
"""``causal`` is version 1.1 of the publication, which diffusers has; 1.0 pads zeros and repeats frames."""

FIRST_MIX = 2.0
"""The share of the mean or the repetition is at first the sigmoid of this."""


class Mixed(nnx.Module):
    """What resampling in time shares: a convolution, and the learned share of what stands beside it."""

    def __init__(self, width: int, time: Time, stride: int, **common: Any):
        padding = VALID if stride > 1 else time.padding
        self.time = time
        self.convolution = Convolution(width, width, stride=(stride, 1, 1), padding=padding, **common)
        self.mix = parameter(common["rngs"], (1,), (None,), constant(FIRST_MIX))

    def _mixed(self, plain: Grid, convolved: Grid) -> Grid:
        share = jax.nn.sigmoid(self.mix.get_value()).astype(plain.dtype)
        return share * plain + (1 - share) * convolved


class DownTime(Mixed):
    """Half of the frames, of which there are an even number."""

    def __init__(self, width: int, time: Time, **common: Any):
        super().__init__(width, time, 2, **common)

    def __call__(self, x: Grid) -> Grid:
        frame = x[:, :1] if self.time.padding == "replicate" else jnp.zeros_like(x[:, :1])
        seen = jnp.concatenate([frame, x] if self.time.causal else [x, frame], axis=1)
        mean = (seen[:, :-2:2] + seen[:, 1:-1:2] + seen[:, 2::2]) / 3
        return self._mixed(mean, self.convolution(seen))


class UpTime(Mixed):
    """Twice the frames.

    Args:
      width: channels.
      time: what is seen.
      first: frames that stand for the first frame of a clip: between them and the others nothing is interpolated.
    """

    def __init__(self, width: int, time: Time, first: int, **common: Any):
        super().__init__(width, time, 1, **common)
        self.first = first

    def __call__(self, x: Grid) -> Grid:
        if self.time.linear:
            x = jnp.concatenate([doubled(x[:, : self.first]), doubled(x[:, self.first :])], axis=1)
        else:
            x = repeat(x, (2, 1, 1), False)
        return self._mixed(x, self.convolution(x))


def doubled(x: Grid) -> Grid:
    """Twice the frames by linear interpolation, each a quarter of a frame from an old one; the ends are repeated."""
    before = jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
    after = jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)
    both = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=2)
    return both.reshape(len(x), -1, *x.shape[2:])


class Sides(nnx.Module):
    """Half of the height and width, or with ``up`` twice them."""

    def __init__(self, width: int, up: bool, **common: Any):
        self.up = up
        strided = {} if up else {"stride": (1, 2, 2), "sides": ((0, 1), (0, 1))}
        self.convolution = Convolution(width, width, (1, 3, 3), **strided, **common)

    def __call__(self, x: Grid) -> Grid:
        return self.convolution(repeat(x, (1, 2, 2), False) if self.up else x)


def block(inputs: int, outputs: int, size: tuple[int, int, int], time: Time, **common: Any) -> ResidualBlock:
    """A residual block of both."""
    return ResidualBlock(inputs, outputs, size, groups=0, centred=True, bias=True, padding=time.padding, **common)


class Level(nnx.Module):
    """Blocks inside frames and along time in turn, then down- or up-sampling of the sides and of the frames."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        count: int,
        time: Time,
        sides: Sides | None,
        frames: DownTime | UpTime | None,
        **common: Any,
    ):
        widths = [inputs, *[outputs] * count]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.space = nnx.List([block(a, b, (1, 3, 3), time, **common) for a, b in pairs])
        self.time = nnx.List([block(outputs, outputs, (3, 1, 1), time, **common) for _ in range(count)])
        self.sides, self.frames = sides, frames

    def __call__(self, x: Grid) -> Grid:
        for space, time in zip(self.space, self.time, strict=True):
            x = time(space(x))
        x = x if self.sides is None else self.sides(x)
        return x if self.frames is None else self.frames(x)


class Network(Levels):
    """What encoder and decoder share: a convolution, levels, two blocks around an attention, norm, convolution.

    Args:
      levels: from the input to the output.
      sides: channels of the input and of the first level, of the last level and of the output.
      time: what is seen.
      middle_first: the two blocks stand before the levels.
    """

    def __init__(
        self, levels: Sequence[Level], sides: tuple[int, int, int, int], time: Time, middle_first: bool, **common: Any
    ):
        self.input = Convolution(sides[0], sides[1], padding=time.padding, **common)
        self.levels, self.middle_first = nnx.List(levels), middle_first
        width = sides[1] if middle_first else sides[2]
        self.first, self.second = (block(width, width, (3, 3, 3), time, **common) for _ in range(2))
        self.attention = FrameAttention(width, groups=0, centred=True, **common)
        self.norm = LayerNorm(sides[2], rngs=common["rngs"])
        self.output = Convolution(sides[2], sides[3], padding=time.padding, **common)

    def middle(self, x: Grid) -> Grid:
        return self.second(self.attention(self.first(x)))


class VidTok(Tokenizer):
    """Latents, or codes, of 4 × 8 × 8 pixels, and by its levels of 2 or 8 frames and of 4 or 16 rows and columns.

    Of the causal ones latent j depends on frames up to j·t only, and clips have 1 + k·t frames; decoders see one latent
    more. The others take k·t frames (16 in training) and see all around.

    Args:
      width: channels of the first convolution …
      multipliers: … times which each level has, from the pixels down.
      quantizer: ``gaussian`` (KL; 4, 8 or 16 channels) or ``fsq`` (4 to 6 dimensions of 8 levels).
      blocks: pairs of residual blocks of a level of the encoder; the decoder has one more.
      spatial: levels of the encoder, from the pixels down from 0 on, that halve the sides …
      temporal: … and those of them that halve the frames.
      spatial_up: likewise levels of the decoder, numbered from the pixels down, that double the sides …
      temporal_up: … and those of them that double the frames.
      time: a name in ``TIMES``.
      channels: colour channels.
      remat: unused; what is trained of it keeps all.

    Raises:
      UserError: a level is not there or not spatial, or the decoder does not make as many pixels as there were.
    """

    last_layer = ("decoder", "output")

    def __init__(
        self,
        width: Count = 128,
        multipliers: Sequence[Count] = (1, 2, 4, 4),
        quantizer: Mapping[str, Any] | None = None,
        *,
        blocks: Count = 2,
        spatial: Sequence[Natural] = (0, 1, 2),
        temporal: Sequence[Natural] = (1, 2),
        spatial_up: Sequence[Natural] = (1, 2, 3),
        temporal_up: Sequence[Natural] = (1, 2),
        time: str = "causal",
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if time not in TIMES:
            raise UserError(f"unknown time {time!r}{near_matches(time, TIMES)}")
        sees, count = TIMES[time], len(multipliers)
        for sides, frames in ((spatial, temporal), (spatial_up, temporal_up)):
            if not set(frames) <= set(sides) <= set(range(count)):
                raise UserError(
                    f"levels that resample frames ({list(frames)}) must be among those of the sides ({list(sides)}), "
                    f"and these among 0 to {count - 1}"
                )
        if (len(spatial), len(temporal)) != (len(spatial_up), len(temporal_up)):
            raise UserError("the decoder of a VidTok needs as many levels that resample as its encoder")
        common = dict(dtype=dtype, rngs=rngs)
        self.dtype, self.causal, self.prefix_equal = dtype, sees.causal, sees.causal
        self.compression = Compression(2 ** len(temporal), *[2 ** len(spatial)] * 2, first_alone=sees.causal)
        self.quantizer = quantizers.build(quantizer or {"name": "gaussian", "width": 4}, rngs=rngs)
        widths = [width * m for m in (1, *multipliers)]
        levels = []
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            sides = Sides(b, False, **common) if i in spatial else None
            frames = DownTime(b, sees, **common) if i in temporal else None
            levels.append(Level(a, b, blocks, sees, sides, frames, **common))
        ends = (channels, widths[0], widths[-1], self.quantizer.input_width)
        self.encoder = Network(levels, ends, sees, False, **common)
        levels, first = [], 1
        for i in reversed(range(count)):
            a, b = widths[min(i + 2, count)], widths[i + 1]
            sides = Sides(b, True, **common) if i in spatial_up else None
            frames = UpTime(b, sees, first, **common) if i in temporal_up else None
            first *= 2 if i in temporal_up else 1
            levels.append(Level(a, b, blocks + 1, sees, sides, frames, **common))
        ends = (self.quantizer.width, widths[-1], widths[1], channels)
        self.decoder = Network(levels, ends, sees, True, **common)

    def encode(self, video: Video, request: None = None) -> Encoded:
        self.layout(VideoShape(*video.shape[1:4]))
        x = video.astype(self.dtype)
        if self.causal:
            x = jnp.concatenate([jnp.repeat(x[:, :1], self.compression.time, axis=1), x[:, 1:]], axis=1)
        return Encoded(self.encoder(x).astype(jnp.float32))

    def decode(self, latents: Latents) -> Video:
        x = self.decoder(latents.astype(self.dtype)).astype(jnp.float32)
        return x[:, self.compression.time - 1 :] if self.causal else x
