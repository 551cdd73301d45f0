"""What masked places of a clip should be told to be: ids of a frozen tokenizer, features of a frozen encoder, pixels.

Every target lies on the grid of the network that predicts it. VIOLET's image dVAE has a stand-in here: an image or
video tokenizer of our own, whose frames are resized so that its grid is that of the network.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.errors import UserError
from videogen.losses.distillation import at_places
from videogen.losses.masked_modelling import token_size
from videogen.nn import patchify
from videogen.ranges import Natural, OneOf
from videogen.reducers.tokens import Grid
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tasks.base import Modules

TOKENIZER, TEACHER = "tokenizer", "teacher"
"""Frozen parts that give targets."""


class Target:
    """Base of the visual targets.

    Attributes:
      part: the frozen part that is read; ``None``: none is.
      outputs: numbers that are predicted of each place: logits of ids, or channels.
    """

    part: ClassVar[str | None] = None
    outputs: int

    def __call__(
        self, modules: Modules, video: Video, keys: Array | None
    ) -> Int[Array, "batch time height width"] | Latents:
        """The targets of clips in [-1, 1]; ``keys``, one of each clip, are for tokenizers that draw."""
        raise NotImplementedError


class Codes(Target):
    """The ids of the frozen ``tokenizer``, one of each place.

    Args:
      grid: of the network.
      clip: the shape of the clips.
      part: the tokenizer, of which only the structure is there.
      frames: ``alone``: every frame is tokenized as a picture; ``together``: the clip is, and a frame has the ids of
        the latent frame that it lies in.

    Raises:
      UserError: the tokenizer has no grid of one id at each place, or not that of the network.
    """

    part = TOKENIZER

    def __init__(
        self,
        grid: Grid,
        clip: VideoShape,
        part: nnx.Module,
        *,
        frames: Annotated[str, OneOf("alone", "together")] = "alone",
    ):
        self.alone, cell = frames == "alone", part.compression
        self.shape = VideoShape(1 if self.alone else clip.frames, grid[1] * cell.height, grid[2] * cell.width)
        layout = part.layout(self.shape).only if part.on_grid else None
        if layout is None or len(layout.vocabulary) != 1:
            raise UserError("targets are ids on a grid, one at each place: this tokenizer has other tokens")
        time, self.latents = clip.frames, None
        if not self.alone:
            time = layout.length("time")
        if not self.alone and time != grid[0]:
            self.latents = np.array([i for i in range(time) for _ in cell.frames_of_latent(i)])
            time = len(self.latents)
        if (found := (time, *layout.shape[1:])) != tuple(grid):
            raise UserError(f"the grid of ids {found} is not that of the tokens {tuple(grid)}")
        (self.outputs,) = layout.vocabulary

    def __call__(self, modules, video, keys):
        batch, rows = len(video), resized(video, self.shape)
        if self.alone:
            if keys is not None:
                keys = jax.vmap(lambda key: jax.random.split(key, video.shape[1]))(keys).reshape(-1)
            rows = rows.reshape(-1, 1, *rows.shape[2:])
        ids = modules[TOKENIZER].tokenize(rows, keys=keys).only.values[..., 0]
        ids = ids.reshape(batch, -1, *ids.shape[2:])
        return jax.lax.stop_gradient(ids if self.latents is None else ids[:, self.latents])


class Features(Target):
    """The vectors of the frozen public encoder ``teacher`` at the places of the network.

    Args:
      grid: of the network.
      clip: the shape of the clips.
      part: the encoder, of which only the structure is there.
      reading: what of it: one of its ``READINGS``.
      side: of the square that it sees frames resized to, in pixels; 0: that of its preprocessing.
    """

    part = TEACHER

    def __init__(self, grid: Grid, clip: VideoShape, part: nnx.Module, *, reading: str = "last", side: Natural = 0):
        if clip.frames % grid[0]:
            raise UserError(f"{clip.frames} frames are no multiple of the {grid[0]} times of the network")
        self.grid, self.reading, self.side = grid, reading, side
        self.together = Compression(clip.frames // grid[0], 1, 1, first_alone=False)
        self.outputs = part.grid_width(reading)

    def __call__(self, modules, video, keys):
        found = modules[TEACHER].grid(video, self.side, self.reading).astype(jnp.float32)
        return jax.lax.stop_gradient(at_places(found, self.grid, video.shape[1], self.together))


class PatchPixels(Target):
    """The pixels of every place, in [-1, 1].

    Args:
      grid: of the network; it must divide the clips.
      clip: the shape of the clips.
      part: none.
    """

    def __init__(self, grid: Grid, clip: VideoShape, part: nnx.Module | None = None):
        self.size = token_size((clip.frames, clip.height, clip.width), grid)
        self.outputs = 3 * int(np.prod(self.size))

    def __call__(self, modules, video, keys):
        return patchify(video, self.size)


TARGETS = {"codes": Codes, "features": Features, "pixels": PatchPixels}
"""Public name -> class."""


def resized(video: Video, shape: VideoShape) -> Float[Array, "batch time height width 3"]:
    """Clips with the height and width of ``shape``, by linear interpolation, antialiased where that is less."""
    sides: Sequence[int] = (shape.height, shape.width)
    if video.shape[2:4] == tuple(sides):
        return video
    return jax.image.resize(video, (*video.shape[:2], *sides, 3), "linear", antialias=True)
