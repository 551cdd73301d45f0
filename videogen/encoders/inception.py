"""Inception-v3 as FID needs it: the network of 2015-12-05, in its port to PyTorch.

The file is ``pt_inception-2015-12-05-6726825d.pth``. It is not torchvision's network: means do not count the padding,
and the last block has a max pooling (Heusel et al., 2017; Szegedy et al., 2016).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.convolutions import Map, Unit, pool
from videogen.encoders.loading import Published, linear_names
from videogen.encoders.preprocessing import in_range
from videogen.errors import UserError
from videogen.nn import Linear

EPSILON = 1e-3
SIDE, SMALLEST = 299, 75

Step = tuple[str, int, tuple[int, int], int, tuple[int, int]]
"""Name, outputs, size, stride and padding of a unit."""


def _step(name: str, outputs: int, rows: int, columns: int = 0, stride: int = 1, padded: bool = True) -> Step:
    size = (rows, columns or rows)
    around = tuple((n - 1) // 2 for n in size) if padded else (0, 0)
    return name, outputs, size, stride, around


def _block_a(pooled: int) -> dict[str, list[Step]]:
    return {
        "branch1x1": [_step("branch1x1", 64, 1)],
        "branch5x5": [_step("branch5x5_1", 48, 1), _step("branch5x5_2", 64, 5)],
        "branch3x3": [_step("branch3x3dbl_1", 64, 1), _step("branch3x3dbl_2", 96, 3), _step("branch3x3dbl_3", 96, 3)],
        "mean": [_step("branch_pool", pooled, 1)],
    }


def _block_b() -> dict[str, list[Step]]:
    last = _step("branch3x3dbl_3", 96, 3, stride=2, padded=False)
    return {
        "branch3x3": [_step("branch3x3", 384, 3, stride=2, padded=False)],
        "branch3x3dbl": [_step("branch3x3dbl_1", 64, 1), _step("branch3x3dbl_2", 96, 3), last],
        "shrink": [],
    }


def _block_c(width: int) -> dict[str, list[Step]]:
    long = [("2", width, 7, 1), ("3", width, 1, 7), ("4", width, 7, 1), ("5", 192, 1, 7)]
    return {
        "branch1x1": [_step("branch1x1", 192, 1)],
        "branch7x7": [
            _step("branch7x7_1", width, 1),
            _step("branch7x7_2", width, 1, 7),
            _step("branch7x7_3", 192, 7, 1),
        ],
        "branch7x7dbl": [
            _step("branch7x7dbl_1", width, 1),
            *(_step(f"branch7x7dbl_{n}", outputs, rows, columns) for n, outputs, rows, columns in long),
        ],
        "mean": [_step("branch_pool", 192, 1)],
    }


def _block_d() -> dict[str, list[Step]]:
    long = [_step("branch7x7x3_1", 192, 1), _step("branch7x7x3_2", 192, 1, 7), _step("branch7x7x3_3", 192, 7, 1)]
    return {
        "branch3x3": [_step("branch3x3_1", 192, 1), _step("branch3x3_2", 320, 3, stride=2, padded=False)],
        "branch7x7x3": [*long, _step("branch7x7x3_4", 192, 3, stride=2, padded=False)],
        "shrink": [],
    }


def _block_e(pooling: str) -> dict[str, list[Step]]:
    """Two branches end in a fork: two units side by side."""
    return {
        "branch1x1": [_step("branch1x1", 320, 1)],
        "branch3x3": [_step("branch3x3_1", 384, 1), _step("branch3x3_2a", 384, 1, 3), _step("branch3x3_2b", 384, 3, 1)],
        "branch3x3dbl": [
            _step("branch3x3dbl_1", 448, 1),
            _step("branch3x3dbl_2", 384, 3),
            _step("branch3x3dbl_3a", 384, 1, 3),
            _step("branch3x3dbl_3b", 384, 3, 1),
        ],
        pooling: [_step("branch_pool", 192, 1)],
    }


STEM = (
    _step("Conv2d_1a_3x3", 32, 3, stride=2, padded=False),
    _step("Conv2d_2a_3x3", 32, 3, padded=False),
    _step("Conv2d_2b_3x3", 64, 3),
    _step("Conv2d_3b_1x1", 80, 1),
    _step("Conv2d_4a_3x3", 192, 3, padded=False),
)
BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),
    **{f"Mixed_6{name}": _block_c(width) for name, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192))},
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e("mean"),
    "Mixed_7c": _block_e("max"),
}

POOLS: dict[str, Callable[[Map], Map]] = {
    "mean": lambda x: pool(x, (3, 3), kind="mean", stride=1, padding=1, count_padding=False),
    "max": lambda x: pool(x, (3, 3), kind="max", stride=1, padding=1),
    "shrink": lambda x: pool(x, (3, 3), kind="max", stride=2),
}
"""Branches of these names begin with a pooling."""


class Branch(nnx.Module):
    """Units one after another; the two of a fork, whose names end in a and b, see the same and stand side by side."""

    def __init__(self, inputs: int, steps: Sequence[Step], *, first: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.pooling = first if first in POOLS else ""
        self.steps = tuple(name for name, *_ in steps)
        self.units = nnx.Dict({})
        before = width = inputs
        for name, outputs, size, stride, padding in steps:
            if not name.endswith("b"):
                before = width
            settings = dict(stride=stride, padding=padding, epsilon=EPSILON, dtype=dtype, rngs=rngs)
            self.units[name] = Unit(before, outputs, size, **settings)
            width = 2 * outputs if name.endswith("b") else outputs
        self.outputs = width

    def __call__(self, x: Map) -> Map:
        x = POOLS[self.pooling](x) if self.pooling else x
        before = x
        for name in self.steps:
            if name.endswith("b"):
                x = jnp.concatenate([x, self.units[name](before)], axis=-1)
            else:
                before, x = x, self.units[name](x)
        return x


class Inception(Published):
    """Inception-v3 of 2015: 2048 features of the last pooling, and 1008 logits for the Inception Score."""

    CONFIGURED = False
    SKIPPED = ("*.num_batches_tracked", "AuxLogits.*")

    def __init__(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        inputs, stem = 3, {}
        for name, outputs, size, stride, padding in STEM:
            settings = dict(stride=stride, padding=padding, epsilon=EPSILON, dtype=dtype, rngs=rngs)
            stem[name] = Unit(inputs, outputs, size, **settings)
            inputs = outputs
        self.stem, blocks = nnx.Dict(stem), {}
        for name, branches in BLOCKS.items():
            common = dict(dtype=dtype, rngs=rngs)
            block = {first: Branch(inputs, steps, first=first, **common) for first, steps in branches.items()}
            blocks[name] = nnx.Dict(block)
            inputs = sum(branch.outputs for branch in block.values())
        self.blocks = nnx.Dict(blocks)
        self.width = inputs
        self.classifier = Linear(inputs, 1008, dtype=dtype, rngs=rngs)

    def names(self):
        table: dict[str, Any] = linear_names("classifier", "fc")
        for name in self.stem:
            table |= Unit.names(f"stem.{name}", f"{name}.conv", f"{name}.bn")
        for block, branches in BLOCKS.items():
            for branch, steps in branches.items():
                for step, *_ in steps:
                    ours, theirs = f"blocks.{block}.{branch}.units.{step}", f"{block}.{step}"
                    table |= Unit.names(ours, f"{theirs}.conv", f"{theirs}.bn")
        return table

    def encode(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch 2048"]:
        """Features of the last pooling.

        Args:
          pixels: in [-1, 1], 299 pixels a side (or another size from 75 on).
        """
        if min(pixels.shape[1:3]) < SMALLEST:
            raise UserError(f"Inception needs sides of at least {SMALLEST} pixels, got {list(pixels.shape[1:3])}")
        x = pixels
        for place, name in enumerate(self.stem):
            # The two poolings of the stem stand before the fourth unit and behind the last.
            x = POOLS["shrink"](x) if place == 3 else x
            x = self.stem[name](x)
        x = POOLS["shrink"](x)
        for block, branches in BLOCKS.items():
            x = jnp.concatenate([self.blocks[block][branch](x) for branch in branches], axis=-1)
        return x.astype(jnp.float32).mean(axis=(1, 2))

    def logits(self, features: Float[Array, "batch 2048"], *, bias: bool = True) -> Float[Array, "batch 1008"]:
        """Scores of the classes, from features; the Inception Score is by custom taken without the bias."""
        scores = self.classifier(features)
        return scores if bias else scores - self.classifier.bias.get_value()

    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch 2048"]:
        """Features of pictures in [-1, 1], resized to 299 × 299: bilinear, half-pixel centres, no antialiasing."""
        x = in_range(images)
        if x.shape[1:3] != (SIDE, SIDE):
            x = jax.image.resize(x, (len(x), SIDE, SIDE, 3), "linear", antialias=False)
        return self.encode(x)
