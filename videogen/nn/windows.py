"""Windows: token grids cut into squares whose tokens attend to each other only."""

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
