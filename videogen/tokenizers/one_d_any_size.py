"""Tokens of clips of any height and width: the binary autoencoder of Instella-T2I (arXiv 2506.21022, section 2.1)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError
from videogen.nn import (
    FULL,
    Convolution,
    DepthToSpace,
    Linear,
    Stack,
    angles_at,
    average_pool,
    parameter,
    patchify,
    read_transformer,
    repeat,
    truncated_normal,
    unpatchify,
)
from videogen.ranges import Count, Natural, Number, Positive, Triple
from videogen.shapes import Latents, Video, VideoShape
from videogen.tokenizers.one_d import Queried
from videogen.tokens import Layout

HALVES = (1, 2, 2)
"""``(time, height, width)`` of the places that become one in the middle of the encoder."""

Extent = Annotated[float, Number(float, 1)]


class ResidualDown(nnx.Module):
    """Half as many rows and columns: a strided convolution of ``kernel`` rows and columns beside the mean of each
    2 × 2 places."""

    def __init__(self, width: int, kernel: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.convolution = Convolution(width, width, (1, kernel, kernel), stride=HALVES, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time height width channel"]) -> Array:
        return average_pool(x, HALVES) + self.convolution(x)


class ResidualUp(nnx.Module):
    """Twice as many: a convolution whose channels are laid out as 2 × 2 places, beside the place itself, repeated."""

    def __init__(self, width: int, kernel: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.convolution = DepthToSpace(width, width, (1, kernel, kernel), stride=HALVES, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time height width channel"]) -> Array:
        return repeat(x, HALVES, drop_first=False) + self.convolution(x)


def joint_places(count: int, grid: Sequence[int], extent: float) -> Float[np.ndarray, "tokens axes"]:
    """Positions along three axes of ``count`` queries and behind them the places of a grid, in raster order.

    Query i is at (i, 0, 0), a patch of an image at (0, row, column), where rows and columns run from 0 to
    ``extent - 1`` whatever their number, and a single one is at 0. Frames behind the first one of a video follow the
    queries on the first axis (our extension).

    Args:
      count: number of queries.
      grid: ``(time, height, width)``.
      extent: one more than the last row and column.
    """
    queries = np.pad(np.arange(count, dtype=np.float32)[:, None], ((0, 0), (0, 2)))
    frames = np.where(np.arange(grid[0]) == 0, 0, count - 1 + np.arange(grid[0]))
    rows, columns = (np.arange(n) * (extent - 1) / max(n - 1, 1) for n in grid[1:])
    places = np.stack(np.meshgrid(frames, rows, columns, indexing="ij"), axis=-1)
    return np.concatenate([queries, places.reshape(-1, 3)]).astype(np.float32)


class OneDAnySize(Queried):
    """As many codes for a clip of any height and width, which decode to any height and width.

    Both transformers see everything at once and know places by rotary positions of three axes (``joint_places``), whose
    rows and columns are rescaled to one range. In the middle of the encoder 2 × 2 places become one, in the middle of
    the decoder one becomes 2 × 2: the decoder begins with one learned vector at each place of the coarse grid.

    All clips have the same number of frames. Where nothing says how large a decoded clip is, it is as ``clip``.

    Args:
      clip: ``(frames, height, width)`` of the clips that are decoded where nothing else is asked for.
      patch: ``(time, height, width)`` of a patch; height and width of every clip are multiples of two patches.
      queries: number of codes of a clip.
      encoder: section of the transformer over [queries; patches] (``nn.read_transformer``), with RMS norms.
      decoder: section of the transformer over [codes; places].
      quantizer: quantizer config ``{name, …}``.
      resized_after: layers of the encoder before its grid is halved, and of the decoder before its grid is doubled.
      kernels: rows and columns of the convolutions that halve and double the grid.
      rotary_channels: of an attention head, for each of the three axes.
      extent: rows and columns are at 0 … ``extent - 1``.
      lengths: length rule ``{name, …}``; without one every code is seen.
      query_scale: standard deviation of the fresh queries, and of the vector that the decoder begins with.
      channels: colour channels.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    last_layer = ("pixels",)

    def __init__(
        self,
        clip: Triple,
        patch: Triple,
        queries: Count,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        quantizer: Mapping[str, Any],
        *,
        resized_after: tuple[Natural, Natural] = (8, 8),
        kernels: tuple[Count, Count] = (3, 3),
        rotary_channels: Triple = (8, 28, 28),
        extent: Extent = 64.0,
        lengths: Mapping[str, Any] | None = None,
        query_scale: Positive = 0.02,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        read, write = (read_transformer(section, norm="rms") for section in (encoder, decoder))
        self.rotary_channels, self.extent, self.resized_after = tuple(rotary_channels), extent, tuple(resized_after)
        for section, layers in zip((read, write), self.resized_after, strict=True):
            if layers > section.layers:
                raise UserError(f"resized_after={self.resized_after} is beyond the {section.layers} layers there are")
            if section.head_width != sum(self.rotary_channels):
                raise UserError(
                    f"rotary_channels={self.rotary_channels} must add up to the {section.head_width} channels of a head"
                )
        made_with = dict(remat=remat, dtype=dtype, rngs=rngs)
        about = dict(lengths=lengths, query_scale=query_scale, channels=channels, normalise=False)
        super().__init__(clip, patch, queries, read, quantizer, **about, **made_with)
        self.layout(self.clip)
        common = dict(dtype=dtype, rngs=rngs)
        self.down = ResidualDown(read.width, kernels[0], **common)
        self.up = ResidualUp(write.width, kernels[1], **common)
        # The rows of the bits that are 1 add up: no bias.
        axes = dict(axes=(None, "embed"), precision=FULL)
        self.embed = Linear(self.quantizer.width, read.width, bias=False, **axes, rngs=rngs)
        self.code_norm = read.last_norm(rngs=rngs)
        self.from_code = Linear(read.width, write.width, axes=("embed", None), **common)
        self.place = parameter(rngs, (write.width,), (None,), truncated_normal(query_scale))
        self.decoder, self.decoder_norm = write.stack(**made_with), write.last_norm(rngs=rngs)
        self.pixels = Linear(write.width, self.area, axes=("embed", None), **common)

    def layout(self, shape: VideoShape) -> Layout:
        """As many tokens for every clip; raises ``UserError`` for other frames, and for sides it cannot halve."""
        sides = tuple(2 * side for side in self.patch[1:])
        if shape.frames != self.clip.frames or shape.height % sides[0] or shape.width % sides[1]:
            raise UserError(
                f"this tokenizer codes clips of {self.clip.frames} frames as a whole, whose height and width are "
                f"multiples of {sides[0]} and {sides[1]}; got {shape.frames}×{shape.height}×{shape.width}"
            )
        return self.layout_of((self.codes,))

    def sized(self, shape: VideoShape) -> dict[str, Any]:
        return {"size": (shape.height, shape.width)}

    def _gather(self, video: Video) -> Float[Array, "batch queries width"]:
        self.layout(VideoShape(*video.shape[1:4]))
        x, middle = self.patches(patchify(video.astype(self.dtype), self.patch)), self.resized_after[0]
        queries, x = self._see(self.encoder, slice(middle), self._fresh_queries(len(video)), x)
        return self._see(self.encoder, slice(middle, None), queries, self.down(x))[0]

    def decode(
        self,
        latents: Latents,
        kept: Bool[Array, "batch queries"] | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> Video:
        """Quantised latents to pixels.

        Args:
          latents: ``[batch, queries, width]``.
          kept: the codes that may be seen; ``None``: all.
          size: height and width of the clips in pixels, whatever those were that the codes are of; by default those of
            ``clip``.
        """
        shape = VideoShape(self.clip.frames, *(size or (self.clip.height, self.clip.width)))
        self.layout(shape)
        time, height, width = shape.grid(self.feature_compression).shape
        codes = self.from_code(self.code_norm(self.embed(latents)).astype(self.dtype))
        place, middle = self.place.get_value().astype(self.dtype), self.resized_after[1]
        x = jnp.broadcast_to(place, (len(codes), time, height // 2, width // 2, place.shape[0]))
        codes, x = self._see(self.decoder, slice(middle), codes, x, kept)
        x = self._see(self.decoder, slice(middle, None), codes, self.up(x), kept)[1]
        return unpatchify(self.pixels(self.decoder_norm(x)), self.patch).astype(jnp.float32)

    def _see(
        self,
        stack: Stack,
        layers: slice,
        codes: Float[Array, "batch queries width"],
        grid: Float[Array, "batch time height width channel"],
        kept: Bool[Array, "batch queries"] | None = None,
    ) -> tuple[Float[Array, "batch queries width"], Float[Array, "batch time height width channel"]]:
        """Codes and places behind these layers, in which all see all that is kept."""
        batch, count, width = codes.shape
        x = jnp.concatenate([codes, grid.reshape(batch, -1, width)], axis=1)
        places = joint_places(count, grid.shape[1:4], self.extent)
        rotary = angles_at(places, sum(self.rotary_channels), channels=self.rotary_channels)
        seen = None
        if kept is not None:
            seen = jnp.concatenate([kept, jnp.ones((batch, x.shape[1] - count), bool)], axis=1)
        x = stack(x, layers=layers, rotary=rotary, key_mask=seen)
        return x[:, :count], x[:, count:].reshape(grid.shape)
