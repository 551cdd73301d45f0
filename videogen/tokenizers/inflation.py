"""2-D to 3-D inflation: an image tokenizer's weights as the start of a video tokenizer.

The image tokenizer is the video tokenizer's config with ``time_kernel=1`` and temporal strides of 1. Runs inflate at
their start with ``config.start_from`` (``training.warm_start``).
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.nn import DepthToSpace

SLICES = ("last", "central")
"""Where in time a 2-D kernel goes: ``last`` suits causal kernels (an image is encoded as before), ``central`` those
that look both ways (MAGVIT)."""

TIME_AXIS = -5


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
