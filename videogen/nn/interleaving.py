"""More frames than a frozen encoder takes: interleaved parts, each of as many as it does (INTP; Shang et al., 2024)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from videogen.errors import UserError


def interleaved(
    frames: Shaped[jax.Array, "batch time *rest"], parts: int
) -> Shaped[jax.Array, "batch_parts fewer *rest"]:
    """Clips in ``parts``: the first has frames 0, parts, 2·parts, …, so that every part spans the whole clip.

    Raises:
      UserError: the frames do not divide.
    """
    batch, time, *rest = frames.shape
    if time % parts:
        raise UserError(f"{time} frames do not divide into {parts} interleaved parts")
    return jnp.swapaxes(frames.reshape(batch, time // parts, parts, *rest), 1, 2).reshape(-1, time // parts, *rest)


def rejoined(x: Shaped[jax.Array, "batch_parts fewer *rest"], parts: int) -> Shaped[jax.Array, "batch time *rest"]:
    """The inverse of ``interleaved``: what there is of every frame, in the order of the clip."""
    count, fewer, *rest = x.shape
    turned = jnp.swapaxes(x.reshape(count // parts, parts, fewer, *rest), 1, 2)
    return turned.reshape(count // parts, parts * fewer, *rest)


def in_parts(
    encode: Callable[[Shaped[jax.Array, "batch time *rest"]], Shaped[jax.Array, "batch time *tokens"]],
    frames: Shaped[jax.Array, "batch time *rest"],
    parts: int,
) -> Shaped[jax.Array, "batch time *tokens"]:
    """What an encoder of ``time / parts`` frames makes of clips of ``time`` frames; it keeps the axis of time.

    Of 1 part it is the encoder itself.
    """
    return rejoined(encode(interleaved(frames, parts)), parts)
