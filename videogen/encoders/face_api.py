"""The face recogniser of face-api (npm ``@vladmandic/face-api``, MIT): dlib's ResNet of 128 dimensions (King, 2017).

Read from the folder ``model`` of the unpacked package. Two pictures of one person have embeddings less than about 0.6
apart.
"""

import hashlib
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image

from videogen.encoders.convolutions import Convolve, Map, pool
from videogen.encoders.loading import fill, lean
from videogen.encoders.tfjs import read_manifest
from videogen.errors import UserError
from videogen.nn import Linear, ones, parameter, zeros

MANIFEST = "face_recognition_model-weights_manifest.json"
SIDE = 150
MEAN = np.array([122.782, 117.001, 104.298], np.float32)
"""Of red, green and blue."""

BLOCKS = (
    *("conv32_1", "conv32_2", "conv32_3"),
    *("conv64_down", "conv64_1", "conv64_2", "conv64_3"),
    *("conv128_down", "conv128_1", "conv128_2"),
    *("conv256_down", "conv256_1", "conv256_2", "conv256_down_out"),
)
"""Published names: the number is that of the channels, and those with ``down`` halve the sides."""

TEMPLATE = SIDE / 2 + SIDE / 112 * (
    np.array([(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]) - (56, 64)
)
"""Where the five landmarks come to lie in the aligned face, as x and y: the common places in a square of 112 pixels
(ArcFace; Deng et al., 2019), brought to 150 pixels and moved up by 8 of 112. The shift is ours: with it the embeddings
of the 22 faces in the package's photos are 0.65 apart on average, without it 0.52."""


class Scaled(nnx.Module):
    """A convolution whose outputs are multiplied and shifted by channel."""

    def __init__(self, inputs: int, outputs: int, side: int, *, stride: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs):
        padding = "same" if stride == 1 else "valid"
        self.convolution = Convolve(
            inputs, outputs, (side, side), stride=stride, padding=padding, dtype=dtype, rngs=rngs
        )
        self.scale, self.shift = (parameter(rngs, (outputs,), (None,), value) for value in (ones, zeros))

    def __call__(self, x: Map) -> Map:
        return self.convolution(x) * self.scale.get_value() + self.shift.get_value()

    @staticmethod
    def names(ours: str, theirs: str) -> dict[str, str]:
        """The part of a table; kernels end in ``/w``, which says that they have our layout."""
        return {
            f"{ours}.convolution.kernel": f"{theirs}/conv/w",
            f"{ours}.convolution.bias": f"{theirs}/conv/bias",
            f"{ours}.scale": f"{theirs}/scale/weights",
            f"{ours}.shift": f"{theirs}/scale/biases",
        }


class Residual(nnx.Module):
    """Two convolutions beside a skip path; where they halve the sides it is pooled, and zeros make up for channels."""

    def __init__(self, inputs: int, outputs: int, *, halves: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.first = Scaled(inputs, outputs, 3, stride=2 if halves else 1, **common)
        self.second, self.halves = Scaled(outputs, outputs, 3, **common), halves

    def __call__(self, x: Map) -> Map:
        y = self.second(jax.nn.relu(self.first(x)))
        if self.halves:
            x = pool(x, (2, 2), kind="mean")
            # Without padding the convolution may give one place less than the pooling.
            y = jnp.pad(y, [(0, 0), *((0, a - b) for a, b in zip(x.shape[1:3], y.shape[1:3], strict=True)), (0, 0)])
            x = jnp.pad(x, [(0, 0)] * 3 + [(0, y.shape[-1] - x.shape[-1])])
        return jax.nn.relu(x + y)


class FaceApi(nnx.Module):
    """``(picture, landmarks) -> an embedding of 128 numbers``, of the face aligned to ``TEMPLATE``.

    Attributes:
      name: of the recogniser, as protocols have it.
      hash: SHA-256 of the manifest and its values; empty for random weights.
    """

    name, hash = "face_api", ""

    def __init__(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        common, inputs, blocks = dict(dtype=dtype, rngs=rngs), 32, {}
        self.stem = Scaled(3, inputs, 7, stride=2, **common)
        for name in BLOCKS:
            outputs = int(name.removeprefix("conv").partition("_")[0])
            blocks[name] = Residual(inputs, outputs, halves="down" in name, **common)
            inputs = outputs
        self.blocks = nnx.Dict(blocks)
        self.last = Linear(inputs, 128, bias=False, **common)

    def names(self) -> dict[str, str]:
        """The table of our parameters."""
        table = Scaled.names("stem", "conv32_down") | {"last.kernel": "fc/w"}
        for name in BLOCKS:
            table |= Scaled.names(f"blocks.{name}.first", f"{name}/conv1")
            table |= Scaled.names(f"blocks.{name}.second", f"{name}/conv2")
        return table

    @classmethod
    def load(cls, folder: str | Path, *, dtype: jnp.dtype = jnp.float32) -> Self:
        """Reads the weights.

        Args:
          folder: the package, unpacked, or its folder ``model``.
          dtype: of the convolutions.

        Raises:
          UserError: the manifest is missing or damaged, or is that of another network.
        """
        places = [place / MANIFEST for place in (Path(folder), Path(folder) / "model", Path(folder) / "package/model")]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise UserError(f"{folder} has no {MANIFEST}; unpack the npm package @vladmandic/face-api there")
        tensors = {_ours(name): array for name, array in read_manifest(path).items()}
        network = nnx.eval_shape(lambda: lean(cls(dtype=dtype, rngs=nnx.Rngs(0))))
        network = fill(network, network.names(), tensors, path)
        network.hash = hashlib.sha256(
            path.read_bytes() + b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
        ).hexdigest()
        return network

    def encode(self, faces: UInt8[Array, "batch 150 150 3"]) -> Float[Array, "batch 128"]:
        """Embeddings of aligned faces, pixels of 0 to 255."""
        x = (faces.astype(jnp.float32) - MEAN) / 255
        x = pool(jax.nn.relu(self.stem(x)), (3, 3), kind="max", stride=2)
        for name in BLOCKS:
            x = self.blocks[name](x)
        return self.last(x.astype(jnp.float32).mean(axis=(1, 2)))

    def embedder(self):
        """``(picture uint8 [height, width, 3], landmarks [5, 2]) -> [128]``, compiled once."""
        graph, state = nnx.split(self)
        run = jax.jit(lambda state, faces: nnx.merge(graph, state).encode(faces))

        def embed(picture: UInt8[np.ndarray, "height width 3"], landmarks: Float[np.ndarray, "5 2"]):
            return np.asarray(run(state, jnp.asarray(aligned(picture, landmarks)[None])))[0]

        return embed


def _ours(name: str) -> str:
    return "fc/w" if name == "fc" else name.replace("/filters", "/w")


def similarity(points: Float[np.ndarray, "n 2"], goal: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "2 3"]:
    """The rotation, scale and shift ``[A | b]`` that bring points nearest to others, in the sum of squares.

    Raises:
      UserError: the points are all one.
    """
    points, goal = np.asarray(points, np.float64), np.asarray(goal, np.float64)
    x, y = points - points.mean(0), goal - goal.mean(0)
    size = (x**2).sum()
    if not size > 0:
        raise UserError("the landmarks of a face are all at one place")
    a = (x * y).sum() / size
    b = (x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum() / size
    turned = np.array([[a, -b], [b, a]])
    return np.concatenate([turned, (goal.mean(0) - turned @ points.mean(0))[:, None]], axis=1)


def aligned(
    picture: UInt8[np.ndarray, "height width 3"], landmarks: Float[np.ndarray, "5 2"]
) -> UInt8[np.ndarray, "150 150 3"]:
    """The face with these landmarks, turned upright and brought to one size, bilinear; black beyond the picture."""
    whole = np.concatenate([similarity(landmarks, TEMPLATE), [[0, 0, 1]]])
    back = np.linalg.inv(whole)[:2]
    image = Image.fromarray(np.ascontiguousarray(picture))
    size = (SIDE, SIDE)
    found = image.transform(size, Image.Transform.AFFINE, tuple(back.ravel()), Image.Resampling.BILINEAR)
    return np.asarray(found)
