"""3-D convolutions that are causal in time, with what surrounds them: streaming, per-frame norms, resampling.

Time is padded on the left only, so that an output frame depends on no later input frame and an image is a one-frame
video. Nothing here takes statistics over time: that would let the future leak into the past.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError, near_matches
from videogen.nn.attention import Attention
from videogen.nn.linear import Initializer, Linear, lecun_normal, ones, parameter, zeros
from videogen.nn.norms import RMSNorm
from videogen.nn.patches import unpatchify
from videogen.nn.streaming import Stream, begins, with_past
from videogen.nn.transformer import REMAT_POLICIES
from videogen.parallel import GRID_AXES, constrain
from videogen.parallel.cpu import folded_convolution, on_cpu

Grid = Float[Array, "batch time height width channel"]
Pair = tuple[int, int]
Triple = tuple[int, int, int]

CAUSAL = ("zero", "replicate")
PADDINGS = (*CAUSAL, "same")
"""What stands before the first frame: zeros or copies of it (both causal); ``same`` pads zeros on both sides."""
VALID = "valid"
"""No padding in time: there are ``(frames - size) // stride + 1`` frames afterwards."""
EDGE = "edge"
"""Copies of the first frame before a clip and of the last one behind it, half a kernel each; not causal."""

BLUR = (0.25, 0.5, 0.25)


