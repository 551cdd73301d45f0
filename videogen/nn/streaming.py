"""Streaming: a clip in chunks, each with the left context that causal operations kept of the chunks before."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


class Stream:
    """The left context of every causal operation of a network, in the order of their calls.

    A network that is given a stream treats its input as the continuation of what the stream has seen: the first chunk
    begins a clip, each later one goes on where the last ended. The size of the context does not depend on how much
    was seen.

    Args:
      cache: ``Stream.cache`` of the call with the chunk before; ``None`` begins a clip.
    """

    def __init__(self, cache: Sequence[Any] | None = None):
        self.first = cache is None
        self._past = deque(cache or ())
        self._kept: list[Any] = []

    def recall(self) -> Any:
        """What the same operation kept of the chunk before; ``None`` in the first chunk."""
        return None if self.first else self._past.popleft()

    def inner(self, past: Any) -> "Stream":
        """The stream of a part of the network, such as a layer, with what that part kept."""
        return Stream(past)

    def keep(self, context: Any) -> None:
        """Keeps arrays for the same operation's next chunk."""
        self._kept.append(context)

    @property
    def cache(self) -> tuple[Any, ...]:
        """Everything that was kept: a pytree of arrays."""
        return tuple(self._kept)


def begins(stream: Stream | None) -> bool:
    """Whether the input begins a clip: it is a whole one, or the first chunk of one."""
    return stream is None or stream.first


def with_past(
    x: Float[Array, "batch time *rest"], size: int, stride: int, padding: str, stream: Stream | None = None
) -> Float[Array, "batch padded_time *rest"]:
    """``x`` with the frames before it that a causal window of ``size`` frames sees.

    At the beginning of a clip these are ``size - 1`` made-up frames; later the last ``size - stride`` frames of the
    chunk before, so that the next window begins where a window of the whole clip would. A stride beyond the size leaves
    out the frames between two windows.
    """
    past = stream.recall() if stream is not None else None
    if past is not None:
        x = x[:, max(stride - size, 0) :]
    else:
        shape = (x.shape[0], size - 1, *x.shape[2:])
        past = jnp.broadcast_to(x[:, :1], shape) if padding == "replicate" else jnp.zeros(shape, x.dtype)
    x = jnp.concatenate([past.astype(x.dtype), x], axis=1) if past.shape[1] else x
    if stream is not None:
        stream.keep(x[:, x.shape[1] - max(size - stride, 0) :])
    return x
