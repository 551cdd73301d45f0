"""From pictures to what an encoder was trained on: size, crop and the statistics of its pixels."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videogen.errors import UserError

CLIP_STATISTICS = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
IMAGENET_STATISTICS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF_STATISTICS = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

METHODS = {2: "linear", 3: "cubic"}
"""Pillow's number of a filter -> its name; both are antialiased, and the cubic one has a = -0.5."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizing, cropping and normalising. Unlike Pillow it does not round to whole grey levels in between.

    Attributes:
      size: the shorter side after resizing, or ``(height, width)``.
      crop: side of the square cut from the middle; ``None`` keeps everything.
      method: ``linear`` or ``cubic``.
      mean, std: of the pixels in [0, 1], by channel.
    """

    size: int | tuple[int, int]
    crop: int | None
    method: str
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def read(cls, directory: str | Path, default: "Preprocessing") -> "Preprocessing":
        """What ``preprocessor_config.json`` says, and the default where there is none or it is silent.

        Raises:
          UserError: the file cannot be understood.
        """
        path = Path(directory) / "preprocessor_config.json"
        if not path.is_file():
            return default
        try:
            config = json.loads(path.read_text())
            found = dataclasses.asdict(default)
            if "size" in config:
                found["size"] = _size(config["size"])
            if "crop_size" in config:
                crop = _size(config["crop_size"])
                found["crop"] = crop if isinstance(crop, int) else crop[0]
            if not config.get("do_center_crop", True):
                found["crop"] = None
            if "resample" in config:
                found["method"] = METHODS[config["resample"]]
            for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
                found[ours] = tuple(map(float, config.get(theirs, found[ours])))
            return cls(**found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"cannot read {path}: {error!r}; download the checkpoint again") from error

    def __call__(self, images: Float[Array, "*batch height width 3"]) -> Float[Array, "*batch h w 3"]:
        """Pixels as the encoder takes them, float32.

        Args:
          images: in [-1, 1], or whole numbers from 0 to 255 (``uint8``).

        Raises:
          UserError: there are values outside [-1, 1] (not seen inside of a compiled program), or no three channels.
        """
        x = (in_range(images) + 1) / 2
        height, width = x.shape[-3:-1]
        sides = self._resized(height, width)
        for axis in (-2, -3):  # as Pillow does it, with what a cubic filter overshoots cut off after each
            if x.shape[axis] != sides[axis + 3]:
                shape = list(x.shape)
                shape[axis] = sides[axis + 3]
                x = jnp.clip(jax.image.resize(x, shape, self.method, antialias=True), 0, 1)
        if self.crop is not None:
            x = _centre(x, self.crop)
        return (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Sides after resizing; the longer one is rounded down."""
        if not isinstance(self.size, int):
            return tuple(self.size)
        short, long = sorted((height, width))
        other = int(self.size * long / short)
        return (self.size, other) if height <= width else (other, self.size)


def in_range(images: Array) -> Float[Array, "*batch height width 3"]:
    """Pictures in [-1, 1] as float32, from the same or from ``uint8``.

    Raises:
      UserError: there are values outside (not seen inside of a compiled program), or no three channels.
    """
    if images.ndim < 3 or images.shape[-1] != 3:
        raise UserError(f"an encoder needs pictures [..., height, width, 3], got {list(images.shape)}")
    if images.dtype == jnp.uint8:
        return jnp.asarray(images, jnp.float32) / 127.5 - 1
    if not isinstance(images, jax.core.Tracer):
        # By NumPy, which also sees constants of a traced program; asked so that it is true of what is no number, too.
        values = np.asarray(images)
        if not np.all(np.abs(values) <= 1.0001):
            low, high = float(values.min()), float(values.max())
            raise UserError(f"pictures must be in [-1, 1] (or uint8), got values from {low:g} to {high:g}")
    return jnp.asarray(images, jnp.float32)


def _size(value: Any) -> int | tuple[int, int]:
    """An old file has a number for the shorter side, or two for a square."""
    if isinstance(value, Mapping):
        return int(value["shortest_edge"]) if "shortest_edge" in value else (int(value["height"]), int(value["width"]))
    return int(value)


def _centre(x: Float[Array, "*batch height width 3"], side: int) -> Float[Array, "*batch side side 3"]:
    """The middle square, with black around pictures that are smaller."""
    for axis in (-3, -2):
        length = x.shape[axis]
        if length < side:
            before = (side - length + 1) // 2
            padding = [(0, 0)] * x.ndim
            padding[axis] = (before, side - length - before)
            x = jnp.pad(x, padding)
        start = (max(length, side) - side) // 2
        x = jax.lax.slice_in_dim(x, start, start + side, axis=x.ndim + axis)
    return x
