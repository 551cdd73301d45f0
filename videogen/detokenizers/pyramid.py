"""The pyramid of resolutions of a conditioned diffusion decoder, and the layers that move along it (CDT, 2025).

Everything is causal in time and normalises each place on its own, so that a clip in chunks equals the clip as a whole.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.building import build
from videogen.errors import UserError, near_matches
from videogen.nn import Convolution, DepthToSpace, LayerNorm, Linear, Stream, repeat
from videogen.ranges import Count, Triple
from videogen.shapes import Compression

Grid = Float[Array, "batch time height width channel"]
Stride = tuple[int, int]
"""Of time, and of height and width alike."""

UPSAMPLING = ("nearest", "subpixel")
"""Nearest neighbours and a 5×5 convolution, or a 3×3 convolution to the channels of all new places."""


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """The levels between pixels and latents, which encoder, context decoder and denoiser share.

    Attributes:
      widths: channels of the encoder's levels, from the pixels down; the context has them one level higher.
      strides: ``(time, space)`` after each level.
      kernels: the two kernels of a residual block, ``(time, height, width)``.
      edge_kernel: the kernel next to the pixels.
      padding: what stands before the first frame, ``zero`` or ``replicate``.
      upsampling: a name in ``UPSAMPLING``.
    """

    widths: tuple[int, ...]
    strides: tuple[Stride, ...]
    kernels: tuple[Triple, Triple] = ((3, 3, 3), (3, 3, 3))
    edge_kernel: Triple = (3, 7, 7)
    padding: str = "zero"
    upsampling: str = "nearest"

    @classmethod
    def read(cls, config: "Pyramid | Mapping[str, Any]") -> "Pyramid":
        """From the settings of ``of``; a pyramid stays as it is."""
        return config if isinstance(config, cls) else build({"pyramid": cls.of}, {"name": "pyramid", **config}, "model")

    @classmethod
    def of(
        cls,
        widths: Sequence[Count],
        spatial_strides: Sequence[Count],
        temporal_strides: Sequence[Count],
        kernels: Sequence[Sequence[int]] = ((3, 3, 3), (3, 3, 3)),
        edge_kernel: Triple = (3, 7, 7),
        padding: str = "zero",
        upsampling: str = "nearest",
    ) -> "Pyramid":
        """Checks and combines the settings of a config.

        Raises:
          UserError: lists of other lengths than ``widths``, a padding that is not causal, an unknown up-sampling.
        """
        for name, strides in (("spatial_strides", spatial_strides), ("temporal_strides", temporal_strides)):
            if len(strides) != len(widths):
                raise UserError(f"{len(widths)} widths of a pyramid need {len(widths)} {name}, got {list(strides)}")
        if len(kernels) != 2:
            raise UserError(f"a residual block has 2 kernels, got {len(kernels)}")
        if padding == "same":
            raise UserError("padding 'same' lets the future into the past; use 'zero' or 'replicate'")
        if upsampling not in UPSAMPLING:
            raise UserError(f"unknown upsampling {upsampling!r}{near_matches(upsampling, UPSAMPLING)}")
        strides = tuple(zip(temporal_strides, spatial_strides, strict=True))
        kernels = tuple(tuple(kernel) for kernel in kernels)
        return cls(tuple(widths), strides, kernels, tuple(edge_kernel), padding, upsampling)

    @property
    def compression(self) -> Compression:
        """Pixels per latent."""
        time, space = (math.prod(steps) for steps in zip(*self.strides, strict=True))
        return Compression(time, space, space)


class Block(nnx.Module):
    """Convolution, norm of the channels at each place, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: Triple, pyramid: Pyramid, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.convolution = Convolution(inputs, outputs, size, padding=pyramid.padding, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(outputs, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        return jax.nn.relu(self.norm(self.convolution(x, stream)))


class Residual(nnx.Module):
    """Two blocks beside a skip path; between them the noise level, where there is one.

    Blocks end with their norm and ReLU, as in the public code. A branch that began as zero would therefore stay zero
    (the ReLU passes no gradient there), so branches begin like everything else.

    Args:
      inputs: channels in.
      outputs: channels out.
      pyramid: kernels and padding.
      first: another kernel for the first block.
      embedding: width of the embedded noise level; 0 where the network knows none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        pyramid: Pyramid,
        *,
        first: Triple | None = None,
        embedding: int = 0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.first = Block(inputs, outputs, first or pyramid.kernels[0], pyramid, **common)
        self.second = Block(outputs, outputs, pyramid.kernels[1], pyramid, **common)
        self.level = Linear(embedding, outputs, axes=(None, "embed"), rngs=rngs) if embedding else None
        self.skip = Linear(inputs, outputs, **common) if inputs != outputs else None

    def __call__(
        self, x: Grid, embedding: Float[Array, "batch embedding"] | None = None, stream: Stream | None = None
    ) -> Grid:
        y = self.first(x, stream)
        if self.level is not None:
            y += self.level(jax.nn.leaky_relu(embedding, 0.2))[:, None, None, None].astype(y.dtype)
        y = self.second(y, stream)
        return (x if self.skip is None else self.skip(x)) + y


class FrameAttention(nnx.Module):
    """Linear attention (Katharopoulos et al., 2020; softmaxes as in Shen et al., 2018) within each frame; one head."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.projection = Linear(width, 3 * width, axes=("embed", None), bias=False, **common)
        self.output = Linear(width, width, axes=(None, "embed"), **common)

    def __call__(self, x: Grid) -> Grid:
        batch, time, height, width, channels = x.shape
        projected = self.projection(self.norm(x)).reshape(batch, time, height * width, 3 * channels)
        query, key, value = jnp.split(projected.astype(jnp.float32), 3, axis=-1)
        query, key = jax.nn.softmax(query, axis=-1) * channels**-0.5, jax.nn.softmax(key, axis=-2)
        context = jnp.einsum("btpk,btpv->btkv", key, value)
        y = jnp.einsum("btpk,btkv->btpv", query, context)
        return x + self.output(y.reshape(x.shape))


def mean_of_last(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initialiser of a kernel of t + 1 frames: the mean of the last t, channel by channel.

    The public code takes their sum, which doubles activations at every level.
    """
    steps, channels = shape[0] - 1, shape[-1]
    taps = jnp.eye(channels, dtype=dtype) / steps
    return jnp.zeros(shape, dtype).at[1:].set(taps)


def repetition(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initialiser of a kernel whose outputs are several copies of its inputs."""
    inputs, outputs = shape[-2:]
    return jnp.broadcast_to(jnp.tile(jnp.eye(inputs, dtype=dtype), (1, outputs // inputs)), shape)


class Down(nnx.Module):
    """Down-sampling of space by a convolution, then of time, which begins as the mean of the frames it joins."""

    def __init__(self, width: int, stride: Stride, pyramid: Pyramid, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(padding=pyramid.padding, dtype=dtype, rngs=rngs)
        time, space = stride
        side, steps = max(3, space), dict(stride=(time, 1, 1), initializer=mean_of_last)
        over = dict(stride=(1, space, space))
        self.space = Convolution(width, width, (1, side, side), **over, **common) if space > 1 else None
        self.time = Convolution(width, width, (time + 1, 1, 1), **steps, **common) if time > 1 else None

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        x = x if self.space is None else self.space(x, stream)
        return x if self.time is None else self.time(x, stream)


class Up(nnx.Module):
    """Undoes ``Down``: up-sampling of space, then of time, which begins as repetition of every frame but the first."""

    def __init__(self, width: int, stride: Stride, pyramid: Pyramid, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(padding=pyramid.padding, dtype=dtype, rngs=rngs)
        time, space = stride
        self.stride = (1, space, space)
        if space == 1:
            self.space = None
        elif pyramid.upsampling == "nearest":
            self.space = Convolution(width, width, (1, 5, 5), **common)
        else:
            self.space = DepthToSpace(width, width, (1, 3, 3), stride=self.stride, **common)
        frames = dict(stride=(time, 1, 1), initializer=repetition)
        self.time = DepthToSpace(width, width, (1, 1, 1), **frames, **common) if time > 1 else None

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        if isinstance(self.space, Convolution):
            x = repeat(x, self.stride, drop_first=False)
        x = x if self.space is None else self.space(x, stream)
        return x if self.time is None else self.time(x, stream)