def convolve(
    x: Grid,
    kernel: Float[Array, "i j k inputs outputs"],
    stride: Triple,
    time_padding: int | Pair = 0,
    sides: tuple[Pair, Pair] | None = None,
    dilation: int = 1,
) -> Grid:
    """3-D convolution with ``time_padding`` zeros at both ends of time (or before and after), and zeros around frames:
    half a kernel on each side, or ``(before, after)`` along height and width. Taps in time are ``dilation`` apart.
    """
    kernel = kernel.astype(x.dtype)
    ends = (time_padding, time_padding) if isinstance(time_padding, int) else time_padding
    sides = sides or tuple(((n - 1) // 2, n // 2) for n in kernel.shape[1:3])
    if on_cpu():
        return folded_convolution(x, kernel, stride, ends, sides, dilation)
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, stride, (ends, *sides), rhs_dilation=(dilation, 1, 1), dimension_numbers=layout
    )


class Convolution(nnx.Module):
    """3-D convolution with float32 parameters, computed in ``dtype``.

    Args:
      inputs: channels in.
      outputs: channels out.
      size: kernel sides ``(time, height, width)``; a causal kernel is at least as long as its stride in time.
      stride: keeps every so-many-th place.
      padding: a name in ``PADDINGS``, ``VALID`` or ``EDGE``.
      sides: zeros around frames, ``((above, below), (left, right))``; ``None``: half a kernel on each side.
      mirrored: what stands around frames is their mirror image without the outermost places, in the place of zeros.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Triple = (3, 3, 3),
        *,
        stride: Triple = (1, 1, 1),
        padding: str = "zero",
        sides: tuple[Pair, Pair] | None = None,
        mirrored: bool = False,
        bias: bool = True,
        initializer: Initializer = lecun_normal,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if padding not in (*PADDINGS, VALID, EDGE):
            raise UserError(f"unknown time padding {padding!r}{near_matches(padding, PADDINGS)}")
        if padding in CAUSAL and size[0] < stride[0]:
            raise UserError(f"a causal kernel of {size[0]} frames cannot have a stride of {stride[0]} frames")
        self.size, self.stride, self.padding, self.sides = tuple(size), tuple(stride), padding, sides
        self.mirrored, self.dtype = mirrored, dtype
        self.kernel = parameter(rngs, (*size, inputs, outputs), (None, None, None, "embed", None), initializer)
        self.bias = parameter(rngs, (outputs,), (None,), zeros) if bias else None

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        x, centred = x.astype(self.dtype), (self.size[0] - 1) // 2 if self.padding == "same" else 0
        if self.padding in CAUSAL:
            x = with_past(x, self.size[0], self.stride[0], self.padding, stream)
        if self.padding == EDGE:
            x = jnp.pad(x, [(0, 0), ((self.size[0] - 1) // 2, self.size[0] // 2), *((0, 0),) * 3], mode="edge")
        sides = self.sides
        if self.mirrored:
            around = sides or tuple(((n - 1) // 2, n // 2) for n in self.size[1:])
            x, sides = jnp.pad(x, [(0, 0), (0, 0), *around, (0, 0)], mode="reflect"), ((0, 0), (0, 0))
        if self.stride[2] > 1:
            # Sharded only where the result is: XLA shards the result as its input, whatever is asked of it later.
            columns = x.shape[3] // self.stride[2]
            x = constrain(x, "batch", *GRID_AXES[1], "embed", shape=(*x.shape[:3], columns, x.shape[4]))
        y = convolve(x, self.kernel.get_value(), self.stride, centred, sides)
        if self.bias is not None:
            y = y + self.bias.get_value().astype(self.dtype)
        return constrain(y, "batch", *GRID_AXES[1], "embed")


class GroupNorm(nnx.Module):
    """Normalises each frame on its own over places and groups of channels (Wu and He, 2018), float32 inside.

    Args:
      width: channels.
      groups: number of groups; ``width`` divides by it.
      affine: learn a scale and a shift of each channel.
    """

    def __init__(self, width: int, *, groups: int = 32, affine: bool = True, epsilon: float = 1e-6, rngs: nnx.Rngs):
        if width % groups:
            raise UserError(f"{width} channels do not divide into {groups} groups; set norm_groups to a divisor")
        self.groups, self.epsilon = groups, epsilon
        self.scale = parameter(rngs, (width,), (None,), ones) if affine else None
        self.shift = parameter(rngs, (width,), (None,), zeros) if affine else None

    def _group_mean(self, x: Float[Array, "batch time height width channel"]) -> Float[Array, "batch time 1 1 channel"]:
        # Sums of channels first: splitting the channel axis of the large array would cost a copy.
        mean = jnp.mean(x, axis=(2, 3))
        grouped = mean.reshape(*mean.shape[:2], self.groups, -1).mean(-1, keepdims=True)
        spread = jnp.broadcast_to(grouped, (*grouped.shape[:3], mean.shape[2] // self.groups))
        return spread.reshape(*mean.shape[:2], 1, 1, mean.shape[2])

    def __call__(self, x: Grid) -> Grid:
        y = x.astype(jnp.float32)
        # Squares about the mean: E[y²] - E[y]² would lose the digits that a mean far from zero takes.
        y = y - self._group_mean(y)
        factor = jax.lax.rsqrt(self._group_mean(y * y) + self.epsilon)
        if self.scale is not None:
            factor = factor * self.scale.get_value()
        y = y * factor
        return (y if self.shift is None else y + self.shift.get_value()).astype(x.dtype)


def frame_norm(
    width: int, groups: int, rngs: nnx.Rngs, epsilon: float = 1e-6, affine: bool = True
) -> GroupNorm | RMSNorm:
    """The norm of causal convolutions: by groups of channels over each frame, or with no groups (0) an RMS norm over
    the channels of each place, as Wan2.1's VAE has it; with ``affine`` it learns scales (and shifts)."""
    kind, settings = (GroupNorm, {"groups": groups}) if groups else (RMSNorm, {})
    return kind(width, **settings, epsilon=epsilon, affine=affine, rngs=rngs)


class FrameAttention(nnx.Module):
    """Norm and attention with one head among the places of each frame, beside a skip path.

    Args:
      width: channels.
      groups, epsilon: as ``frame_norm`` takes them.
    """

    def __init__(
        self, width: int, *, groups: int = 32, epsilon: float = 1e-6, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.norm = frame_norm(width, groups, rngs, epsilon)
        # A bias of the keys adds the same to all scores of a query, which changes nothing.
        biased = ("query", "value", "out")
        self.attention = Attention(width, 1, qk_norm=None, bias=biased, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid) -> Grid:
        return x + self.attention(self.norm(x), axes=GRID_AXES[1], attended_axes=2)


class AdaptiveGroupNorm(nnx.Module):
    """Group norm whose scale and shift at each place come from a condition; plain group norm at the start.

    Args:
      width: channels.
      condition_width: channels of the condition.
      groups: as in ``GroupNorm``.
      factors: places along each axis that one place of the condition stands for.
    """

    def __init__(
        self,
        width: int,
        condition_width: int,
        *,
        groups: int = 32,
        factors: Triple = (1, 1, 1),
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.factors = tuple(factors)
        self.norm = GroupNorm(width, groups=groups, affine=False, rngs=rngs)
        axes = (None, "embed")
        self.modulation = Linear(condition_width, 2 * width, axes=axes, initializer=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid, condition: Grid, stream: Stream | None = None) -> Grid:
        # A linear map of each place commutes with repeating it, and the condition has fewer places.
        modulation = repeat(self.modulation(condition), self.factors, begins(stream))
        scale, shift = jnp.split(modulation, 2, axis=-1)
        return self.norm(x) * (1 + scale) + shift


def repeat(x: Grid, factors: Triple, drop_first: bool) -> Grid:
    """Nearest-neighbour up-sampling; with ``drop_first`` the first frame stands for itself only."""
    batch, t, h, w, channel = x.shape
    a, b, c = factors
    x = jnp.broadcast_to(x[:, :, None, :, None, :, None], (batch, t, a, h, b, w, c, channel))
    x = x.reshape(batch, t * a, h * b, w * c, channel)
    return x[:, a - 1 :] if drop_first else x


def average_pool(x: Grid, stride: Triple) -> Grid:
    """Mean of every ``stride`` box."""
    batch, t, h, w, channel = x.shape
    a, b, c = stride
    return x.reshape(batch, t // a, a, h // b, b, w // c, c, channel).mean((2, 4, 6))


def blur_pool(x: Grid, stride: Triple, padding: str = "same", stream: Stream | None = None) -> Grid:
    """Down-sampling after a [1, 2, 1]/4 filter along every axis that loses places (Zhang, 2019).

    Borders repeat, so that constants stay. In time the filter is centred or, with a causal ``padding``, looks back.
    """
    for axis, step in enumerate(stride, start=1):
        if step == 1:
            continue
        if axis == 1 and padding != "same":
            padded = with_past(x, len(BLUR), step, padding, stream)
        else:
            padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(5)], mode="edge")
        size = padded.shape[axis] - len(BLUR) + 1
        x = sum(
            jax.lax.slice_in_dim(padded, i, i + size, step, axis) * np.asarray(tap, x.dtype)
            for i, tap in enumerate(BLUR)
        )
    return x


class DepthToSpace(nnx.Module):
    """Up-sampling: a convolution makes the channels of every new place, which are then laid out in time and space.

    With ``stride[0] = s`` the first ``s - 1`` frames of a clip are dropped: 1 + k frames become 1 + k·s.
    """

    def __init__(self, inputs: int, outputs: int, size: Triple, *, stride: Triple, **common: Any):
        self.stride = tuple(stride)
        self.convolution = Convolution(inputs, outputs * int(np.prod(stride)), size, **common)

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        y = unpatchify(self.convolution(x, stream), self.stride)
        causal = self.convolution.padding in CAUSAL
        return y[:, self.stride[0] - 1 :] if causal and begins(stream) else y


class ResidualBlock(nnx.Module):
    """Norm (``frame_norm``), swish, convolution, twice, beside a skip path, all with biases or without.

    Args:
      inputs: channels in.
      outputs: channels out; where there are others, the skip path is a linear layer.
      size: kernel sides.
      groups, epsilon, affine: of the norms, as ``frame_norm`` takes them.
      padding, mirrored: of the convolutions.
      bias: of the convolutions and the skip path.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Triple = (3, 3, 3),
        *,
        groups: int = 32,
        padding: str = "zero",
        mirrored: bool = False,
        bias: bool = False,
        epsilon: float = 1e-6,
        affine: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(padding=padding, mirrored=mirrored, bias=bias, dtype=dtype, rngs=rngs)
        self.first_norm = frame_norm(inputs, groups, rngs, epsilon, affine)
        self.first = Convolution(inputs, outputs, size, **common)
        self.second_norm = frame_norm(outputs, groups, rngs, epsilon, affine)
        self.second = Convolution(outputs, outputs, size, **common)
        self.skip = Linear(inputs, outputs, bias=bias, dtype=dtype, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Grid, *, key: jax.Array | None = None, stream: Stream | None = None) -> Grid:
        """``key`` is what ``Stack`` hands to every layer; nothing here is random."""
        y = self.first(jax.nn.swish(self.first_norm(x)), stream)
        y = self.second(jax.nn.swish(self.second_norm(y)), stream)
        return (x if self.skip is None else self.skip(x)) + y


def checkpointed(module: nnx.Module, remat: str, *arguments: Any) -> Any:
    """``module(*arguments)`` whose backward pass keeps what the policy ``remat`` says, as ``Stack`` does for layers."""
    if remat == "none":
        return module(*arguments)
    graph, state = nnx.split(module)

    def run(state: nnx.State, *arguments: Any) -> Any:
        return nnx.merge(graph, state)(*arguments)

    return jax.checkpoint(run, policy=REMAT_POLICIES[remat])(state, *arguments)
