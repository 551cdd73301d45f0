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
from videogen.nn import Linear, Transformer, build_transformer, patchify
from videogen.nn.attention import PROJECTIONS
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
    return build_transformer(config, taps=taps, dtype=dtype, rngs=rngs)


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
    """

    preprocessing: Preprocessing
    moving: ClassVar[bool] = False
    patches: Patches

    def tokens(self, pixels: Float[Array, "batch ..."]) -> Float[Array, "batch tokens embed"]:
        """Tokens of preprocessed pictures or clips, the patches last and in raster order."""
        raise NotImplementedError

    def read_beside(self, directory: str | Path) -> None:
        self.preprocessing = Preprocessing.read(directory, self.preprocessing)

    @classmethod
    def describe(cls, directory: str | Path) -> dict[str, Any]:
        network = nnx.eval_shape(lambda: cls.structure(directory))
        return {**super().describe(directory), "preprocessing": dataclasses.asdict(network.preprocessing)}

    @classmethod
    def described(cls, description: Mapping[str, Any], *, dtype: jnp.dtype = jnp.float32) -> Self:
        settings = {key: description[key] for key in description if key != "preprocessing"}
        network = super().described(settings, dtype=dtype)
        network.preprocessing = Preprocessing(**plain(description["preprocessing"]))
        return network

    @property
    def grid_width(self) -> int:
        """Channels of ``grid``."""
        return self.patches.linear.outputs

    def grid(self, clips: Video, side: int = 0) -> Float[Array, "batch t h w embed"]:
        """A vector for each patch of clips in [-1, 1]; pictures are encoded frame by frame.

        Whole frames are resized, and nothing is cut off, so that patches lie where the clips show the same.

        Args:
          clips: pixels.
          side: of the square that frames are resized to, in pixels; 0: that of the network's preprocessing.

        Raises:
          UserError: the network takes no such clips, or any size, of which none is named.
        """
        own = self.preprocessing
        side = side or own.crop or (own.size if isinstance(own.size, int) else own.size[0])
        if side < 1:
            raise UserError(f"this {type(self).__name__} takes pictures of any size; name the side it is to see")
        pixels = dataclasses.replace(own, size=(side, side), crop=None)(clips)
        step, high, wide = self.patches.size
        sides = (max(clips.shape[1] // step, 1), side // high, side // wide)
        tokens = self.tokens(pixels if self.moving else pixels.reshape(-1, *pixels.shape[2:]))
        tokens = tokens[:, -math.prod(sides if self.moving else sides[1:]) :]
        return tokens.reshape(len(clips), *sides, self.grid_width)


def cubic_weights(inputs: int, outputs: int, a: float = -0.75) -> Float[np.ndarray, "outputs inputs"]:
    """Weights of a cubic interpolation along one axis, half-pixel centres, edges repeated, no antialiasing.

    This is PyTorch's ``bicubic`` (a = -0.75). ``jax.image.resize`` and Pillow have a = -0.5, and leave out what lies
    beyond the edges.
    """
    places = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    weights = np.zeros((outputs, inputs))
    for tap in range(-1, 3):
        index = np.floor(places).astype(int) + tap
        distance = np.abs(places - index)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        np.add.at(weights, (np.arange(outputs), np.clip(index, 0, inputs - 1)), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)


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
        rows, columns = (cubic_weights(side, n) for n in sides)
        grid = jnp.einsum("yh,xw,hwc->yxc", rows, columns, grid, precision=jax.lax.Precision.HIGHEST)
    else:
        kind = method.removesuffix("_antialiased")
        grid = jax.image.resize(grid, (*sides, grid.shape[-1]), kind, antialias=True)
    return grid.reshape(-1, grid.shape[-1])
