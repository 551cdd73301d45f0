"""How clips change in time, and whether they change as their originals do."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.metrics.fidelity import PSNR_CAP, UnitVideo, check_pair


def flicker(video: UnitVideo) -> Float[Array, "batch"]:
    """1 minus the mean absolute difference of neighbouring frames: 1 for a still (VBench, temporal flickering).

    Only clips whose scene does not move say something about flicker; motion lowers it as well.

    Raises:
      UserError: clips of one frame, or a value is NaN, infinite or outside [0, 1].
    """
    video, _ = check_pair(video, video)
    needs_frames(video.shape[1])
    return 1 - jnp.mean(jnp.abs(jnp.diff(video, axis=1)), axis=(1, 2, 3, 4))


def pulse(video: UnitVideo, starts: Sequence[int]) -> Float[Array, "batch"]:
    """How much more a long video changes where a new window begins: the mean absolute difference of the frames
    ``starts`` to the frame before each, over that of all other frames; 1 is no pulse.

    A still has 1; a video that changes at the starts alone has infinity.

    Args:
      video: the clips to judge, in [0, 1].
      starts: the frames that a window begins with, counted from 0; at least one, and not all frames.

    Raises:
      UserError: no frame or every frame is a start, or one is not inside the video.
    """
    video, _ = check_pair(video, video)
    needs_frames(video.shape[1])
    there = np.isin(np.arange(1, video.shape[1]), starts)
    if there.all() or len(set(starts)) != there.sum() or not there.any():
        raise UserError(f"a pulse is measured at some frames of 1 to {video.shape[1] - 1}, not at {list(starts)}")
    change = jnp.mean(jnp.abs(jnp.diff(video, axis=1)), axis=(2, 3, 4))
    at, elsewhere = (change[:, where].mean(1) for where in (there, ~there))
    return jnp.where(at == elsewhere, 1.0, at / elsewhere)


def difference_psnr(video: UnitVideo, reference: UnitVideo) -> Float[Array, "batch"]:
    """PSNR in dB of the differences of neighbouring frames, per difference, capped at 100; mean over the clip.

    It is high where the clip moves as its original does, whatever constant error the frames have. No flow is needed.

    Args:
      video: the clips to judge, in [0, 1].
      reference: the originals, same shape.
    """
    video, reference = check_pair(video, reference)
    needs_frames(video.shape[1])
    error = jnp.square(jnp.diff(video, axis=1) - jnp.diff(reference, axis=1)).mean((2, 3, 4))
    return jnp.mean(_decibel(error), axis=-1)


def first_and_later_psnr(video: UnitVideo, reference: UnitVideo) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """PSNR in dB of the first frame, and the mean of those of the others: causal tokenizers code the first alone.

    Args:
      video: the clips to judge, in [0, 1].
      reference: the originals, same shape.
    """
    video, reference = check_pair(video, reference)
    needs_frames(video.shape[1])
    values = _decibel(jnp.square(video - reference).mean((2, 3, 4)))
    return values[:, 0], values[:, 1:].mean(-1)


def in_time(video: UnitVideo, reference: UnitVideo) -> dict[str, Float[Array, "batch"]]:
    """What a reconstruction does in time, by name: ``difference_psnr``, PSNR of the first frame and of the others, and
    ``flicker`` of the reconstruction less that of the original, which is below 0 where it flickers more.

    Args:
      video: the clips to judge, in [0, 1].
      reference: the originals, same shape.
    """
    first, later = first_and_later_psnr(video, reference)
    return {
        "difference_psnr": difference_psnr(video, reference),
        "first_frame_psnr": first,
        "later_frames_psnr": later,
        "flicker_difference": flicker(video) - flicker(reference),
    }


def _decibel(error: Array) -> Array:
    return -10 * jnp.log10(jnp.maximum(error, 10 ** (-PSNR_CAP / 10)))


def needs_frames(frames: int) -> None:
    """Raises ``UserError`` for clips of a single frame."""
    if frames < 2:
        raise UserError(f"this measure compares frames of a clip and needs at least 2, got {frames}")
