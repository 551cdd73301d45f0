"""Frame <-> latent arithmetic (the 1 + k·m rule) and the arrays every room exchanges.

No other file computes how many latent frames a clip has, which frames a latent covers, or how long an
extended video is.
"""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Array, Float

from videogen.errors import UserError

Video = Float[Array, "batch time height width channel"]
"""Pixels in [-1, 1]; an image is a one-frame video."""

Latents = Float[Array, "batch latent_time latent_height latent_width embed"]


def check_video(video: Array) -> None:
    """Refuses what is no video. Values are looked at where there are any: not while a program is traced.

    Raises:
      UserError: names the axis, the dtype or the value, and the remedy.
    """
    shape, dtype = list(video.shape), video.dtype
    if len(shape) != 5 or 0 in shape:
        remedy = ": add the batch axis, video[None]" if len(shape) == 4 else ", and no axis is empty"
        raise UserError(f"a video is [batch, time, height, width, channel], got {shape}{remedy}")
    if not np.issubdtype(dtype, np.floating) and dtype != jax.numpy.bfloat16:
        raise UserError(f"pixels are floats in [-1, 1], got {dtype}: video / 127.5 - 1 makes them of bytes")
    if not isinstance(video, jax.core.Tracer):
        low, high = float(video.min()), float(video.max())
        if not -1.001 <= low <= high <= 1.001:
            raise UserError(f"pixels must be in [-1, 1], got values from {low:.4g} to {high:.4g}")


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """The static shape of a clip's codes: latent frames × rows × columns, with ``levels`` codes at each place."""

    time: int
    height: int
    width: int
    levels: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(time, height, width)."""
        return (self.time, self.height, self.width)

    @property
    def tokens(self) -> int:
        """Number of places, ``time · height · width``."""
        return math.prod(self.shape)

    @property
    def tokens_per_frame(self) -> int:
        """Number of places of one latent frame."""
        return self.height * self.width

    def with_time(self, time: int) -> "TokenGrid":
        """The same grid with another number of latent frames."""
        return dataclasses.replace(self, time=time)


@dataclasses.dataclass(frozen=True)
class Compression:
    """Pixels per latent along each axis.

    The first frame stands alone in time (C-ViViT, Phenaki section 2.1): 1 + k·m frames make 1 + k latents. Tokenizers
    that are not causal have no such frame (``first_alone=False``): k·m frames make k latents.
    """

    time: int
    height: int
    width: int
    first_alone: bool = True

    @property
    def _lone(self) -> int:
        return int(self.first_alone)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of 1 + k·m (k·m) frames: 1 + k (k)."""
        lone = self._lone
        if frames < 1 or (frames - lone) % self.time:
            below = max(frames - lone, 0) // self.time * self.time + lone
            near = f"{below} or {below + self.time}" if below else str(self.time)
            rule = f"1 + {self.time}·k" if lone else f"{self.time}·k"
            raise UserError(f"a clip must have {rule} frames, got {frames}; use {near}")
        return lone + (frames - lone) // self.time

    def chunk(self, shape: "VideoShape", first: bool) -> "VideoShape":
        """The clip to check a chunk as: a first chunk is a clip; a later one has k·m frames, as 1 + k·m without one.

        Raises:
          UserError: a later chunk does not end with a latent.
        """
        if first:
            return shape
        if shape.frames < 1 or shape.frames % self.time:
            near = max(shape.frames // self.time, 1) * self.time
            raise UserError(f"a later chunk must have {self.time}·k frames, got {shape.frames}; use {near}")
        return dataclasses.replace(shape, frames=self._lone + shape.frames)

    def frames(self, latent_frames: int) -> int:
        """Frames of ``latent_frames`` latent frames: 1 + (latent_frames - 1)·m, or latent_frames·m."""
        if latent_frames < 1:
            raise UserError(f"a clip needs at least one latent frame, got {latent_frames}")
        return self._lone + (latent_frames - self._lone) * self.time

    def frames_of_latent(self, index: int) -> range:
        """The frames latent ``index`` is made from: frame 0, or frames 1 + (index-1)·m … index·m."""
        if index == 0 and self.first_alone:
            return range(0, 1)
        start = self._lone + (index - self._lone) * self.time
        return range(start, start + self.time)

    def centres(self, lengths: tuple[int, int, int], start: int = 0) -> Float[np.ndarray, "time height width 3"]:
        """The middle of the cell that each place of a grid stands for, in frames, rows and columns of pixels.

        It is the mean of the indices of all frames, rows and columns of the cell, so that tokens of grids of different
        compression have coordinates in common units.

        Args:
          lengths: ``(time, height, width)`` of the grid.
          start: the latent frame of the clip that the grid begins with.
        """
        covered = (self.frames_of_latent(start + i) for i in range(lengths[0]))
        times = [(frames[0] + frames[-1]) / 2 for frames in covered]
        rows, columns = (
            np.arange(n) * size + (size - 1) / 2 for n, size in zip(lengths[1:], (self.height, self.width), strict=True)
        )
        return np.stack(np.meshgrid(np.array(times), rows, columns, indexing="ij"), axis=-1).astype(np.float32)

    def latent_of_frame(self, frame: int) -> int:
        """The latent that holds ``frame``: ceil(frame / m), or floor(frame / m) without a lone first frame."""
        return -(-frame // self.time) if self.first_alone else frame // self.time


@dataclasses.dataclass(frozen=True)
class VideoShape:
    """The static shape of a clip in pixels."""

    frames: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Number of pixels, ``frames · height · width``."""
        return self.frames * self.height * self.width

    def grid(self, compression: Compression, levels: int = 1) -> TokenGrid:
        """The token grid of this clip.

        Raises:
          UserError: the frame count is not 1 + k·m, or a side is no multiple of the patch.
        """
        time = compression.latent_frames(self.frames)
        for side in ("height", "width"):
            pixels, patch = getattr(self, side), getattr(compression, side)
            if pixels < 1 or pixels % patch:
                near = max(pixels // patch, 1) * patch
                raise UserError(
                    f"clip {side} {pixels} is no multiple of the patch {patch}; use {near} or {near + patch}"
                )
        return TokenGrid(time, self.height // compression.height, self.width // compression.width, levels)


@dataclasses.dataclass(frozen=True)
class Extension:
    """Bookkeeping of a video made of sliding windows (Phenaki section 2.3).

    Every window after the first re-encodes the last ``overlap`` frames of what exists and adds
    ``window - overlap`` new frames.
    """

    window: int
    overlap: int

    def __post_init__(self):
        if not 1 <= self.overlap < self.window:
            raise UserError(f"overlap must be between 1 and {self.window - 1} frames, got {self.overlap}")

    def frames(self, segments: int) -> int:
        """Length of ``segments`` windows: window + (segments - 1)·(window - overlap)."""
        return self.window + (segments - 1) * (self.window - self.overlap)

    def segments(self, frames: int) -> int:
        """The fewest windows that hold at least ``frames`` frames."""
        return 1 + max(0, math.ceil((frames - self.window) / (self.window - self.overlap)))


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Equal tiles that cover one side of a frame, each overlapping the next by at least ``overlap`` places.

    Attributes:
      size: places of the side.
      tile: places of a tile; one tile covers a side that is no longer.
      overlap: places that neighbours share; the last two share more where the tiles do not come out even.
    """

    size: int
    tile: int
    overlap: int

    def __post_init__(self):
        if not 0 <= self.overlap < self.tile:
            raise UserError(f"the overlap of tiles must be between 0 and {self.tile - 1}, got {self.overlap}")

    @property
    def starts(self) -> tuple[int, ...]:
        """The first place of each tile."""
        last = max(self.size - self.tile, 0)
        return (*range(0, last, self.tile - self.overlap), last)

    def scaled(self, factor: int) -> "Tiles":
        """The same tiles in units ``factor`` times as small: pixels for latents."""
        return Tiles(self.size * factor, self.tile * factor, self.overlap * factor)

    def weights(self, start: int) -> Float[np.ndarray, "places"]:
        """How much the tile at ``start`` counts at each of its places, relative to its neighbours.

        Of an overlap, the quarter next to the tile's own edge does not count: that is where the tile has seen least of
        what surrounds it. From there it rises in a straight line over half of the overlap.
        """
        length = min(self.tile, self.size)
        places = np.arange(length) + 0.5
        first = places if start > 0 else np.full(length, np.inf)
        last = length - places if start + length < self.size else np.full(length, np.inf)
        distance = np.minimum(first, last)
        return np.clip((distance - self.overlap / 4) / max(self.overlap / 2, 1e-9), 0.0, 1.0)
