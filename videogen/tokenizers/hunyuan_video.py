"""The video VAE of HunyuanVideo (Kong et al., 2024), equal to its publication.

Convolutions and attention are causal, but group norms take their statistics over time. Clips longer than a window are
coded in windows of it that overlap and are blended, as diffusers does it unless told otherwise; what a window holds
decides the statistics, so that its length is part of the result.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from videogen.errors import UserError
from videogen.nn import Convolution, FrameAttention, Linear, ResidualBlock, frame_norm, repeat
from videogen.nn.convolution import Grid, Triple
from videogen.quantizers import GaussianQuantizer
from videogen.ranges import Count, Natural
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer

EDGES = {"padding": "replicate", "border": "replicate"}
"""Convolutions see copies of the first frame, and of the outermost places of all."""


def block(inputs: int, outputs: int, groups: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> ResidualBlock:
    """A residual block; with no ``groups`` (0) its norms are RMS norms of each place."""
    common = dict(bias=True, over_time=True, epsilon=epsilon_of(groups), dtype=dtype, rngs=rngs)
    return ResidualBlock(inputs, outputs, groups=groups, **EDGES, **common)


def epsilon_of(groups: int) -> float:
    """Under the root of the norms; RMS norms bring all but zero to their length."""
    return 1e-6 if groups else 1e-24


class Up(nnx.Module):
    """Repeats places and frames, of these not the first one, before a convolution."""

    def __init__(self, width: int, factors: Triple, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.factors, self.convolution = factors, Convolution(width, width, **EDGES, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid) -> Grid:
        return self.convolution(repeat(x, self.factors, drop_first=True))


class Network(nnx.Module):
    """A convolution, levels, two blocks around an attention to the past, norm, swish, convolution.

    Args:
      levels: from the input to the output, the blocks and the resampling of each.
      sides: channels of the input and of the first level, of the last level and of the output.
      middle_first: the two blocks stand before the levels: it decodes.
      groups: of the norms, whose statistics are over time; 0: RMS norms of each place.
      around: the convolution between latents and the coarsest level has a way around it, which repeats the channels of
        latents, or takes means of neighbouring ones.
    """

    def __init__(
        self,
        levels: Sequence[Sequence[nnx.Module]],
        sides: tuple[int, int, int, int],
        middle_first: bool,
        groups: int,
        around: bool = False,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.middle_first, self.around = middle_first, around
        width = sides[1] if middle_first else sides[2]
        self.input, self.output = Convolution(*sides[:2], **EDGES, **common), Convolution(*sides[2:], **EDGES, **common)
        self.levels = nnx.List([nnx.List(level) for level in levels])
        self.first, self.second = (block(width, width, groups, **common) for _ in range(2))
        settings = dict(groups=groups, epsilon=epsilon_of(groups), over_time=True)
        self.attention = FrameAttention(width, past=True, **settings, **common)
        self.norm = frame_norm(sides[2], rngs=rngs, **settings)

    def _middle(self, x: Grid) -> Grid:
        return self.second(self.attention(self.first(x)))

    def __call__(self, x: Grid) -> Grid:
        y = self.input(x)
        if self.around and self.middle_first:
            y = y + jnp.repeat(x, y.shape[-1] // x.shape[-1], axis=-1)
        y = self._middle(y) if self.middle_first else y
        for level in self.levels:
            for layer in level:
                y = layer(y)
        y = y if self.middle_first else self._middle(y)
        out = self.output(jax.nn.swish(self.norm(y)))
        if self.around and not self.middle_first:
            out = out + y.reshape(*out.shape, -1).mean(-1)
        return out


def in_windows(network: Callable[[Grid], Grid], x: Grid, window: int, step: int, blended: int) -> Grid:
    """What a network makes of a clip in windows of 1 + ``window`` frames, each ``step`` after the one before.

    Of all windows but the first what their first frame becomes is dropped; what the first ``blended`` frames of the
    others become goes over in a straight line from what the end of the window before has become.

    Args:
      network: of clips; it makes 1 + k·r (or 1 + k/r) frames of 1 + k.
      x: the clip; one of at most ``window`` frames is a single window, and so is every one where ``window`` is 0.
      window: frames.
      step: at most as many.
      blended: frames of what is made.
    """
    frames = x.shape[1]
    if not window or frames <= window:
        return network(x)
    starts = range(0, frames - 1, step)
    cuts = [x[:, start : start + window + 1] for start in starts]
    full = [cut for cut in cuts if cut.shape[1] == window + 1]
    made = [*jax.lax.map(network, jnp.stack(full)), *(network(cut) for cut in cuts[len(full) :])]
    parts, before = [], made[0]
    # What a window makes beyond the next one's start is seen in the blend only.
    kept = before.shape[1] - 1 - blended
    parts.append(before[:, : 1 + kept])
    for y in made[1:]:
        y = y[:, 1:]
        count = min(before.shape[1], y.shape[1], blended)
        share = (jnp.arange(count, dtype=y.dtype) / count)[:, None, None, None]
        mixed = before[:, before.shape[1] - count :] * (1 - share) + y[:, :count] * share
        before = jnp.concatenate([mixed, y[:, count:]], axis=1)
        parts.append(before[:, :kept])
    return jnp.concatenate(parts, axis=1)


class HunyuanVideo(Tokenizer):
    """Continuous latents of 4 × 8 × 8 pixels; raw ones, as published code calls them.

    The first latent of a clip is not that of its first picture, since norms see the whole window.

    Args:
      widths: channels of each level, from the pixels down.
      latents: channels of a latent.
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      temporal: how many resamplings are of time as well: the last ones of the encoder, and of the decoder.
      groups: of the norms.
      window: clips of more frames are coded in windows of one frame more; 0: all clips as a whole.
      step: frames from one window to the next.
      channels: colour channels.
      remat: unused; what is trained of it keeps all.
    """

    last_layer = ("decoder", "output")

    def __init__(
        self,
        widths: Sequence[Count] = (128, 256, 512, 512),
        latents: Count = 16,
        *,
        blocks: Count = 2,
        temporal: Natural = 2,
        groups: Count = 32,
        window: Natural = 16,
        step: Count = 12,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        between = len(widths) - 1
        if temporal > between:
            raise UserError(f"temporal must be at most {between}, the resamplings between levels; got {temporal}")
        self.compression = Compression(2**temporal, 2**between, 2**between)
        if window % 2**temporal or step % 2**temporal or (window and step > window):
            raise UserError(
                f"window and step must be multiples of {2**temporal} frames, the step no longer than the window; "
                f"got {window} and {step}"
            )
        common = dict(dtype=dtype, rngs=rngs)
        self.window, self.step, self.dtype, deep = window, step, dtype, widths[-1]
        self.quantizer = GaussianQuantizer(latents)
        strides = [(2 if i >= between - temporal else 1, 2, 2) for i in range(between)]
        levels = []
        for i, (a, b) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True)):
            own = [block(a if j == 0 else b, b, groups, **common) for j in range(blocks)]
            down = [Convolution(b, b, stride=strides[i], **EDGES, **common)] if i < between else []
            levels.append([*own, *down])
        self.encoder = Network(levels, (channels, widths[0], deep, 2 * latents), False, groups, **common)
        levels = []
        for i, (a, b) in enumerate(zip((deep, *widths[:0:-1]), widths[::-1], strict=True)):
            own = [block(a if j == 0 else b, b, groups, **common) for j in range(blocks + 1)]
            levels.append([*own, *([Up(b, strides[i], **common)] if i < between else [])])
        self.decoder = Network(levels, (latents, deep, widths[0], channels), True, groups, **common)
        self.posterior = Linear(2 * latents, 2 * latents, axes=(None, None), **common)
        self.prior = Linear(latents, latents, axes=(None, None), **common)

    def encode(self, video: Video, request: None = None) -> Encoded:
        self.layout(VideoShape(*video.shape[1:4]))
        blended = (self.window - self.step) // self.compression.time
        x = in_windows(self._posterior_of, video.astype(self.dtype), self.window, self.step, blended)
        return Encoded(x.astype(jnp.float32))

    def decode(self, latents: Latents) -> Video:
        window, step = (frames // self.compression.time for frames in (self.window, self.step))
        x = in_windows(self._pixels_of, latents.astype(self.dtype), window, step, self.window - self.step)
        return x.astype(jnp.float32)

    def _posterior_of(self, video: Video) -> Latents:
        return self.posterior(self.encoder(video))

    def _pixels_of(self, latents: Latents) -> Video:
        return self.decoder(self.prior(latents))
