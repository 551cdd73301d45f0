"""Predictions of clips longer than a network's window: windows that overlap, joined by their mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.shapes import Latents


def window_starts(length: int, window: int, overlap: int) -> tuple[int, ...]:
    """The first frame of every window of ``window`` frames that together cover ``length`` frames.

    Neighbours share ``overlap`` frames, the last two as many as it takes to end with the last frame.

    Raises:
      UserError: windows that overlap as a whole go nowhere.
    """
    if not 0 <= overlap < window:
        raise UserError(f"windows of {window} frames overlap by 0 to {window - 1} of them, got {overlap}")
    if length <= window:
        return (0,)
    return (*range(0, length - window, window - overlap), length - window)


def over_windows(
    predict: Callable[[Latents, Any], Latents], noisy: Latents, along: Any, window: int, overlap: int
) -> Float[Array, "batch time height width channels"]:
    """The prediction for a clip of any length by a network that sees ``window`` frames of it at a time.

    Where windows overlap it is the mean of theirs. One window is in memory at a time.

    Args:
      predict: ``(noisy, along) -> prediction`` of a window.
      noisy: ``[batch, time, …]``.
      along: arrays that lie along the same time, ``[batch, time, …]``, cut as ``noisy`` is.
      window: frames that the network sees.
      overlap: frames that neighbours share.
    """
    length = noisy.shape[1]
    starts = window_starts(length, window, overlap)
    if len(starts) == 1:
        return predict(noisy, along)
    count = np.zeros(length, np.float32)
    for start in starts:
        count[start : start + window] += 1

    def add(total: Array, start: Array) -> tuple[Array, None]:
        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, start, window, axis=1)

        value = predict(cut(noisy), jax.tree.map(cut, along)).astype(jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(total, cut(total) + value, start, axis=1), None

    total = jax.lax.scan(add, jnp.zeros(noisy.shape, jnp.float32), jnp.array(starts))[0]
    return total / count.reshape(1, -1, *(1,) * (noisy.ndim - 2))
