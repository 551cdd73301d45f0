"""Context decoder (latents -> feature pyramid) and denoiser (noisy video, pyramid -> clean video) of CDT."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.detokenizers.pyramid import Down, FrameAttention, Grid, Pyramid, Residual, Up
from videogen.errors import UserError
from videogen.nn import Convolution, LayerNorm, Linear, Stream, checkpointed, zeros
from videogen.ranges import Count
from videogen.shapes import Latents, Video

EMBEDDING = 64
"""Width of the embedded noise level."""


class ContextDecoder(nnx.Module):
    """Latents to features at every level of the pyramid, the finest first; it never makes pixels.

    Args:
      inputs: width of the latents.
      pyramid: its strides lead from the pixels to the latents.
      context_width: channels of the finest features.
      remat: what the backward pass keeps of each residual block (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self, inputs: int, pyramid: Pyramid, context_width: int, *, remat: str, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.remat = remat
        self.widths = (context_width, *pyramid.widths[:-1])
        common = dict(dtype=dtype, rngs=rngs)
        # The way out of the bottleneck is float32, in two paths, like the way in.
        self.direct = Linear(inputs, pyramid.widths[-1], axes=(None, "embed"), rngs=rngs)
        self.input = Linear(inputs, pyramid.widths[0], axes=(None, "embed"), rngs=rngs)
        pairs = itertools.pairwise(pyramid.widths)
        self.middle = nnx.List([Residual(a, b, pyramid, dtype=jnp.float32, rngs=rngs) for a, b in pairs])
        levels = [*zip(pyramid.widths, self.widths, pyramid.strides, strict=True)][::-1]
        self.levels = nnx.List([Residual(a, b, pyramid, **common) for a, b, _ in levels])
        self.ups = nnx.List([Up(width, stride, pyramid, **common) for _, width, stride in levels])

    def __call__(self, latents: Latents, stream: Stream | None = None) -> tuple[Grid, ...]:
        remat = self.remat if stream is None else "none"
        latents = latents.astype(jnp.float32)
        x = self.input(latents)
        for block in self.middle:
            x = checkpointed(block, remat, x, None, stream)
        x += self.direct(latents)
        features = []
        for level, up in zip(self.levels, self.ups, strict=True):
            x = up(checkpointed(level, remat, x, None, stream), stream)
            features.append(x)
        return tuple(features[::-1])


class Stage(nnx.Module):
    """Two residual blocks and attention within frames, at one resolution of the denoiser."""

    def __init__(self, inputs: int, outputs: int, pyramid: Pyramid, *, edge: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(embedding=EMBEDDING, dtype=dtype, rngs=rngs)
        self.first = Residual(inputs, outputs, pyramid, first=pyramid.edge_kernel if edge else None, **common)
        self.second = Residual(outputs, outputs, pyramid, **common)
        self.attention = FrameAttention(outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid, embedding: Float[Array, "batch embedding"], stream: Stream | None = None) -> Grid:
        return self.attention(self.second(self.first(x, embedding, stream), embedding, stream))


class Denoiser(nnx.Module):
    """Causal U-Net over pixels, conditioned on a pyramid of features by concatenation. It knows nothing of processes.

    Args:
      pyramid: its first levels are those of the features.
      context: channels of the features, the finest first.
      widths: channels of every level; more than the pyramid has, for levels below the latents' resolution.
      deeper_strides: spatial strides of the levels below the pyramid's.
      channels: colour channels.
      remat: what the backward pass keeps of each stage (``nn.REMAT_POLICIES``).

    Raises:
      UserError: the numbers of widths and strides do not fit.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        context: Sequence[int],
        widths: Sequence[Count],
        deeper_strides: Sequence[Count],
        *,
        channels: Count,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        strides = (*pyramid.strides, *((1, space) for space in deeper_strides))
        if len(widths) != len(strides) + 1:
            raise UserError(
                f"a denoiser over {len(pyramid.strides)} levels of features and {len(deeper_strides)} deeper strides "
                f"has {len(strides) + 1} widths, got {list(widths)}"
            )
        self.remat = remat
        common = dict(dtype=dtype, rngs=rngs)
        self.time_hidden = Linear(1, 256, axes=(None, None), rngs=rngs)
        self.time_output = Linear(256, EMBEDDING, axes=(None, None), rngs=rngs)
        seen = (*context, *([0] * (len(widths) - len(context))))
        inputs = [before + extra for before, extra in zip((channels, *widths), seen, strict=False)]
        outputs = (widths[0], *widths[:-1])
        self.levels = nnx.List(
            [Stage(a, b, pyramid, edge=i == 0, **common) for i, (a, b) in enumerate(zip(inputs, widths, strict=True))]
        )
        self.downs = nnx.List([Down(w, stride, pyramid, **common) for w, stride in zip(widths, strides, strict=False)])
        self.middle = Stage(widths[-1], widths[-1], pyramid, edge=False, **common)
        self.rises = nnx.List(
            [Stage(2 * a, b, pyramid, edge=False, **common) for a, b in zip(widths, outputs, strict=True)]
        )
        self.ups = nnx.List([Up(w, stride, pyramid, **common) for w, stride in zip(widths, strides, strict=False)])
        self.norm = LayerNorm(widths[0], epsilon=1e-5, rngs=rngs)
        self.output = Convolution(
            widths[0], channels, pyramid.edge_kernel, padding=pyramid.padding, initializer=zeros, **common
        )

    def __call__(
        self, noisy: Video, time: Float[Array, "batch"], context: Sequence[Grid], stream: Stream | None = None
    ) -> Video:
        """The clean video in ``noisy``, float32.

        Args:
          noisy: as many frames as the context's finest features.
          time: the noise level of each clip, 0 (none) to 1.
          context: features, the finest first.
          stream: for a clip in chunks.
        """
        remat = self.remat if stream is None else "none"
        hidden = jax.nn.gelu(self.time_hidden(time.astype(jnp.float32)[:, None]))
        embedding = self.time_output(hidden)
        x, kept = noisy.astype(context[0].dtype), []
        for i, level in enumerate(self.levels):
            x = jnp.concatenate([x, context[i]], axis=-1) if i < len(context) else x
            x = checkpointed(level, remat, x, embedding, stream)
            kept.append(x)
            x = self.downs[i](x, stream) if i < len(self.downs) else x
        x = checkpointed(self.middle, remat, x, embedding, stream)
        for i in reversed(range(len(self.rises))):
            x = checkpointed(self.rises[i], remat, jnp.concatenate([x, kept[i]], axis=-1), embedding, stream)
            if i:
                _, _, height, width, _ = kept[i - 1].shape
                # A stride that does not divide a side is undone to more places than there were.
                x = self.ups[i - 1](x, stream)[:, :, :height, :width]
        return self.output(self.norm(x), stream).astype(jnp.float32)
