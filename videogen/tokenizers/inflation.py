"""2-D to 3-D inflation: an image tokenizer's weights as the start of a video tokenizer.

The image tokenizer is the video tokenizer's config with ``time_kernel=1`` and temporal strides of 1. Runs inflate at
their start with ``config.start_from`` (``training.warm_start``).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError, near_matches
from videogen.nn import DepthToSpace

SLICES = ("last", "central")
"""Where in time a 2-D kernel goes: ``last`` suits causal kernels (an image is encoded as before), ``central`` those
that look both ways (MAGVIT)."""

TIME_AXIS = -5


def inflate(image: nnx.Module, video: nnx.Module, time_slice: str) -> None:
    """Sets every parameter and statistic of ``video`` from those of ``image``.

    2-D kernels go into one temporal slice of zeros. Where the video tokenizer up-samples time by depth-to-space it has
    more output channels: every new frame gets the image's. The rest is equal in shape and copied.

    Args:
      image: a tokenizer with kernels of one frame.
      video: a tokenizer of the same layout with longer kernels; changed in place.
      time_slice: a name in ``SLICES``.

    Raises:
      UserError: an unknown slice, or tokenizers of different layouts.
    """
    if time_slice not in SLICES:
        raise UserError(f"unknown time slice {time_slice!r}{near_matches(time_slice, SLICES)}")
    source, target = nnx.to_pure_dict(nnx.state(image)), nnx.to_pure_dict(nnx.state(video))
    if jax.tree.structure(source) != jax.tree.structure(target):
        raise UserError(
            "the image tokenizer has other layers than the video tokenizer; use equal multipliers and blocks"
        )

    frames = new_frames(video)

    def convert(path: tuple[Any, ...], value: Array, goal: Array) -> Array:
        names = tuple(str(part.key) for part in path)
        inflated = inflate_array(value, goal.shape, time_slice, frames.get(names[:-2], 1))
        if inflated is None:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UserError(f"{name} is {value.shape} in the image tokenizer, which does not inflate to {goal.shape}")
        return inflated.astype(goal.dtype)

    state = nnx.state(video)
    nnx.replace_by_pure_dict(state, jax.tree_util.tree_map_with_path(convert, source, target))
    nnx.update(video, state)


def new_frames(video: nnx.Module) -> dict[tuple[str, ...], int]:
    """Path of every layer that up-samples by depth-to-space -> how many frames it makes of one."""
    modules = nnx.iter_modules(video)
    return {tuple(map(str, path)): m.stride[0] for path, m in modules if isinstance(m, DepthToSpace)}


def inflate_array(value: Array, shape: tuple[int, ...], time_slice: str, frames: int) -> Float[Array, "..."] | None:
    """One parameter of an image tokenizer in the shape it has in the video tokenizer; ``None`` where it does not fit.

    Args:
      value: a kernel of one frame, a bias, or anything that has the shape already.
      shape: as the video tokenizer has it.
      time_slice: a name in ``SLICES``.
      frames: that the layer makes of one (``new_frames``); each has output channels of its own.
    """
    if value.shape == shape:
        return value
    if value.ndim == len(shape) and shape[-1] == frames * value.shape[-1]:
        value = jnp.tile(value, (*(1,) * (value.ndim - 1), frames))
    if value.shape == shape:
        return value
    length = shape[TIME_AXIS] if len(shape) >= -TIME_AXIS else 0
    flat = (*shape[:TIME_AXIS], 1, *shape[TIME_AXIS + 1 :]) if length else None
    if value.shape != flat:
        return None
    before = length - 1 if time_slice == "last" else (length - 1) // 2
    padding = [(0, 0)] * value.ndim
    padding[TIME_AXIS] = (before, length - 1 - before)
    return jnp.pad(value, padding)
