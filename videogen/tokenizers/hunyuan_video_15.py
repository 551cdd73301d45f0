"""The video VAE of HunyuanVideo 1.5 (Tencent, 2025), equal to its publication.

It is the network of HunyuanVideo with norms of each place, which do not see other frames, and with resampling between
places and channels. Its middle attends to all earlier frames, so that memory grows with the square of a clip's length.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from videogen.errors import UserError
from videogen.nn import Convolution, patchify, unpatchify
from videogen.nn.convolution import Grid, Triple
from videogen.quantizers import GaussianQuantizer
from videogen.ranges import Count, Natural
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.hunyuan_video import EDGES, Network, block

PLACE = (1, 2, 2)
"""Places that a box has where frames are not resampled."""


def _places(inputs: int, outputs: int, time: bool, up: bool) -> int:
    """Places of a box; raises ``UserError`` where channels do not divide into them."""
    places = 8 if time else 4
    into, of = (inputs, outputs) if up else (outputs, inputs)
    if into % places or places * of % into:
        raise UserError(f"{inputs} channels cannot be resampled to {outputs} by boxes of {places} places")
    return places


class Down(nnx.Module):
    """Half of the height and width and, with ``time``, of the frames behind the first: places become channels.

    The way around takes means of neighbouring channels. The first frame fills half of a box, and is there twice.
    """

    def __init__(self, inputs: int, outputs: int, time: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        places = _places(inputs, outputs, time, up=False)
        self.time, self.outputs = time, outputs
        self.convolution = Convolution(inputs, outputs // places, **EDGES, dtype=dtype, rngs=rngs)

    def _boxes(self, x: Grid, y: Grid, size: Triple, copies: int = 1) -> Grid:
        around = patchify(x, size)
        means = around.reshape(*around.shape[:4], self.outputs, -1).mean(-1)
        return jnp.tile(patchify(y, size), copies) + means

    def __call__(self, x: Grid) -> Grid:
        y = self.convolution(x)
        if not self.time:
            return self._boxes(x, y, PLACE)
        first = self._boxes(x[:, :1], y[:, :1], PLACE, copies=2)
        if x.shape[1] == 1:
            return first
        return jnp.concatenate([first, self._boxes(x[:, 1:], y[:, 1:], (2, 2, 2))], axis=1)


class Up(nnx.Module):
    """Twice the height and width and, with ``time``, the frames behind the first: channels become places.

    The way around repeats channels. Of what the convolution makes of the first frame half of the channels is left out.
    """

    def __init__(self, inputs: int, outputs: int, time: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.places = _places(inputs, outputs, time, up=True)
        self.time, self.outputs, self.copies = time, outputs, self.places * outputs // inputs
        self.convolution = Convolution(inputs, outputs * self.places, **EDGES, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid) -> Grid:
        y = self.convolution(x)
        if not self.time:
            return unpatchify(y, PLACE) + unpatchify(jnp.repeat(x, self.copies, axis=-1), PLACE)
        around = jnp.repeat(unpatchify(x[:, :1], PLACE), self.copies // 2, axis=-1)
        first = unpatchify(y[:, :1], PLACE)[..., : self.outputs] + around
        if x.shape[1] == 1:
            return first
        around = jnp.repeat(unpatchify(x[:, 1:], (2, 2, 2)), self.copies, axis=-1)
        return jnp.concatenate([first, unpatchify(y[:, 1:], (2, 2, 2)) + around], axis=1)


class HunyuanVideo15(Tokenizer):
    """Continuous latents of 4 × 16 × 16 pixels; raw ones, as published code calls them.

    Latent j depends on frames up to 4j only, and the first frame of a clip is coded as a picture.

    Args:
      widths: channels of each level, from the pixels down.
      latents: channels of a latent.
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      temporal: how many resamplings are of time as well: the coarsest ones.
      channels: colour channels.
      remat: unused; what is trained of it keeps all.
    """

    last_layer = ("decoder", "output")
    prefix_equal = True

    def __init__(
        self,
        widths: Sequence[Count] = (128, 256, 512, 1024, 1024),
        latents: Count = 32,
        *,
        blocks: Count = 2,
        temporal: Natural = 2,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        between, deep = len(widths) - 1, widths[-1]
        if temporal > between:
            raise UserError(f"temporal must be at most {between}, the resamplings between levels; got {temporal}")
        if deep % (2 * latents):
            raise UserError(f"the coarsest width {deep} must be a multiple of twice the {latents} channels of a latent")
        common = dict(dtype=dtype, rngs=rngs)
        self.dtype = dtype
        self.compression = Compression(2**temporal, 2**between, 2**between)
        self.quantizer = GaussianQuantizer(latents)
        levels = []
        for i, width in enumerate(widths):
            own = [block(width, width, 0, **common) for _ in range(blocks)]
            down = [Down(width, widths[i + 1], i >= between - temporal, **common)] if i < between else []
            levels.append([*own, *down])
        self.encoder = Network(levels, (channels, widths[0], deep, 2 * latents), False, 0, True, **common)
        levels, back = [], widths[::-1]
        for i, width in enumerate(back):
            own = [block(width, width, 0, **common) for _ in range(blocks + 1)]
            levels.append([*own, *([Up(width, back[i + 1], i < temporal, **common)] if i < between else [])])
        self.decoder = Network(levels, (latents, deep, widths[0], channels), True, 0, True, **common)

    def encode(self, video: Video, request: None = None) -> Encoded:
        self.layout(VideoShape(*video.shape[1:4]))
        return Encoded(self.encoder(video.astype(self.dtype)).astype(jnp.float32))

    def decode(self, latents: Latents) -> Video:
        return self.decoder(latents.astype(self.dtype)).astype(jnp.float32)
