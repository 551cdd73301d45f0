"""I3D (Carreira and Zisserman, 2017), trained on Kinetics-400: the network of FVD.

FVD is defined on the TF-Hub module ``deepmind/i3d-kinetics-400/1``. Its port to PyTorch (TorchScript or a state dict)
and files with TensorFlow's names are read. Files of other I3D checkpoints have the same names and give other distances.
"""

from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.convolutions import Convolve, Map, Unit, pool
from videogen.encoders.files import Weights
from videogen.encoders.loading import Published, Source, fill, linear_names
from videogen.encoders.preprocessing import in_range
from videogen.errors import UserError

EPSILON = 1e-3
SIDE, SHORTEST = 224, 9

STEM = (
    ("Conv3d_1a_7x7", 64, 7, 2),
    ("MaxPool3d_2a_3x3", (1, 3, 3), (1, 2, 2)),
    ("Conv3d_2b_1x1", 64, 1, 1),
    ("Conv3d_2c_3x3", 192, 3, 1),
    ("MaxPool3d_3a_3x3", (1, 3, 3), (1, 2, 2)),
)
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of a block: one 1×1×1; 1×1×1 and 3×3×3; 1×1×1 and 3×3×3; one 1×1×1 behind a max pooling."""

BRANCHES = (("b0", "Branch_0/Conv3d_0a_1x1", 1), ("b1a", "Branch_1/Conv3d_0a_1x1", 1))
BRANCHES += (("b1b", "Branch_1/Conv3d_0b_3x3", 3), ("b2a", "Branch_2/Conv3d_0a_1x1", 1))
BRANCHES += (("b2b", "Branch_2/Conv3d_0b_3x3", 3), ("b3b", "Branch_3/Conv3d_0b_1x1", 1))
"""Of every unit of a block the name in PyTorch's port, in TensorFlow, and the side of its kernel."""


