"""Rotary positions that say when and where in a picture a token is, whatever the frame rate and size of its clip."""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videogen.building import check_fields
from videogen.errors import UserError
from videogen.ranges import Count, Number, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipRotary:
    """Rotary positions in seconds and in pixels, turned over the whole width of a token (LTX-Video; HaCohen et al.,
    2024; as its public implementations compute them).

    A position ``p`` along an axis with the span ``s`` turns a pair of channels by ``π/2 · f · (2p/s - 1)`` with ``f``
    from 1 to ``base`` in equal steps of its logarithm. The pairs of a token, over all its heads, begin with those that
    are left over and not turned; then come time, row and column of the lowest ``f``, of the next one, and so on. So
    every head has other angles.

    Attributes:
      cell: frames, rows and columns of pixels of a token.
      span: seconds, rows and columns of pixels of a whole range.
      base: the largest factor.
      first_alone: token k along time begins at frame max(0, c·k - (c - 1)) of cells of c frames, for the first frame is
        alone (``causal_temporal_positioning`` of the published files); else at frame c·k.
    """

    cell: tuple[Count, Count, Count] = (8, 32, 32)
    span: tuple[Positive, Positive, Positive] = (20.0, 2048.0, 2048.0)
    base: Annotated[float, Number(float, 1)] = 10_000.0
    first_alone: bool = False

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "cell", tuple(self.cell))
        object.__setattr__(self, "span", tuple(self.span))

    def seconds(self, tokens: int, rate: Float[Array, "batch"]) -> Float[Array, "batch tokens"]:
        """When each of so many tokens along time begins.

        Args:
          tokens: along time.
          rate: frames per second of each clip.
        """
        frames, unit = np.arange(tokens), self.cell[0]
        if self.first_alone:
            frames, unit = np.maximum(frames * unit - (unit - 1), 0), 1
        return frames.astype(np.float32) * (unit / jnp.asarray(rate, jnp.float32))[:, None]

    def angles(
        self, shape: tuple[int, int, int], heads: int, head_width: int, rate: Float[Array, "batch"] | None
    ) -> Float[Array, "batch tokens heads half_head_width"]:
        """The angles of the tokens of a grid in raster order, for each head.

        Args:
          shape: ``(time, height, width)`` of the grid.
          heads: of the attention.
          head_width: even.
          rate: frames per second of each clip.

        Raises:
          UserError: there is no rate, or too few channels for three axes.
        """
        if rate is None:
            raise UserError("positions in seconds need the frame rate of the clips: give Conditioning.rate")
        pairs, each = heads * head_width // 2, heads * head_width // 6
        if head_width % 2 or not each:
            raise UserError(f"rotary positions of clips need even heads and a width of 6 or more, got {head_width}")
        frequencies = (np.float64(self.base) ** np.linspace(0, 1, each, dtype=np.float32)).astype(np.float32)
        frequencies *= np.float32(np.pi / 2)
        time = self.seconds(shape[0], rate) / np.float32(self.span[0])
        sides = [
            np.arange(count, dtype=np.float32) * (cell / span)
            for count, cell, span in zip(shape[1:], self.cell[1:], self.span[1:], strict=True)
        ]
        # Of each axis by itself first: there are far fewer than of all places.
        axes = [(2 * place - 1)[..., None] * frequencies for place in (time, *sides)]
        whole = (len(time), *shape, each)
        parts = (axes[0][:, :, None, None], axes[1][None, None, :, None], axes[2][None, None, None])
        turned = jnp.stack([jnp.broadcast_to(part, whole) for part in parts], axis=-1)
        turned = turned.reshape(len(time), -1, 3 * each)
        turned = jnp.pad(turned, ((0, 0), (0, 0), (pairs - 3 * each, 0)))
        return turned.reshape(*turned.shape[:2], heads, head_width // 2)
