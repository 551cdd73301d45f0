"""3-D convolutions that are causal in time, with what surrounds them: streaming, per-frame norms, resampling.

Time is padded on the left only, so that an output frame depends on no later input frame and an image is a one-frame
video. Nothing here takes statistics over time unless ``over_time`` says so: that lets the future leak into the past.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError, near_matches
from videogen.nn.attention import Attention
from videogen.nn.linear import Initializer, Linear, lecun_normal, ones, parameter, zeros
from videogen.nn.masks import BlockCausal, Causal
from videogen.nn.norms import LayerNorm, RMSNorm
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

BORDERS = {"zero": None, "replicate": "edge", "mirror": "reflect"}
"""What stands around frames (and its name in ``numpy.pad``): zeros, copies of their outermost places, or their mirror
image without these."""

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
      sides: places around frames, ``((above, below), (left, right))``; ``None``: half a kernel on each side.
      border: a name in ``BORDERS``, what these places hold.
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
        border: str = "zero",
        bias: bool = True,
        initializer: Initializer = lecun_normal,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if padding not in (*PADDINGS, VALID, EDGE):
            raise UserError(f"unknown time padding {padding!r}{near_matches(padding, PADDINGS)}")
        if padding in CAUSAL and size[0] < stride[0]:
            raise UserError(f"a causal kernel of {size[0]} frames cannot have a stride of {stride[0]} frames")
        if border not in BORDERS:
            raise UserError(f"unknown border {border!r}{near_matches(border, BORDERS)}")
        self.size, self.stride, self.padding, self.sides = tuple(size), tuple(stride), padding, sides
        self.border, self.dtype = border, dtype
        self.kernel = parameter(rngs, (*size, inputs, outputs), (None, None, None, "embed", None), initializer)
        self.bias = parameter(rngs, (outputs,), (None,), zeros) if bias else None

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        x, centred = x.astype(self.dtype), (self.size[0] - 1) // 2 if self.padding == "same" else 0
        if self.padding in CAUSAL:
            x = with_past(x, self.size[0], self.stride[0], self.padding, stream)
        if self.padding == EDGE:
            x = jnp.pad(x, [(0, 0), ((self.size[0] - 1) // 2, self.size[0] // 2), *((0, 0),) * 3], mode="edge")
        sides = self.sides
        if (mode := BORDERS[self.border]) is not None:
            around = sides or tuple(((n - 1) // 2, n // 2) for n in self.size[1:])
            x, sides = jnp.pad(x, [(0, 0), (0, 0), *around, (0, 0)], mode=mode), ((0, 0), (0, 0))
        if self.stride[2] > 1:
            # Sharded only where the result is: XLA shards the result as its input, whatever is asked of it later.
            columns = x.shape[3] // self.stride[2]
            x = constrain(x, "batch", *GRID_AXES[1], "embed", shape=(*x.shape[:3], columns, x.shape[4]))
        y = convolve(x, self.kernel.get_value(), self.stride, centred, sides)
        if self.bias is not None:
            y = y + self.bias.get_value().astype(self.dtype)
        return constrain(y, "batch", *GRID_AXES[1], "embed")


class FactorisedConvolution(nnx.Module):
    """A convolution inside frames, then one along time, in the place of one over both (Cosmos; NVIDIA, 2025).

    Args:
      inputs: channels in.
      outputs: channels out of each of the two.
      size: kernel sides ``(time, height, width)``: the first is of the second convolution, the others of the first.
      **common: what ``Convolution`` takes; both have it.
    """

    def __init__(self, inputs: int, outputs: int, size: Triple = (3, 3, 3), **common: Any):
        self.space = Convolution(inputs, outputs, (1, *size[1:]), **common)
        self.time = Convolution(outputs, outputs, (size[0], 1, 1), **common)

    def __call__(self, x: Grid, stream: Stream | None = None) -> Grid:
        return self.time(self.space(x, stream), stream)


class GroupNorm(nnx.Module):
    """Normalises each frame on its own over places and groups of channels (Wu and He, 2018), float32 inside.

    Args:
      width: channels.
      groups: number of groups; ``width`` divides by it.
      affine: learn a scale and a shift of each channel.
      over_time: normalises all frames together; the result then depends on later frames.
    """

    def __init__(
        self,
        width: int,
        *,
        groups: int = 32,
        affine: bool = True,
        over_time: bool = False,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        if width % groups:
            raise UserError(f"{width} channels do not divide into {groups} groups; set norm_groups to a divisor")
        self.groups, self.epsilon, self.axes = groups, epsilon, (1, 2, 3) if over_time else (2, 3)
        self.scale = parameter(rngs, (width,), (None,), ones) if affine else None
        self.shift = parameter(rngs, (width,), (None,), zeros) if affine else None

    def _group_mean(self, x: Grid) -> Float[Array, "batch time_or_1 1 1 channel"]:
        # Sums of channels first: splitting the channel axis of the large array would cost a copy.
        mean = jnp.mean(x, axis=self.axes, keepdims=True)
        grouped = mean.reshape(*mean.shape[:4], self.groups, -1).mean(-1, keepdims=True)
        spread = jnp.broadcast_to(grouped, (*grouped.shape[:5], mean.shape[4] // self.groups))
        return spread.reshape(mean.shape)

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
    width: int,
    groups: int,
    rngs: nnx.Rngs,
    epsilon: float = 1e-6,
    over_time: bool = False,
    centred: bool = False,
    affine: bool = True,
) -> GroupNorm | RMSNorm | LayerNorm:
    """The norm of causal convolutions: by groups of channels over each frame or ``over_time``, or with no groups (0)
    an RMS norm over the channels of each place, as Wan2.1's VAE has it, or a ``centred`` one, a layer norm (VidTok).
    With ``affine`` it learns scales (and shifts)."""
    common = dict(epsilon=epsilon, affine=affine, rngs=rngs)
    if groups:
        return GroupNorm(width, groups=groups, over_time=over_time, **common)
    return (LayerNorm if centred else RMSNorm)(width, **common)


class FrameAttention(nnx.Module):
    """Norm and attention with one head among the places of each frame, beside a skip path.

    Args:
      width: channels.
      groups, epsilon, over_time, centred: as ``frame_norm`` takes them.
      past: the places of earlier frames are seen as well.
      along_time: instead, among the frames at each place, of which each sees itself and those before (Cosmos).
    """

    def __init__(
        self,
        width: int,
        *,
        groups: int = 32,
        epsilon: float = 1e-6,
        over_time: bool = False,
        centred: bool = False,
        past: bool = False,
        along_time: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.past, self.along_time = past, along_time
        self.norm = frame_norm(width, groups, rngs, epsilon, over_time, centred)
        # A bias of the keys adds the same to all scores of a query, which changes nothing.
        biased = ("query", "value", "out")
        self.attention = Attention(width, 1, qk_norm=None, bias=biased, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid) -> Grid:
        y = self.norm(x)
        if self.along_time:
            return x + jnp.moveaxis(self.attention(jnp.moveaxis(y, 1, 3), mask=Causal()), 3, 1)
        seen = dict(mask=BlockCausal(x.shape[2] * x.shape[3]), attended_axes=3) if self.past else dict(attended_axes=2)
        return x + self.attention(y, axes=GRID_AXES[1], **seen)


class AdaptiveGroupNorm(nnx.Module):
    """Group norm whose scale and shift at each place come from a condition; plain group norm at the start.

    Args:
      width: channels.
      condition_width: channels of the condition.
      groups, over_time: as in ``GroupNorm``.
      factors: places along each axis that one place of the condition stands for. Where there are fewer frames, the
        first one of the condition stands for one frame.
      absolute: the condition gives the scale itself, not what is added to 1, and the norm has a learned scale and
        shift of its own (MoVQ, Zheng et al., 2022; there is no plain norm at the start).
    """

    def __init__(
        self,
        width: int,
        condition_width: int,
        *,
        groups: int = 32,
        over_time: bool = False,
        factors: Triple = (1, 1, 1),
        absolute: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.factors, self.base = tuple(factors), 0 if absolute else 1
        self.norm = GroupNorm(width, groups=groups, affine=absolute, over_time=over_time, rngs=rngs)
        settings = dict(axes=(None, "embed"), initializer=lecun_normal if absolute else zeros)
        self.modulation = Linear(condition_width, 2 * width, **settings, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid, condition: Grid) -> Grid:
        # A linear map of each place commutes with repeating it, and the condition has fewer places.
        alone = x.shape[1] < self.factors[0] * condition.shape[1]
        modulation = repeat(self.modulation(condition), self.factors, drop_first=alone)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        return self.norm(x) * (self.base + scale) + shift


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
      size, padding, border, bias: of the convolutions.
      groups, epsilon, over_time, centred, affine: of the norms.
      norm: makes a norm of so many channels in the place of those, which may be one that sees a ``condition``.
      factorised: both convolutions are a ``FactorisedConvolution``, which has no ``border``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Triple = (3, 3, 3),
        *,
        groups: int = 32,
        padding: str = "zero",
        border: str = "zero",
        bias: bool = False,
        epsilon: float = 1e-6,
        over_time: bool = False,
        centred: bool = False,
        affine: bool = True,
        norm: Callable[[int], nnx.Module] | None = None,
        factorised: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(padding=padding, bias=bias, dtype=dtype, rngs=rngs)
        kind = FactorisedConvolution if factorised else functools.partial(Convolution, border=border)
        make = norm or (lambda width: frame_norm(width, groups, rngs, epsilon, over_time, centred, affine))
        self.first_norm = make(inputs)
        self.first = kind(inputs, outputs, size, **common)
        self.second_norm = make(outputs)
        self.second = kind(outputs, outputs, size, **common)
        self.skip = Linear(inputs, outputs, bias=bias, dtype=dtype, rngs=rngs) if inputs != outputs else None

    def __call__(
        self, x: Grid, *, key: jax.Array | None = None, stream: Stream | None = None, condition: Grid | None = None
    ) -> Grid:
        """``key`` is what ``Stack`` hands to every layer; nothing here is random. ``condition`` is what norms see."""
        seen = () if condition is None else (condition,)
        y = self.first(jax.nn.swish(self.first_norm(x, *seen)), stream)
        y = self.second(jax.nn.swish(self.second_norm(y, *seen)), stream)
        return (x if self.skip is None else self.skip(x)) + y


def checkpointed(module: nnx.Module, remat: str, *arguments: Any) -> Any:
    """``module(*arguments)`` whose backward pass keeps what the policy ``remat`` says, as ``Stack`` does for layers."""
    if remat == "none":
        return module(*arguments)
    graph, state = nnx.split(module)

    def run(state: nnx.State, *arguments: Any) -> Any:
        return nnx.merge(graph, state)(*arguments)

    return jax.checkpoint(run, policy=REMAT_POLICIES[remat])(state, *arguments)
