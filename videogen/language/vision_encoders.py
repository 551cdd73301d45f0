"""What makes the grid of vectors that a video-language model reads of a clip: patches, tokens, a frozen network."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building
from videogen.diffusion.latent_statistics import LatentStatistics
from videogen.encoders.loading import plain
from videogen.encoders.video_swin import VideoSwin
from videogen.errors import UserError
from videogen.nn import LearnedPositions, Linear, Transformer, angles_at, patchify, read_transformer
from videogen.ranges import Count, Natural
from videogen.reducers.tokens import Grid
from videogen.shapes import Video, VideoShape

TOKENIZER, ENCODER = "tokenizer", "encoder"
"""Frozen parts that a vision encoder may read."""

ROTARY_RATE = 8.0
"""Rotary positions of a second."""


@dataclasses.dataclass(frozen=True)
class Features:
    """What a frozen part gives of a clip.

    Attributes:
      sides: of its grid: time, height and width.
      channels: of a vector.
      centres: the middle of each place in time, in frames.
    """

    sides: Grid
    channels: int
    centres: tuple[float, ...]

    @classmethod
    def evenly(cls, sides: Grid, channels: int, frames: int) -> "Features":
        """Places that share the frames evenly."""
        centres = (np.arange(sides[0]) + 0.5) * frames / sides[0] - 0.5
        return cls(sides, channels, tuple(centres.tolist()))


class VisionEncoder(nnx.Module):
    """Base of the vision encoders.

    Attributes:
      part: the frozen part that is read; ``None``: the pixels themselves.
      pixels: what it takes are pixels in [-1, 1], so that their differences are known.
      framewise: a place in time is one frame, and sees no other.
      channels: of its vectors.
      sides: of the grid of a whole clip.
      centres: the middle of each place in time, in frames.
    """

    part: ClassVar[str | None] = None
    pixels: ClassVar[bool] = False
    framewise: bool = False
    channels: int
    sides: Grid
    centres: tuple[float, ...]

    def __call__(
        self, inputs: Array, seconds: Float[Array, "batch time"], exists: Bool[Array, "batch time"] | None = None
    ) -> Float[Array, "batch time height width channels"]:
        """Vectors on their grid.

        Args:
          inputs: pixels, or what the frozen part gives; perhaps of some of the times only.
          seconds: of the places in time.
          exists: which of these there are; ``None``: all.
        """
        raise NotImplementedError

    def sums(self, inputs: Array) -> dict[str, Array]:
        """What ``update`` needs of the inputs of a step; nothing where nothing is measured."""
        return {}

    def update(self, sums: Mapping[str, Array]) -> None:
        """Takes what a step has measured in."""


class Patches(VisionEncoder):
    """Patches of every frame, layers of a transformer within each frame and, with ``temporal``, over time.

    Args:
      clip: the shape of the clips.
      patch: side of a patch in pixels.
      transformer: ``{width, layers, heads, mlp_width, …}`` of the layers within a frame (``nn.TransformerSection``).
      temporal: layers behind them that see one place at all times, with rotary positions by the seconds.
      remat: what the backward pass keeps.
    """

    pixels = True

    def __init__(
        self,
        clip: VideoShape,
        *,
        patch: Count,
        transformer: Mapping[str, Any],
        temporal: Natural = 0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for side in ("height", "width"):
            if getattr(clip, side) % patch:
                raise UserError(f"clip {side} {getattr(clip, side)} is no multiple of the patch {patch}")
        section, common = read_transformer(transformer), dict(remat=remat, dtype=dtype, rngs=rngs)
        self.patch, self.head_width, self.dtype = patch, section.head_width, dtype
        self.channels, self.framewise = section.width, temporal == 0
        self.sides = (clip.frames, clip.height // patch, clip.width // patch)
        self.centres = tuple(map(float, range(clip.frames)))
        self.linear = Linear(3 * patch**2, section.width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.places = LearnedPositions(self.sides[1] * self.sides[2], section.width, rngs=rngs)
        self.spatial = Transformer(section.stack(**common), section.last_norm(rngs=rngs))
        over_time = dataclasses.replace(section, layers=temporal)
        last = section.last_norm(rngs=rngs)
        self.temporal = Transformer(over_time.stack(**common), last) if temporal else None

    def __call__(self, inputs: Video, seconds, exists=None):
        x = self.linear(patchify(inputs.astype(self.dtype), (1, self.patch, self.patch)))
        batch, time, height, width, channels = x.shape
        x = x.reshape(batch * time, height * width, channels) + self.places(height * width).astype(x.dtype)
        x = self.spatial(x).reshape(batch, time, height * width, channels)
        if self.temporal is not None:
            x = x.swapaxes(1, 2).reshape(-1, time, channels)
            angles = angles_at(ROTARY_RATE * seconds[..., None], self.head_width)
            each = height * width
            seen = None if exists is None else jnp.repeat(exists, each, axis=0)
            x = self.temporal(x, rotary=jnp.repeat(angles, each, axis=0), key_mask=seen)
            x = x.reshape(batch, each, time, channels).swapaxes(1, 2)
        return x.reshape(batch, time, height, width, channels)


class Swin(VisionEncoder):
    """Video Swin, trained along: attention in boxes of time and space, whose grid is halved between stages.

    Args:
      clip: the shape of the clips, which are not resized.
      model: the network, as ``encoders.VideoSwin`` takes it; its classifier is left out.
      remat: none: nothing is computed again.

    Raises:
      UserError: patches and stages do not divide the clips.
    """

    pixels = True

    def __init__(
        self,
        clip: VideoShape,
        *,
        model: Mapping[str, Any],
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {key: plain(model[key]) for key in model if key != "classes"}
        kind, common = {"video_swin": VideoSwin}, dict(dtype=dtype, rngs=rngs)
        self.network = building.build(kind, {"name": "video_swin", **sizes, "classes": 0}, "model", **common)
        step, halved = self.network.patches.size, 2 ** len(self.network.mergings)
        cells = (step[0], step[1] * halved, step[2] * halved)
        whole = (clip.frames, clip.height, clip.width)
        for name, side, cell in zip(("frames", "height", "width"), whole, cells, strict=True):
            if side % cell:
                raise UserError(f"clip {name} {side} is no multiple of {cell}, the cell of a place behind all stages")
        self.sides = tuple(side // cell for side, cell in zip(whole, cells, strict=True))
        self.channels, self.step = self.network.width, step[0]
        self.centres = Features.evenly(self.sides, self.channels, clip.frames).centres

    def __call__(self, inputs: Video, seconds, exists=None):
        if exists is not None:
            raise UserError("video_swin sees whole clips: all of their frames must be there")
        own = dataclasses.replace(self.network.preprocessing, size=inputs.shape[2:4], crop=None)
        return self.network.maps(own(inputs).astype(inputs.dtype))


class Frozen(VisionEncoder):
    """Base of those that take what a frozen part gives, brought to mean 0 and variance 1 by channel.

    Args:
      features: what that is.
    """

    def __init__(self, features: Features):
        self.sides, self.channels, self.centres = features.sides, features.channels, features.centres
        self.statistics = LatentStatistics(features.channels)

    def __call__(self, inputs: Array, seconds, exists=None):
        return self.statistics.normalise(inputs)

    def sums(self, inputs: Array) -> dict[str, Array]:
        return self.statistics.sums(inputs)

    def update(self, sums: Mapping[str, Array]) -> None:
        self.statistics.update(sums)


class TokenVectors(Frozen):
    """The vectors of the tokens of the frozen ``tokenizer``: continuous ones, or those that codes stand for.

    Args:
      features: what the tokenizer gives.
      reading: which of its ``readings``, such as TokenFlow's ``semantic`` or ``pixel`` half; empty: whole vectors.
    """

    part = TOKENIZER

    def __init__(self, features: Features, *, reading: str = ""):
        super().__init__(features)


class FrozenFrames(Frozen):
    """The patches of a frozen public ``encoder`` (``encoders.SEEN``): of every frame, or of frames that it joins.

    Args:
      features: what the encoder gives.
      reading: one of its ``READINGS``.
      side: of the square that frames are resized to, in pixels; 0: that of its preprocessing.
    """

    part = ENCODER

    def __init__(self, features: Features, *, reading: str = "last", side: Natural = 0):
        super().__init__(features)
        self.framewise = features.centres == tuple(map(float, range(features.sides[0])))


VISION_ENCODERS = {"patches": Patches, "video_swin": Swin, "tokens": TokenVectors, "frozen": FrozenFrames}
"""Public name -> class."""


def part_of(section: Mapping[str, Any]) -> str | None:
    """The frozen part that the encoder of a section reads; ``None``: none."""
    building.check_value("model.vision.encoder", Mapping, section)
    return building.look_up(VISION_ENCODERS, section, "vision encoder").part


def build_encoder(
    section: Mapping[str, Any], clip: VideoShape, features: Features | None, *, remat: str, dtype: Any, rngs: nnx.Rngs
) -> VisionEncoder:
    """A vision encoder from ``{name, …}``.

    Args:
      section: its config.
      clip: the shape of the clips, for those that read pixels.
      features: what the frozen part gives, for the others.
    """
    if part_of(section):
        return building.build(VISION_ENCODERS, section, "vision encoder", features=features)
    made_for = dict(clip=clip, remat=remat, dtype=dtype, rngs=rngs)
    return building.build(VISION_ENCODERS, section, "vision encoder", **made_for)


def in_seconds(seconds: Float[Array, "batch frames"], centres: tuple[float, ...]) -> Float[Array, "batch places"]:
    """The times of places in the middle of frames, between which time goes on evenly."""
    at = np.clip(np.array(centres), 0, seconds.shape[1] - 1)
    below = np.floor(at).astype(int)
    share = (at - below).astype(np.float32)
    above = np.minimum(below + 1, seconds.shape[1] - 1)
    return (1 - share) * seconds[:, below] + share * seconds[:, above]


def flat_sides(sides: tuple[int, ...]) -> Grid:
    """Sides as time, height and width: a row of queries has one time and one row."""
    return sides if len(sides) == 3 else (math.prod(sides[:-1]), 1, sides[-1])
