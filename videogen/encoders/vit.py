"""What vision transformers share: patches, position tables at other sizes, and their stack of blocks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.loading import Published, linear_names, plain
from videogen.encoders.preprocessing import Preprocessing
from videogen.errors import UserError, near_matches
from videogen.nn import Linear, Transformer, build_transformer, patchify, resize_cubic
from videogen.nn.attention import PROJECTIONS
from videogen.nn.transformer import Around
from videogen.shapes import Video

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
"""Published name of an activation -> kind of MLP."""


def activation(name: str) -> str:
    """The kind of MLP with an activation.

    Raises:
      UserError: there is none.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation {name!r}{near_matches(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def tower(
    width: int,
    layers: int,
    heads: int,
    hidden: int,
    *,
    kind: str = "gelu",
    epsilon: float = 1e-6,
    taps: Sequence[int] = (),
    bias: Sequence[str] = PROJECTIONS,
    attention: dict[str, Any] | None = None,
    around: Around | None = None,
    remat: str = "none",
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Transformer:
    """Pre-norm blocks with layer norms and biases, and a last norm: ViT (Dosovitskiy et al., 2021) and its relatives.

    Args:
      width, layers, heads, hidden: sizes; ``hidden`` is that of the MLP.
      kind: of the MLP.
      epsilon: of the norms.
      taps: as ``nn.Transformer`` takes them.
      bias: the projections of the attention that have one.
      attention: further settings of the attention.
      around: makes the layer of each block, as ``nn.block_stack`` takes it.
      remat: what the backward pass keeps.
    """
    config = dict(
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=hidden,
        norm={"name": "layer", "epsilon": epsilon},
        qk_norm=False,
        attention={"bias": bias, **(attention or {})},
        mlp={"kind": kind, "bias": True},
    )
    return build_transformer(config, taps=taps, around=around, remat=remat, dtype=dtype, rngs=rngs)


class Patches(nnx.Module):
    """Frames cut into boxes ``size = (time, height, width)``, each mapped to a token; a remainder is left out."""

    def __init__(self, size: tuple[int, int, int], width: int, *, bias: bool = True, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.size = tuple(size)
        self.linear = Linear(3 * int(np.prod(size)), width, axes=(None, "embed"), bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch t h w embed"]:
        sides = [n // step * step for n, step in zip(pixels.shape[1:4], self.size, strict=True)]
        if 0 in sides:
            raise UserError(f"pictures of {list(pixels.shape[1:4])} are smaller than a patch of {list(self.size)}")
        return self.linear(patchify(pixels[:, : sides[0], : sides[1], : sides[2]], self.size))

    @staticmethod
    def names(ours: str, theirs: str) -> dict[str, Any]:
        """The part of a table, from the name of the published convolution."""
        return linear_names(f"{ours}.linear", theirs)


class Seen(Published):
    """Base of encoders of pictures or videos: they own their preprocessing.

    Attributes:
      preprocessing: what ``preprocessor_config.json`` said, or the network's own.
      moving: it takes clips; else pictures.
      patches: the first layer.
      READINGS: what a grid may be made of; ``last`` is what the last layer gives.
      HEAD: parts that no grid but a ``projected`` one needs.
    """

    preprocessing: Preprocessing
    moving: ClassVar[bool] = False
    patches: Patches
    READINGS: ClassVar[Sequence[str]] = ("last",)
    HEAD: ClassVar[Sequence[str]] = ()

    def tokens(self, pixels: Float[Array, "batch ..."]) -> Float[Array, "batch tokens embed"]:
        """Tokens of preprocessed pictures or clips, the patches last and in raster order."""
        raise NotImplementedError

    def read(self, pixels: Float[Array, "batch ..."], reading: str) -> Float[Array, "batch tokens embed"]:
        """``tokens``, or what another of ``READINGS`` makes of them."""
        return self.tokens(pixels)

    def read_beside(self, directory: str | Path) -> None:
        self.preprocessing = Preprocessing.read(directory, self.preprocessing)

    @classmethod
    def describe(cls, directory: str | Path) -> dict[str, Any]:
        network = nnx.eval_shape(lambda: cls.structure(directory))
        return {**super().describe(directory), "preprocessing": dataclasses.asdict(network.preprocessing)}

    @classmethod
    def described(cls, description: Mapping[str, Any], *, dtype: jnp.dtype = jnp.float32) -> Self:
        network = super().described(
            {key: description[key] for key in description if key != "preprocessing"}, dtype=dtype
        )
        return network.with_preprocessing(description)

    def with_preprocessing(self, description: Mapping[str, Any]) -> Self:
        """This network, with the preprocessing of a description where there is one."""
        if "preprocessing" in description:
            self.preprocessing = Preprocessing(**plain(description["preprocessing"]))
        return self

    def grid_width(self, reading: str = "last") -> int:
        """Channels of ``grid``; raises ``UserError`` for a reading that the network does not have."""
        if reading not in self.READINGS:
            known = near_matches(reading, self.READINGS)
            raise UserError(f"{type(self).__name__} has no reading {reading!r} of its patches{known}")
        return self._channels(reading)

    def _channels(self, reading: str) -> int:
        return self.patches.linear.outputs

    def grid(self, clips: Video, side: int = 0, reading: str = "last") -> Float[Array, "batch t h w embed"]:
        """A vector for each patch of clips in [-1, 1]; pictures are encoded frame by frame.

        Whole frames are resized, and nothing is cut off, so that patches lie where the clips show the same.

        Args:
          clips: pixels.
          side: of the square that frames are resized to, in pixels; 0: that of the network's preprocessing.
          reading: one of ``READINGS``.

        Raises:
          UserError: the network takes no such clips, or any size, of which none is named, or has no such reading.
        """
        own, channels = self.preprocessing, self.grid_width(reading)
        side = side or own.crop or (own.size if isinstance(own.size, int) else own.size[0])
        if side < 1:
            raise UserError(f"this {type(self).__name__} takes pictures of any size; name the side it is to see")
        pixels = dataclasses.replace(own, size=(side, side), crop=None)(clips)
        step, high, wide = self.patches.size
        sides = (max(clips.shape[1] // step, 1), side // high, side // wide)
        tokens = self.read(pixels if self.moving else pixels.reshape(-1, *pixels.shape[2:]), reading)
        tokens = tokens[:, -math.prod(sides if self.moving else sides[1:]) :]
        return tokens.reshape(len(clips), *sides, channels)


def resize_positions(
    table: Float[Array, "places embed"], sides: tuple[int, int], method: str = "cubic"
) -> Float[Array, "new_places embed"]:
    """A position table of a square grid, for a grid with other sides.

    Args:
      table: of a square grid in raster order.
      sides: height and width of the new grid; the table's own leave it as it is.
      method: ``cubic`` is PyTorch's bicubic without antialiasing, ``cubic_antialiased`` and ``linear_antialiased`` are
        as Pillow resizes.
    """
    side = round(len(table) ** 0.5)
    if side * side != len(table):
        raise UserError(f"a position table of {len(table)} places is no square")
    if sides == (side, side):
        return table
    grid = table.reshape(side, side, -1)
    if method == "cubic":
        grid = resize_cubic(grid[None], sides)[0]
    else:
        kind = method.removesuffix("_antialiased")
        grid = jax.image.resize(grid, (*sides, grid.shape[-1]), kind, antialias=True)
    return grid.reshape(-1, grid.shape[-1])
