"""Positions: rotary and sin-cos (1-D to 3-D), learned tables, continuous bias, and the causal position generator."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.building import check_fields
from videogen.errors import UserError
from videogen.nn.context_parallel import with_neighbours
from videogen.nn.linear import Linear, parameter, truncated_normal
from videogen.parallel import GRID_AXES
from videogen.ranges import Number, OneOf


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Rotary positions for longer sequences than a network was trained with; a factor of 1 changes nothing.

    Attributes:
      factor: how many times as long.
      kind: ``linear`` divides all positions by the factor (Chen et al., 2023). ``ntk`` raises the base so that the
        slowest pair of channels turns as with ``linear`` and the fastest as before.
    """

    factor: Annotated[float, Number(float, 1)] = 1.0
    kind: Annotated[str, OneOf("linear", "ntk")] = "linear"

    def __post_init__(self):
        check_fields(self)

    def frequencies(self, channels: int, base: float) -> Float[np.ndarray, "pairs"]:
        """Radians per step for the pairs of so many channels, the fastest first."""
        pairs = max(channels // 2, 1)
        if self.kind == "ntk" and pairs > 1:
            base = base * self.factor ** (channels / (channels - 2))
        own = base ** (-np.arange(channels // 2) / pairs)
        return own / self.factor if self.kind == "linear" else own


def rotary_angles(
    shape: Sequence[int],
    head_width: int,
    *,
    base: float = 10_000.0,
    offset: Sequence[int] | None = None,
    scaling: RotaryScaling = RotaryScaling(),
) -> Float[np.ndarray, "sequence half_head_width"]:
    """Rotation angles of a 1-D, 2-D or 3-D grid in raster order (RoPE; Su et al., 2021, axis-wise for grids).

    Args:
      shape: grid sides, one to three of them.
      head_width: even; its pairs are shared out evenly over the axes (the first axis takes the rest).
      base: wavelength base.
      offset: position of the grid's first element along each axis.
      scaling: for grids that are longer than those of the training.

    Returns:
      ``[prod(shape), head_width // 2]`` angles in radians.
    """
    frequencies = _frequencies(len(shape), head_width, base, None, scaling)
    starts = offset or [0] * len(shape)
    grids = np.meshgrid(*(np.arange(n) + o for n, o in zip(shape, starts, strict=True)), indexing="ij")
    angles = [grid.reshape(-1, 1) * own for grid, own in zip(grids, frequencies, strict=True)]
    return np.concatenate(angles, axis=-1).astype(np.float32)


def angles_at(
    positions: Int[Array, "*batch tokens axes"] | Float[Array, "*batch tokens axes"],
    head_width: int,
    *,
    base: float = 10_000.0,
    channels: Sequence[int] | None = None,
    scaling: RotaryScaling = RotaryScaling(),
) -> Float[Array, "*batch tokens half_head_width"]:
    """Rotation angles of tokens anywhere, such as those of examples that begin at different places.

    Args:
      positions: along one to three axes, whole or not; on a grid the angles are those of ``rotary_angles``.
      head_width, base, scaling: as for ``rotary_angles``.
      channels: of a head that each axis has, even numbers; ``None`` shares them out as ``rotary_angles`` does.
    """
    frequencies = _frequencies(positions.shape[-1], head_width, base, channels, scaling)
    angles = [positions[..., axis, None] * own.astype(np.float32) for axis, own in enumerate(frequencies)]
    return jnp.concatenate(angles, axis=-1).astype(jnp.float32)


def _frequencies(
    axes: int, head_width: int, base: float, channels: Sequence[int] | None, scaling: RotaryScaling
) -> list[Float[np.ndarray, "share"]]:
    """Radians per step along each axis, for the pairs of channels that it has."""
    if channels is not None:
        if len(channels) != axes or sum(channels) != head_width or any(n % 2 for n in channels):
            raise UserError(
                f"rotary positions share the {head_width} channels of a head among {axes} axes by even numbers, "
                f"got {tuple(channels)}"
            )
        return [scaling.frequencies(n, base) for n in channels]
    if head_width % 2 or head_width // 2 < axes:
        raise UserError(f"rotary positions over {axes} axes need an even head width of at least {2 * axes}")
    pairs = head_width // 2
    share = [pairs // axes] * axes
    share[0] += pairs - sum(share)
    return [scaling.frequencies(2 * n, base) for n in share]


def sincos_positions(shape: Sequence[int], width: int) -> Float[np.ndarray, "sequence width"]:
    """Fixed sine and cosine features of a 1-D to 3-D grid in raster order (Vaswani et al., 2017, axis-wise for grids).

    Args:
      shape: grid sides, one to three of them.
      width: even; its frequencies are those of ``rotary_angles``: the axes share them evenly.
    """
    angles = rotary_angles(shape, width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def rotate(
    x: Float[Array, "batch *grid heads head_width"],
    angles: Float[Array, "*attended angles"]
    | Float[Array, "batch *attended angles"]
    | Float[Array, "batch *grid heads angles"],
    *,
    interleaved: bool = False,
) -> Float[Array, "batch *grid heads head_width"]:
    """Rotates pairs of channels of every head by the angles of its position, in float32.

    The pairs are (i, i + head_width/2), or (2i, 2i + 1) where they are ``interleaved``; which of the two a network has
    is a matter of the order of the channels of its queries and keys. There is one angle for each pair, or one for each
    channel: V-JEPA 2 turns the two channels of a pair by different angles. Angles with as many axes as ``x`` are those
    of every head; others are the same for all heads.
    """
    if interleaved:
        pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
        first, second = pairs[..., 0], pairs[..., 1]
    else:
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    angles = angles if angles.ndim == x.ndim else angles[..., None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if angles.shape[-1] == x.shape[-1]:
        parts = [-second, first]
        turned = jnp.stack(parts, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(parts, axis=-1)
        return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)
    parts = [first * cos - second * sin, second * cos + first * sin]
    rotated = jnp.stack(parts, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(parts, axis=-1)
    return rotated.astype(x.dtype)


class LearnedPositions(nnx.Module):
    """A learned absolute position table for raster-ordered grids of at most ``length`` places."""

    def __init__(self, length: int, width: int, *, rngs: nnx.Rngs):
        self.length = length
        self.table = parameter(rngs, (length, width), (None, "embed"), truncated_normal(0.02))

    def __call__(self, length: int) -> Float[Array, "length width"]:
        """The first ``length`` rows.

        Raises:
          UserError: ``length`` is beyond the table; sample longer videos by sliding the window.
        """
        if length > self.length:
            raise UserError(
                f"{length} tokens do not fit the position table of {self.length}; generate longer videos by extension"
            )
        return self.table.get_value()[:length]


class ContinuousPositionBias(nnx.Module):
    """Relative position bias from an MLP over log-scaled 2-D offsets (Swin v2); works at any resolution."""

    def __init__(self, heads: int, *, hidden: int = 64, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.hidden = Linear(2, hidden, axes=(None, None), rngs=rngs, dtype=dtype)
        self.out = Linear(hidden, heads, axes=(None, None), rngs=rngs, dtype=dtype)

    def __call__(self, height: int, width: int) -> Float[Array, "heads queries keys"]:
        """Bias between every pair of the ``height · width`` places of a frame."""
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        place = np.stack([rows.ravel(), columns.ravel()], -1)
        offset = place[:, None] - place[None, :] + np.array([height - 1, width - 1])
        # The MLP sees each distinct offset once; the (h·w)² table is a gather.
        span = np.array(list(itertools.product(range(1 - height, height), range(1 - width, width))), np.float32)
        values = self.out(jax.nn.gelu(self.hidden(jnp.asarray(np.sign(span) * np.log1p(np.abs(span))))))
        index = offset[..., 0] * (2 * width - 1) + offset[..., 1]
        return jnp.moveaxis(values[index], -1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x: Float[Array, "batch a b c width"], taps: Float[Array, "i j k width"], before: tuple[int, int, int]
) -> Float[Array, "batch a b c width"]:
    """Depthwise 3-D convolution with zero padding, ``before`` places ahead of each axis and the rest behind.

    Written as shift-and-add: grouped convolutions are hundreds of times slower on CPU, and the taps fuse into one
    pass on accelerators. The gradient is written out for the same reason: see ``_depthwise_backward``.
    """
    padded = _pad(x, taps.shape[:3], before)
    return sum(_window(padded, place, x.shape) * taps[place] for place in np.ndindex(taps.shape[:3]))


def _depthwise_forward(x: Array, taps: Array, before: tuple[int, int, int]) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, taps, before), (x, taps)


def _depthwise_backward(before: tuple[int, int, int], kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, taps = kept
    after = tuple(n - 1 - b for n, b in zip(taps.shape[:3], before, strict=True))
    # One tap at a time: as 27 reductions side by side XLA's CPU backend takes seven times as long. The batch axis
    # is summed last, once for all taps, so that data-parallel shards meet in a single reduction.
    padded, places = _pad(x, taps.shape[:3], before), jnp.array(list(np.ndindex(taps.shape[:3])))

    def tap(place: Array) -> Array:
        window = jax.lax.dynamic_slice(padded, (0, *place, 0), x.shape)
        return jnp.sum(window * grad, axis=(1, 2, 3))

    return depthwise(grad, taps[::-1, ::-1, ::-1], after), jax.lax.map(tap, places).sum(1).reshape(taps.shape)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _pad(x: Array, size: tuple[int, ...], before: tuple[int, int, int]) -> Array:
    return jnp.pad(x, [(0, 0), *((b, n - 1 - b) for n, b in zip(size, before, strict=True)), (0, 0)])


def _window(padded: Array, place: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    return padded[:, *(slice(o, o + n) for o, n in zip(place, shape[1:4], strict=True))]


class PositionGenerator(nnx.Module):
    """Depthwise 3×3×3 convolution whose output is added to the tokens (PEG; in phenaki-pytorch's temporal layers).

    Args:
      width: token width.
      causal: look at the past and present only along time; otherwise one step both ways.
    """

    def __init__(self, width: int, *, causal: bool, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.causal, self.dtype = causal, dtype
        self.taps = parameter(rngs, (3, 3, 3, width), (None, None, None, "embed"), truncated_normal(0.02))

    def __call__(self, x: Float[Array, "batch a b c width"], *, time_axis: int) -> Float[Array, "batch a b c width"]:
        """Adds the position signal; ``time_axis`` (1 or 3) says which grid axis is time, the others are space."""
        taps = self.taps.get_value().astype(self.dtype)
        time = 2 if self.causal else 1
        before = (1, 1, time) if time_axis == 3 else (time, 1, 1)
        taps = jnp.moveaxis(taps, 0, 2) if time_axis == 3 else taps
        convolve = functools.partial(depthwise, before=before)
        return x + with_neighbours(convolve, x.astype(self.dtype), taps, GRID_AXES[time_axis]).astype(x.dtype)
