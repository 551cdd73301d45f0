"""What convolutional networks share: convolutions and pooling with every padding, and batch norms."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.loading import Source, linear_names
from videogen.nn import lecun_normal, ones, parameter, zeros
from videogen.nn.convolution import convolve
from videogen.parallel.cpu import convolve_2d

Map = Float[Array, "batch *sides channel"]
Padding = str | int | Sequence[int]
"""``"same"`` as TensorFlow has it, ``"valid"``, or zeros at both ends of every side."""

Pair = tuple[int, int]


def paddings(padding: Padding, sides: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> list[Pair]:
    """Zeros before and after each side.

    ``same`` gives ceil(side / stride) outputs; an odd zero is behind, so that it depends on the side where they fall.
    """
    if padding == "valid":
        return [(0, 0)] * len(sides)
    if padding == "same":
        missing = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sides, size, stride, strict=True)]
        return [(n // 2, n - n // 2) for n in missing]
    each = [padding] * len(sides) if isinstance(padding, int) else padding
    return [(n, n) for n in each]


class Convolve(nnx.Module):
    """A convolution over two or three sides, with float32 parameters, computed in ``dtype``.

    Args:
      inputs, outputs: channels.
      size: kernel sides; how many there are says over how many sides it goes.
      stride: keeps every so-many-th place.
      padding: around each side.
      dilation: frames from one tap in time to the next.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = "valid",
        dilation: int = 1,
        bias: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.size = tuple(size)
        self.stride = (stride,) * len(self.size) if isinstance(stride, int) else tuple(stride)
        self.padding = padding if isinstance(padding, str | int) else tuple(padding)
        self.dilation, self.dtype = dilation, dtype
        axes = (None,) * len(self.size) + ("embed", None)
        self.kernel = parameter(rngs, (*self.size, inputs, outputs), axes, lecun_normal)
        self.bias = parameter(rngs, (outputs,), (None,), zeros) if bias else None

    def __call__(self, x: Map) -> Map:
        x, kernel = x.astype(self.dtype), self.kernel.get_value().astype(self.dtype)
        around = paddings(self.padding, x.shape[1:-1], self.size, self.stride)
        if len(self.size) == 2:
            y = convolve_2d(x, kernel, self.stride, tuple(around))
        else:
            y = convolve(x, kernel, self.stride, around[0], tuple(around[1:]), self.dilation)
        return y if self.bias is None else y + self.bias.get_value().astype(self.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation by stored statistics, float32 inside."""

    def __init__(self, width: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.mean = parameter(rngs, (width,), (None,), zeros)
        self.variance = parameter(rngs, (width,), (None,), ones)
        self.scale = parameter(rngs, (width,), (None,), ones)
        self.shift = parameter(rngs, (width,), (None,), zeros)

    def __call__(self, x: Map) -> Map:
        factor = self.scale.get_value() / jnp.sqrt(self.variance.get_value() + self.epsilon)
        return ((x.astype(jnp.float32) - self.mean.get_value()) * factor + self.shift.get_value()).astype(x.dtype)


class Unit(nnx.Module):
    """Convolution without bias, batch norm and, unless there is none, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Sequence[int],
        *,
        epsilon: float = 1e-5,
        active: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
        **convolution: Any,
    ):
        self.convolution = Convolve(inputs, outputs, size, bias=False, dtype=dtype, rngs=rngs, **convolution)
        self.norm = BatchNorm(outputs, epsilon=epsilon, rngs=rngs)
        self.active = active

    def __call__(self, x: Map) -> Map:
        x = self.norm(self.convolution(x))
        return jax.nn.relu(x) if self.active else x

    @staticmethod
    def names(ours: str, convolution: str, norm: str) -> dict[str, Any]:
        """The part of a table, from the names that PyTorch gives the two."""
        return linear_names(f"{ours}.convolution", convolution) | batch_norm_names(f"{ours}.norm", norm)


def batch_norm_names(ours: str, theirs: str) -> dict[str, Any]:
    """The part of a table that a batch norm needs; some files have no scale."""
    choices = theirs.split("|")
    names = dict(mean="running_mean", variance="running_var", shift="bias")
    table = {f"{ours}.{own}": "|".join(f"{choice}.{name}" for choice in choices) for own, name in names.items()}
    return table | {f"{ours}.scale": Source(("|".join(f"{choice}.weight" for choice in choices),), default=1.0)}


def pool(
    x: Map,
    size: Sequence[int],
    *,
    kind: str,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    count_padding: bool = True,
) -> Map:
    """The largest entry (``max``) or the mean (``mean``) of every window.

    Args:
      x: a map.
      size: of the windows.
      kind: ``max`` or ``mean``.
      stride: of the windows; by default their size.
      padding: around each side; it is never the largest.
      count_padding: whether a mean counts the zeros of the padding.
    """
    sides = x.shape[1:-1]
    strides = tuple(size) if stride is None else (stride,) * len(sides) if isinstance(stride, int) else tuple(stride)
    around = paddings(padding, sides, size, strides)
    window, steps, edges = (1, *size, 1), (1, *strides, 1), [(0, 0), *around, (0, 0)]
    if kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, steps, edges)
    total = jax.lax.reduce_window(x.astype(jnp.float32), 0.0, jax.lax.add, window, steps, edges)
    count = math.prod(size)
    if not count_padding:
        there = np.ones((1, *sides, 1), np.float32)
        count = jax.lax.reduce_window(jnp.asarray(there), 0.0, jax.lax.add, window, steps, edges)
    return (total / count).astype(x.dtype)
