"""Convolutional networks that are lists of stages: encoder and decoder of the video VAEs of LTX (``tokenizers.ltx``).

A stage is a section ``{name, …}`` of ``STAGES``: blocks that leave sizes as they are, one that changes the channels,
and ways to go down or up in time, height and width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen import building
from videogen.errors import UserError
from videogen.nn import (
    Convolution,
    LayerNorm,
    ResidualBlock,
    RMSNorm,
    Stream,
    TimeEmbedding,
    draw,
    lay_out,
    modulate,
    named_key,
    parameter,
    patchify,
    unpatchify,
    zeros,
)
from videogen.nn.convolution import Grid
from videogen.nn.modulation import SingleModulation
from videogen.nn.streaming import begins
from videogen.ranges import Count, Number

EPSILON = 1e-8
"""Of the norms over the channels of a place, which learn nothing."""

MANY = 1000
"""Blocks of a stage, and stages of a network, at the most."""

Step = Annotated[int, Number(int, 1, 2)]
Stride = tuple[Step, Step, Step]
BlockCount = Annotated[int, Number(int, 1, MANY)]


class Noise:
    """Noise that blocks add: another picture for each call, the same for all frames of a clip and all channels.

    Args:
      keys: one of each example.
    """

    def __init__(self, keys: jax.Array):
        self.keys, self.calls = keys, 0

    def __call__(self, x: Grid) -> Float[Array, "batch 1 height width 1"]:
        """The next picture for activations of this shape."""
        self.calls += 1
        own = named_key(self.keys, f"picture {self.calls}")
        return draw(jax.random.normal, own, (len(x), *x.shape[2:4]))[:, None, :, :, None].astype(x.dtype)


class Told(NamedTuple):
    """What a network is told beside its input.

    Attributes:
      time: of each example, in the units of the embedding; ``None``: the network has no time.
      noise: ``None``: no block adds any.
      stream: of the chunks; ``None``: the input is a whole clip.
    """

    time: Float[Array, "batch"] | None = None
    noise: Noise | None = None
    stream: Stream | None = None


NOTHING = Told()
"""A whole clip, no time and no noise."""


class Kind(NamedTuple):
    """What all stages of a network have in common.

    Attributes:
      padding: in time.
      mirrored: around frames are their mirror images, not zeros.
      timed: blocks are told a time.
    """

    padding: str
    mirrored: bool
    timed: bool

    @property
    def sides(self) -> dict[str, Any]:
        """The settings of convolutions."""
        return {"padding": self.padding, "border": "mirror" if self.mirrored else "zero"}


class Block(ResidualBlock):
    """A residual block that may be modulated by a time and add noise behind its convolutions.

    Args:
      inputs: channels in.
      outputs: channels out; where there are others, the skip path has a layer norm.
      kind: of the network; of blocks that change the channels none is told a time.
      noisy: adds noise, times a factor by channel.
    """

    def __init__(self, inputs: int, outputs: int, kind: Kind, noisy: bool = False, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        norms = dict(groups=0, epsilon=EPSILON, affine=False)
        super().__init__(inputs, outputs, **norms, **kind.sides, bias=True, dtype=dtype, rngs=rngs)
        changes = inputs != outputs
        self.skip_norm = LayerNorm(inputs, rngs=rngs) if changes else None
        self.modulation = SingleModulation(outputs, 4, rngs=rngs) if kind.timed and not changes else None
        first, second = (parameter(rngs, (outputs,), (None,), zeros) if noisy else None for _ in range(2))
        self.first_noise, self.second_noise = first, second

    def __call__(self, x: Grid, shared: Float[Array, "batch 1 4 width"] | None = None, told: Told = NOTHING) -> Grid:
        """``shared`` are shift and scale behind either norm that all blocks of a stage have in common."""
        parts = (None,) * 4 if self.modulation is None else lay_out(self.modulation(shared), x)
        y = self._half(x, self.first_norm, parts[:2], self.first, self.first_noise, told)
        y = self._half(y, self.second_norm, parts[2:], self.second, self.second_noise, told)
        x = x if self.skip_norm is None else self.skip(self.skip_norm(x))
        return x + y

    @staticmethod
    def _half(x: Grid, norm: RMSNorm, parts: Any, layer: Convolution, factor: nnx.Param | None, told: Told) -> Grid:
        x = norm(x)
        x = x if parts[0] is None else modulate(x, *parts)
        x = layer(jax.nn.swish(x), told.stream)
        if factor is None or told.noise is None:
            return x
        return x + told.noise(x) * factor.get_value().astype(x.dtype)


class Blocks(nnx.Module):
    """Residual blocks that leave size and channels as they are.

    Args:
      inputs: channels.
      kind: of the network.
      count: of blocks.
      noise: they add noise.
    """

    down = up = (1, 1, 1)

    def __init__(
        self, inputs: Count, kind: Kind, count: BlockCount, noise: bool = False, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.width = inputs
        self.time = TimeEmbedding(4 * inputs, rngs=rngs) if kind.timed else None
        made = [Block(inputs, inputs, kind, noise, dtype=dtype, rngs=rngs) for _ in range(count)]
        self.blocks = nnx.List(made)

    def __call__(self, x: Grid, told: Told) -> Grid:
        shared = None if self.time is None else self.time(told.time).reshape(-1, 1, 4, self.width)
        for block in self.blocks:
            x = block(x, shared, told)
        return x


class Widen(nnx.Module):
    """One residual block to other channels, more or fewer; it is told no time.

    Args:
      inputs: channels in.
      kind: of the network.
      width: channels out.
    """

    down = up = (1, 1, 1)

    def __init__(self, inputs: Count, kind: Kind, width: Count, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        if inputs == width:
            raise UserError(f"a stage 'widen' from {inputs} to {width} channels changes nothing: leave it out")
        self.width = width
        self.block = Block(inputs, width, kind, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid, told: Told) -> Grid:
        return self.block(x, told=told)


class Strided(nnx.Module):
    """A convolution that keeps every other frame, row and column, or those of some of them.

    Args:
      inputs: channels in.
      kind: of the network.
      width: channels out; ``None``: as many.
      stride: of time, height and width.
    """

    up = (1, 1, 1)

    def __init__(
        self,
        inputs: Count,
        kind: Kind,
        width: Count | None = None,
        stride: Stride = (2, 2, 2),
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.width, self.down = width or inputs, tuple(stride)
        common = dict(stride=self.down, **kind.sides, dtype=dtype, rngs=rngs)
        self.convolution = Convolution(inputs, self.width, **common)

    def __call__(self, x: Grid, told: Told) -> Grid:
        return self.convolution(x, told.stream)


def fold(x: Grid, box: tuple[int, int, int]) -> Grid:
    """Boxes of places become channels; those of one channel stand side by side."""
    y, channels = patchify(x, box), x.shape[-1]
    return y.reshape(*y.shape[:-1], -1, channels).swapaxes(-1, -2).reshape(y.shape)


def unfold(x: Grid, box: tuple[int, int, int], first: bool) -> Grid:
    """The inverse of ``fold``; of the first box of a clip the last frame stays."""
    y = x.reshape(*x.shape[:-1], -1, math.prod(box)).swapaxes(-1, -2).reshape(x.shape)
    return unpatchify(y, box)[:, box[0] - 1 if first else 0 :]


class Fold(nnx.Module):
    """Down-sampling: boxes of places become channels behind a convolution; beside it means of boxes and channels.

    The first frame of a clip fills the box that it is in.

    Args:
      inputs: channels in.
      kind: of the network.
      width: channels out, a multiple of the places of a box.
      stride: sides of a box.
    """

    up = (1, 1, 1)

    def __init__(
        self,
        inputs: Count,
        kind: Kind,
        width: Count,
        stride: Stride = (2, 2, 2),
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        places = math.prod(stride)
        if width % places or inputs * places % width:
            raise UserError(f"a stage 'fold' cannot make {width} channels of {inputs} in {places} places")
        self.width, self.down = width, tuple(stride)
        self.convolution = Convolution(inputs, width // places, **kind.sides, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid, told: Told) -> Grid:
        if begins(told.stream) and self.down[0] > 1:
            x = jnp.concatenate([x[:, :1]] * (self.down[0] - 1) + [x], axis=1)
        means = fold(x, self.down)
        means = means.reshape(*means.shape[:-1], self.width, -1).mean(-1)
        return fold(self.convolution(x, told.stream), self.down) + means


class Unfold(nnx.Module):
    """Up-sampling: the channels that a convolution makes are laid out as boxes of places.

    Args:
      inputs: channels in.
      kind: of the network.
      width: channels out.
      stride: sides of a box.
      around: beside it the channels that come in are laid out, too, and repeated.
    """

    down = (1, 1, 1)

    def __init__(
        self,
        inputs: Count,
        kind: Kind,
        width: Count,
        stride: Stride = (2, 2, 2),
        around: bool = False,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        places = math.prod(stride)
        if around and (inputs % places or width * places % inputs):
            raise UserError(f"a stage 'unfold' cannot lay out {inputs} channels in {places} places around {width}")
        self.width, self.up, self.around = width, tuple(stride), around
        self.convolution = Convolution(inputs, width * places, **kind.sides, dtype=dtype, rngs=rngs)

    def __call__(self, x: Grid, told: Told) -> Grid:
        first = begins(told.stream)
        y = unfold(self.convolution(x, told.stream), self.up, first)
        if not self.around:
            return y
        way = unfold(x, self.up, first)
        return y + jnp.tile(way, self.width // way.shape[-1])


STAGES = {"blocks": Blocks, "fold": Fold, "strided": Strided, "unfold": Unfold, "widen": Widen}


class Network(nnx.Module):
    """What encoder and decoder share: a convolution, stages, a norm that may be modulated, a convolution.

    Args:
      inputs: channels in.
      width: channels that the first convolution makes.
      outputs: channels out.
      stages: sections ``{name, …}`` of ``STAGES``.
      kind: what they have in common.

    Raises:
      UserError: a stage that is none, or cannot follow those before it.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        stages: Sequence[Mapping[str, Any]],
        kind: Kind,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if not 1 <= len(stages) <= MANY:
            raise UserError(f"a network has 1 to {MANY} stages, got {len(stages)}")
        common = dict(dtype=dtype, rngs=rngs)
        self.input = Convolution(inputs, width, **kind.sides, **common)
        made = []
        for section in stages:
            made.append(building.build(STAGES, section, "stage", inputs=width, kind=kind, **common))
            width = made[-1].width
        self.stages, self.width = nnx.List(made), width
        self.norm = RMSNorm(width, epsilon=EPSILON, affine=False, rngs=rngs)
        self.time = TimeEmbedding(2 * width, rngs=rngs) if kind.timed else None
        self.modulation = SingleModulation(width, 2, rngs=rngs) if kind.timed else None
        self.output = Convolution(width, outputs, **kind.sides, **common)
        self.down = tuple(math.prod(stage.down[i] for stage in made) for i in range(3))
        self.up = tuple(math.prod(stage.up[i] for stage in made) for i in range(3))

    def __call__(self, x: Grid, told: Told = NOTHING) -> Grid:
        x = self.input(x, told.stream)
        for stage in self.stages:
            x = stage(x, told)
        x = self.norm(x)
        if self.modulation is not None:
            shared = self.time(told.time).reshape(-1, 1, 2, self.width)
            x = modulate(x, *lay_out(self.modulation(shared), x))
        return self.output(jax.nn.swish(x), told.stream)
