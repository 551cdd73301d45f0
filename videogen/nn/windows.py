"""Windows: token grids cut into squares or boxes whose tokens attend to each other only."""

import math

from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.shapes import Latents


def check_windows(height: int, width: int, window: int) -> None:
    """Refuses frames that windows do not tile.

    Raises:
      UserError: a side of the frame, in latents, is no multiple of the window.
    """
    if window < 1 or height % window or width % window:
        divisor = math.gcd(height, width)
        raise UserError(
            f"frames of {height}×{width} latents are no multiple of the window {window}; use other clip sides, or a "
            f"window that divides {divisor}"
        )


def partition_windows(x: Latents, window: int) -> Float[Array, "batch windows window window embed"]:
    """Cuts every frame into squares: ``[batch, time, height, width, embed]`` -> windows in raster order, in time order.

    The result is a grid again, whose first axis counts windows instead of frames, so that layers that attend to the
    last two axes work on windows unchanged.
    """
    batch, time, height, width, embed = x.shape
    check_windows(height, width, window)
    x = x.reshape(batch, time, height // window, window, width // window, window, embed)
    return x.swapaxes(3, 4).reshape(batch, -1, window, window, embed)


def merge_windows(x: Float[Array, "batch windows window window embed"], height: int, width: int) -> Latents:
    """The inverse of ``partition_windows`` for frames of ``height × width`` latents."""
    batch, _, window, _, embed = x.shape
    x = x.reshape(batch, -1, height // window, width // window, window, window, embed)
    return x.swapaxes(3, 4).reshape(batch, -1, height, width, embed)


def partition_boxes(x: Latents, size: tuple[int, int, int]) -> Float[Array, "batch_boxes places embed"]:
    """Cuts a grid into boxes of ``time × height × width`` that tile it; places and boxes in raster order.

    The boxes of one example stand one after another, so that attention over the last axis stays within a box.
    """
    batch, *sides, embed = x.shape
    (t, h, w), (a, b, c) = sides, size
    x = x.reshape(batch, t // a, a, h // b, b, w // c, c, embed).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(-1, a * b * c, embed)


def merge_boxes(
    x: Float[Array, "batch_boxes places embed"], size: tuple[int, int, int], sides: tuple[int, int, int]
) -> Latents:
    """The inverse of ``partition_boxes`` for a grid of such sides."""
    (t, h, w), (a, b, c) = sides, size
    x = x.reshape(-1, t // a, h // b, w // c, a, b, c, x.shape[-1]).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(-1, *sides, x.shape[-1])
