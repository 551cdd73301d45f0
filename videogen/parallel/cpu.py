"""What is computed in another way on CPUs, whose compiler is slow in the usual one; results agree up to rounding.

All such choices stand here. How a process takes memory is said before it starts: ``videogen.environment.LARGE_PAGES``.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videogen.parallel.mesh import on_mesh, target_platform

Pair = tuple[int, int]

CACHED = 2**20
"""Scores that stay in the cache of a CPU."""

UNROLLED = 4
"""Layers written out per turn of a loop: copying what a turn keeps takes a seventh of a small step."""


def on_cpu() -> bool:
    """Whether the traced code is for CPUs."""
    return target_platform() == "cpu"


def alone() -> bool:
    """Whether the traced code is for a single CPU, where nothing is spread over a mesh."""
    return on_cpu() and not on_mesh()


def unrolled(depth: int) -> int:
    """Of a loop over so many layers, those in a turn. On a mesh one layer at a time is gathered."""
    return min(depth, UNROLLED) if alone() else 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve_2d(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    stride: Pair,
    sides: tuple[Pair, Pair],
    dilation: Pair = (1, 1),
) -> Float[Array, "batch out_height out_width outputs"]:
    """2-D convolution whose gradients are convolutions of the same form, transposed before and after.

    There is a fast routine for this form only. It brings others into it at the top level of a program but
    not in the loops of scanned layers, where the gradients JAX derives take fifty times as long.

    Args:
      x: images.
      kernel: the taps.
      stride: keeps every so-many-th place.
      sides: zeros ``(before, after)`` along height and width.
      dilation: places between taps.
    """
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, stride, sides, rhs_dilation=dilation, dimension_numbers=layout)


def _convolve_2d_forward(x: Array, kernel: Array, *static: Any) -> tuple[Array, tuple[Array, Array]]:
    return convolve_2d(x, kernel, *static), (x, kernel)


def _convolve_2d_backward(
    stride: Pair, sides: tuple[Pair, Pair], dilation: Pair, kept: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    edges, reached = [], []
    for axis, (step, (before, after), gap) in enumerate(zip(stride, sides, dilation, strict=True)):
        span = (kernel.shape[axis] - 1) * gap
        # Places behind the last window, which a stride may leave over.
        rest = x.shape[1 + axis] + before + after - span - 1 - (grad.shape[1 + axis] - 1) * step
        edges.append((span - before, span - after + rest, step - 1))
        reached.append((before, after - rest))
    spread = jax.lax.pad(grad, jnp.zeros((), grad.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    to_x = convolve_2d(spread, flipped, (1, 1), ((0, 0), (0, 0)), dilation)
    # The sum over examples is the convolution's sum over channels, and the input channels are its examples.
    to_kernel = convolve_2d(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3), dilation, tuple(reached), stride)
    return to_x, to_kernel.transpose(1, 2, 0, 3)


convolve_2d.defvjp(_convolve_2d_forward, _convolve_2d_backward)


def folded_convolution(
    x: Float[Array, "batch time height width inputs"],
    kernel: Float[Array, "length rows columns inputs outputs"],
    stride: tuple[int, int, int],
    ends: Pair,
    sides: tuple[Pair, Pair],
    dilation: int,
) -> Float[Array, "batch out_time out_height out_width outputs"]:
    """3-D convolution whose taps in time are folded into the channels of a 2-D one: there is no fast 3-D routine.

    Two to five times as fast, forward and backward, for the shapes of small tokenizers.

    Args:
      x: videos.
      kernel: the taps.
      stride: keeps every so-many-th place.
      ends: zeros before and after along time.
      sides: zeros ``(before, after)`` along height and width.
      dilation: frames between taps in time.
    """
    length, rows, columns, inputs, outputs = kernel.shape
    if any(ends):
        x = jnp.pad(x, [(0, 0), ends, (0, 0), (0, 0), (0, 0)])
    frames = (x.shape[1] - (length - 1) * dilation - 1) // stride[0] + 1
    span = (frames - 1) * stride[0] + 1
    starts = range(0, length * dilation, dilation)
    taps = [jax.lax.slice_in_dim(x, i, i + span, stride[0], axis=1) for i in starts]
    folded = jnp.concatenate(taps, axis=-1).reshape(-1, *x.shape[2:4], length * inputs)
    kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(rows, columns, length * inputs, outputs)
    y = convolve_2d(folded, kernel, tuple(stride[1:]), sides)
    return y.reshape(x.shape[0], frames, *y.shape[1:])


def takes_nearest(tokens: int, codes: int) -> bool:
    """Whether ``nearest_in_cache`` is the faster one for so many tokens and codes."""
    return tokens * codes > CACHED and codes <= CACHED and alone()


def nearest_in_cache(
    latents: Float[Array, "tokens width"], codes: Float[Array, "size width"], offset: Float[Array, "size"]
) -> Int[Array, "tokens"]:
    """``argmax_k z·e_k + offset_k``, the first of equals, by so few latents at a time that their scores stay in cache.

    Five times as fast as a table of all scores. The first highest score comes from two plain reductions, since
    ``argmax`` is not vectorised.
    """
    places = jnp.arange(len(codes), dtype=jnp.int32)

    def of_one(latent: Float[Array, "width"]) -> Int[Array, ""]:
        scores = jnp.matmul(latent, codes.T, precision=jax.lax.Precision.HIGHEST) + offset
        return jnp.min(jnp.where(scores == jnp.max(scores), places, len(codes) - 1))

    return jax.lax.map(of_one, latents, batch_size=CACHED // len(codes))
