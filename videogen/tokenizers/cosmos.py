"""The video tokenizers of Cosmos (NVIDIA, 2025), continuous (CV) and discrete (DV), equal to their publication.

Pixels become channels by a wavelet transform, for which the first frame is repeated; everything after that is causal
in time and every norm sees one frame. Published code codes longer videos by windows of 17 frames, each as a clip of its
own; ``long.LongVideos`` does the same with the clips of training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import (
    FULL,
    Convolution,
    FactorisedConvolution,
    FrameAttention,
    GroupNorm,
    Linear,
    ResidualBlock,
    average_pool,
    patchify,
    repeat,
    unpatchify,
)
from videogen.nn.convolution import Grid
from videogen.nn.streaming import with_past
from videogen.ranges import Count
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.levels import Levels

FIRST = "replicate"
"""What stands before the first frame."""

_PAIR = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32)
BANDS = np.kron(_PAIR, np.kron(_PAIR, _PAIR))
"""Signs of the eight places of a box, in time, height and width, in each band of the Haar transform, ``[8, 8]``."""


def haar(x: Grid) -> Grid:
    """One level of the Haar transform: bands of 2 × 2 × 2 boxes, the first of which is their mean.

    Args:
      x: ``[batch, time, height, width, channel]`` with even sides.

    Returns:
      ``[batch, time/2, height/2, width/2, 8·channel]``, the channels of a band side by side.
    """
    boxes = patchify(x, (2, 2, 2))
    boxes = boxes.reshape(*boxes.shape[:4], 8, -1)
    bands = jnp.einsum("ij,...jc->...ic", jnp.asarray(BANDS / 8, x.dtype), boxes, precision=FULL)
    return bands.reshape(*bands.shape[:4], -1)


def inverse_haar(x: Grid) -> Grid:
    """The inverse of ``haar``."""
    bands = x.reshape(*x.shape[:4], 8, -1)
    boxes = jnp.einsum("ij,...jc->...ic", jnp.asarray(BANDS, x.dtype), bands, precision=FULL)
    return unpatchify(boxes.reshape(*boxes.shape[:4], -1), (2, 2, 2))


class Down(nnx.Module):
    """Half of the height and width, with ``time`` then of the frames behind the first: convolution and mean, added."""

    def __init__(self, width: int, time: bool, **common: Any):
        strided = dict(padding=FIRST, **common)
        self.space = Convolution(width, width, (1, 3, 3), stride=(1, 2, 2), sides=((0, 1), (0, 1)), **strided)
        self.time = Convolution(width, width, (3, 1, 1), stride=(2, 1, 1), **strided) if time else None
        self.out = Linear(width, width, axes=("embed", None), **common)

    def __call__(self, x: Grid) -> Grid:
        x = self.space(x) + average_pool(x, (1, 2, 2))
        if self.time is not None:
            x = self.time(x) + average_pool(with_past(x, 2, 2, FIRST), (2, 1, 1))
        return self.out(x)


class Up(nnx.Module):
    """With ``time`` twice the frames behind the first, then the sides: repeated, and a convolution of that added."""

    def __init__(self, width: int, time: bool, **common: Any):
        self.time = Convolution(width, width, (3, 1, 1), padding=FIRST, **common) if time else None
        self.space = Convolution(width, width, (1, 3, 3), padding=FIRST, **common)
        self.out = Linear(width, width, axes=("embed", None), **common)

    def __call__(self, x: Grid) -> Grid:
        if self.time is not None:
            x = repeat(x, (2, 1, 1), drop_first=True)
            x = x + self.time(x)
        x = repeat(x, (1, 2, 2), drop_first=False)
        return self.out(x + self.space(x))


class Level(nnx.Module):
    """Residual blocks, then down- or up-sampling, if there is any."""

    def __init__(self, inputs: int, outputs: int, count: int, resample: Down | Up | None, **common: Any):
        widths = [inputs, *[outputs] * count]
        self.blocks = nnx.List([block(a, b, **common) for a, b in zip(widths[:-1], widths[1:], strict=True)])
        self.resample = resample

    def __call__(self, x: Grid) -> Grid:
        for each in self.blocks:
            x = each(x)
        return x if self.resample is None else self.resample(x)


def block(inputs: int, outputs: int, **common: Any) -> ResidualBlock:
    """A residual block of both."""
    return ResidualBlock(inputs, outputs, groups=1, padding=FIRST, bias=True, factorised=True, **common)


class Network(Levels):
    """What encoder and decoder share: a convolution, levels, blocks around two attentions, norm, convolution.

    Args:
      levels: from the input to the output.
      sides: channels of the input and of the first level, of the last level and of the output.
      middle_first: the two blocks and their attentions stand before the levels.
    """

    def __init__(self, levels: Sequence[Level], sides: tuple[int, int, int, int], middle_first: bool, **common: Any):
        self.input = FactorisedConvolution(sides[0], sides[1], padding=FIRST, **common)
        self.levels, self.middle_first = nnx.List(levels), middle_first
        width = sides[1] if middle_first else sides[2]
        self.first, self.second = (block(width, width, **common) for _ in range(2))
        self.space = FrameAttention(width, groups=1, **common)
        self.time = FrameAttention(width, groups=1, along_time=True, **common)
        self.norm = GroupNorm(sides[2], groups=1, rngs=common["rngs"])
        self.output = FactorisedConvolution(sides[2], sides[3], padding=FIRST, **common)

    def middle(self, x: Grid) -> Grid:
        return self.second(self.time(self.space(self.first(x))))


class Cosmos(Tokenizer):
    """Latents of 8 × 8 × 8 pixels (or 4 × 8 × 8, 8 × 16 × 16), raw as published code calls them, or their codes.

    Latent j depends on frames up to j·time only, and the first frame of a clip is coded as a picture. Clips have
    1 + time·k frames; published code makes others longer by repeating both ends.

    Args:
      widths: channels of the first convolution of the encoder and of each of its levels, from the pixels down.
      decoder_widths: channels of each level of the decoder, from the pixels down, and of its first convolution.
      latents: channels that the encoder gives and the decoder takes.
      quantizer: of what a linear layer makes of these: ``unquantized`` (CV: 16 channels), or ``fsq`` (DV: levels 8, 8,
        8, 5, 5, 5).
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      patch: frames, rows and columns that become channels first, a power of two.
      time: frames of a latent behind the first, ``patch`` times a power of two.
      side: rows and columns of a latent, likewise.
      channels: colour channels.
      remat: unused; what is trained of it keeps all.

    Raises:
      UserError: the lists differ in length, or ``time`` or ``side`` cannot be made of the patch by the levels.
    """

    last_layer = ("decoder", "output", "time")
    prefix_equal = True

    def __init__(
        self,
        widths: Sequence[Count] = (128, 256, 512, 512),
        decoder_widths: Sequence[Count] = (256, 512, 512, 512),
        latents: Count = 16,
        quantizer: Mapping[str, Any] | None = None,
        *,
        blocks: Count = 2,
        patch: Count = 4,
        time: Count = 8,
        side: Count = 8,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        count = len(widths) - 1
        if len(decoder_widths) != len(widths) or count < 1:
            raise UserError(
                f"widths and decoder_widths need as many numbers, at least 2, got {len(widths)} and "
                f"{len(decoder_widths)}"
            )
        space = halvings("side", side, patch, count - 1)
        times = halvings("time", time, patch, min(space, count - 2))
        common = dict(dtype=dtype, rngs=rngs)
        self.patch, self.dtype = patch, dtype
        self.compression = Compression(time, side, side)
        self.quantizer = quantizers.build(quantizer or {"name": "unquantized", "width": latents}, rngs=rngs)
        pixels = channels * patch**3
        levels = []
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            resample = Down(b, i < times, **common) if i < space else None
            levels.append(Level(a, b, blocks, resample, **common))
        self.encoder = Network(levels, (pixels, widths[0], widths[-1], latents), False, **common)
        levels, up = [], decoder_widths[::-1]
        for i, (a, b) in enumerate(zip(up[:-1], up[1:], strict=True)):
            # The published decoder doubles frames from its second level on, and the sides with them or before.
            in_time = 0 < i <= times
            resample = Up(b, in_time, **common) if in_time or i < space > times else None
            levels.append(Level(a, b, blocks + 1, resample, **common))
        self.decoder = Network(levels, (latents, up[0], up[-1], pixels), True, **common)
        # Quantizers work in float32, so the projections around them do too.
        exact = dict(axes=(None, None), precision=FULL, rngs=rngs)
        self.posterior = Linear(latents, self.quantizer.input_width, **exact)
        self.prior = Linear(self.quantizer.width, latents, **exact)

    def encode(self, video: Video, request: None = None) -> Encoded:
        self.layout(VideoShape(*video.shape[1:4]))
        x = video.astype(self.dtype)
        x = jnp.concatenate([jnp.repeat(x[:, :1], self.patch, axis=1), x[:, 1:]], axis=1)
        for _ in range(self.patch.bit_length() - 1):
            x = haar(x)
        return Encoded(self.posterior(self.encoder(x).astype(jnp.float32)))

    def decode(self, latents: Latents) -> Float[Array, "batch time height width channel"]:
        x = self.decoder(self.prior(latents.astype(jnp.float32))).astype(jnp.float32)
        for _ in range(self.patch.bit_length() - 1):
            x = inverse_haar(x)
        return x[:, self.patch - 1 :]


def halvings(name: str, size: int, patch: int, most: int) -> int:
    """How often the patch is doubled to ``size``, which must be at most ``most`` times.

    Raises:
      UserError: it never is, or more often, or the patch is no power of two.
    """
    if patch & (patch - 1):
        raise UserError(f"patch must be a power of two, got {patch}")
    sizes = [patch * 2**i for i in range(max(most, 0) + 1)]
    if size not in sizes:
        raise UserError(
            f"{name} of these levels and this patch must be one of {', '.join(map(str, sizes))}, got {size}"
        )
    return sizes.index(size)