def tf1_bilinear(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """Weights of TensorFlow 1's bilinear resizing along one side: no half-pixel centres, no antialiasing."""
    places = np.arange(outputs) * (inputs / outputs)
    low = np.minimum(np.floor(places).astype(int), inputs - 1)
    share = (places - low).astype(np.float32)
    weights, rows = np.zeros((outputs, inputs), np.float32), np.arange(outputs)
    np.add.at(weights, (rows, low), 1 - share)
    np.add.at(weights, (rows, np.minimum(low + 1, inputs - 1)), share)
    return weights


class Block(nnx.Module):
    """Four branches side by side."""

    def __init__(self, inputs: int, widths: tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs):
        units, before = {}, dict(b1b=widths[1], b2b=widths[3])
        for (name, _, side), outputs in zip(BRANCHES, widths, strict=True):
            settings = dict(padding="same", epsilon=EPSILON, dtype=dtype, rngs=rngs)
            units[name] = Unit(before.get(name, inputs), outputs, (side,) * 3, **settings)
        self.units = nnx.Dict(units)
        self.outputs = widths[0] + widths[2] + widths[4] + widths[5]

    def __call__(self, x: Map) -> Map:
        unit, pooled = self.units, pool(x, (3, 3, 3), kind="max", stride=1, padding="same")
        branches = [unit["b0"](x), unit["b1b"](unit["b1a"](x)), unit["b2b"](unit["b2a"](x)), unit["b3b"](pooled)]
        return jnp.concatenate(branches, axis=-1)


class I3d(Published):
    """I3D on RGB: ``clips -> [batch, 400]`` logits, averaged over time, before the softmax."""

    CONFIGURED = False
    SKIPPED = ("*.num_batches_tracked",)

    def __init__(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.width, inputs = 400, 3
        stem, blocks = {}, {}
        for name, *rest in STEM:
            if name.startswith("Conv"):
                outputs, side, stride = rest
                settings = dict(stride=stride, padding="same", epsilon=EPSILON, dtype=dtype, rngs=rngs)
                stem[name] = Unit(inputs, outputs, (side,) * 3, **settings)
                inputs = outputs
        for name, widths in BLOCKS.items():
            if name.startswith("Mixed"):
                blocks[name] = Block(inputs, widths, dtype=dtype, rngs=rngs)
                inputs = blocks[name].outputs
        self.stem, self.blocks = nnx.Dict(stem), nnx.Dict(blocks)
        self.logits = Convolve(inputs, self.width, (1, 1, 1), dtype=dtype, rngs=rngs)

    def names(self):
        table: dict[str, Any] = linear_names("logits", "logits.conv3d")
        for leaf, theirs in (("kernel", "w"), ("bias", "b")):
            table[f"logits.{leaf}"] += f"|Logits/Conv3d_0c_1x1/conv_3d/{theirs}"
        for name in self.stem:
            table |= _unit_names(f"stem.{name}", name, name)
        for block in self.blocks:
            for ours, theirs, _ in BRANCHES:
                # One unit of the published graph has a slip in its name.
                slip = block == "Mixed_5b" and ours == "b2b"
                theirs = "Branch_2/Conv3d_0a_3x3" if slip else theirs
                table |= _unit_names(f"blocks.{block}.units.{ours}", f"{block}.{ours}", f"{block}/{theirs}")
        return table

    @classmethod
    def load(cls, directory: str | Path, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs | None = None) -> Self:
        """Reads a TorchScript archive, a state dict or a safetensors file, wherever in it the network stands."""
        weights = Weights(directory)
        tensors = {name.removesuffix(":0"): array for name, array in weights.items()}
        anchors = ("Conv3d_1a_7x7.conv3d.weight", "Conv3d_1a_7x7/conv_3d/w")
        prefixes = [name.removesuffix(anchor) for name in tensors for anchor in anchors if name.endswith(anchor)]
        network = nnx.eval_shape(lambda: cls(dtype=dtype, rngs=nnx.Rngs(0)))
        network = fill(network, network.names(), tensors, weights.path, prefixes=prefixes or [""], skipped=cls.SKIPPED)
        network.hash = weights.hash()
        return network

    def maps(self, pixels: Float[Array, "batch time height width 3"]) -> Map:
        """What the last block gives for clips in [-1, 1]."""
        x = pixels
        for name, *rest in STEM:
            x = self.stem[name](x) if name.startswith("Conv") else _shrink(x, *rest)
        for name, rest in BLOCKS.items():
            x = self.blocks[name](x) if name.startswith("Mixed") else _shrink(x, *rest)
        return x

    def head(self, maps: Map) -> Float[Array, "batch 400"]:
        """Logits averaged over time, from what the last block gives."""
        x = self.logits(pool(maps, (2, 7, 7), kind="mean", stride=1))
        return x.astype(jnp.float32)[:, :, 0, 0].mean(axis=1)

    def __call__(self, clips: Float[Array, "batch time height width 3"]) -> Float[Array, "batch 400"]:
        """The features of FVD.

        Args:
          clips: in [-1, 1] (or ``uint8``), of any size, at least 9 frames: 9 to 16 give one place in time, 17 to 24
            two. Frames are resized to 224 × 224 as TensorFlow 1 does it; a protocol with another rule resizes before.

        Raises:
          UserError: too few frames, or values outside the range.
        """
        return self.head(self.maps(self.resized(in_range(clips))))

    def resized(self, clips: Float[Array, "batch time height width 3"]) -> Float[Array, "batch time 224 224 3"]:
        """Frames of the network's size, from clips long enough for it."""
        if clips.ndim != 5 or clips.shape[1] < SHORTEST:
            raise UserError(f"I3D needs clips of at least {SHORTEST} frames, got {list(clips.shape)}")
        if clips.shape[2:4] == (SIDE, SIDE):
            return clips
        (rows, columns), exact = (tf1_bilinear(n, SIDE) for n in clips.shape[2:4]), jax.lax.Precision.HIGHEST
        x = jnp.einsum("yh,bthwc->btywc", rows, clips, precision=exact)
        return jnp.einsum("xw,bthwc->bthxc", columns, x, precision=exact)


def _shrink(x: Map, size: tuple[int, ...], stride: tuple[int, ...]) -> Map:
    return pool(x, size, kind="max", stride=stride, padding="same")


def _unit_names(ours: str, torch: str, tensorflow: str) -> dict[str, Any]:
    """Both names of every parameter of a unit; TensorFlow's batch norms have no scale."""
    table = Unit.names(ours, f"{torch}.conv3d", f"{torch}.bn")
    table[f"{ours}.convolution.kernel"] += f"|{tensorflow}/conv_3d/w"
    for leaf, theirs in (("mean", "moving_mean"), ("variance", "moving_variance"), ("shift", "beta")):
        table[f"{ours}.norm.{leaf}"] += f"|{tensorflow}/batch_norm/{theirs}"
    return table | {f"{ours}.norm.scale": Source((f"{torch}.bn.weight",), default=1.0)}
