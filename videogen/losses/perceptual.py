"""Perceptual distances between videos: LPIPS over VGG16, and an untrained stand-in for tests."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from videogen.errors import UserError
from videogen.losses.discriminators import Image, convolve
from videogen.losses.terms import Setting, Term
from videogen.nn import l2_normalize
from videogen.ranges import Weight
from videogen.shapes import Video

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
"""LPIPS v0.1 scaling layer: from [-1, 1] to the statistics VGG was trained with."""

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of each stage's convolutions; features are its last ReLU, then comes 2×2 max pooling."""

SMALLEST_SIDE = 2 ** (len(VGG16) - 1)


def lpips_tensors() -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor ``PerceptualLoss`` reads."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs, index = 3, 0
    for stage, widths in enumerate(VGG16):
        for width in widths:
            shapes[f"features.{index}.weight"] = (width, inputs, 3, 3)
            shapes[f"features.{index}.bias"] = (width,)
            inputs, index = width, index + 2  # a ReLU has a place of its own in torchvision's numbering …
        shapes[f"lin{stage}.model.1.weight"] = (1, widths[-1], 1, 1)
        index += 1  # … and so has the pooling
    return shapes


class PerceptualLoss(nnx.Module):
    """LPIPS v0.1 with the VGG16 trunk (Zhang et al., 2018): ``(prediction, target) -> scalar``.

    Weights are constants: no gradient reaches them. Frames are judged one by one and averaged. ``load`` reads
    a safetensors file with PyTorch layouts and the names of the two public files, torchvision's VGG16 and the
    LPIPS linear layers; other tensors in it (``classifier.…``) are ignored:

      * ``features.{i}.weight [outputs, inputs, 3, 3]`` and ``features.{i}.bias [outputs]`` for
        i = 0, 2 (64 channels), 5, 7 (128), 10, 12, 14 (256), 17, 19, 21 and 24, 26, 28 (512);
      * ``lin{k}.model.1.weight [1, channels, 1, 1]`` for k = 0 … 4, non-negative.

    Args:
      tensors: those tensors by name.
      sha256: hash of the file they came from.
      dtype: dtype of the convolutions and features; distances are float32.
    """

    def __init__(self, tensors: Mapping[str, Float[np.ndarray, "..."]], sha256: str, *, dtype: jnp.dtype = jnp.float32):
        self.sha256, self.dtype = sha256, dtype
        tensors = {name: jnp.asarray(tensors[name], jnp.float32) for name in lpips_tensors()}
        convolutions = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("features.")})
        self.kernels = nnx.List(
            [nnx.Param(jnp.transpose(tensors[f"features.{i}.weight"], (2, 3, 1, 0))) for i in convolutions]
        )
        self.biases = nnx.List([nnx.Param(tensors[f"features.{i}.bias"]) for i in convolutions])
        self.linear = nnx.List([nnx.Param(tensors[f"lin{k}.model.1.weight"].reshape(-1)) for k in range(len(VGG16))])

    @classmethod
    def structure(cls, *, dtype: jnp.dtype = jnp.float32) -> "PerceptualLoss":
        """The module with zeros for weights: its shapes, without a file."""
        zeros = {name: np.zeros(shape, np.float32) for name, shape in lpips_tensors().items()}
        return cls(zeros, sha256="", dtype=dtype)

    @classmethod
    def load(cls, path: str | Path, *, dtype: jnp.dtype = jnp.float32) -> "PerceptualLoss":
        """Reads the weights from a safetensors file.

        Raises:
          UserError: the file is unreadable, lacks a tensor, or a tensor has another shape or a negative
            linear weight.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
            tensors = load_safetensors(content)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the LPIPS weights {path}: {error}; give a safetensors file") from error
        expected = lpips_tensors()
        missing = [name for name in expected if name not in tensors]
        if missing:
            names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise UserError(f"{path} lacks the tensors {names}; see PerceptualLoss for the names it reads")
        for name, shape in expected.items():
            if tensors[name].shape != shape:
                raise UserError(f"{path}: {name} has shape {list(tensors[name].shape)}, not {list(shape)}")
            if name.startswith("lin") and not (tensors[name] >= 0).all():
                raise UserError(f"{path}: {name} must not be negative; is it an LPIPS v0.1 linear layer?")
        return cls(tensors, hashlib.sha256(content).hexdigest(), dtype=dtype)

    def features(self, images: Image) -> list[Image]:
        """The last ReLU of each VGG16 stage for images in [-1, 1]."""
        x = ((images - SHIFT) / SCALE).astype(self.dtype)
        layers = iter(zip(self.kernels, self.biases, strict=True))
        outputs = []
        for stage, widths in enumerate(VGG16):
            x = _max_pool(x) if stage else x
            for _ in widths:
                kernel, bias = (jax.lax.stop_gradient(p.get_value()) for p in next(layers))
                x = jax.nn.relu(convolve(x, kernel, padding=1) + bias.astype(x.dtype))
            outputs.append(x)
        return outputs

    def __call__(self, prediction: Video, target: Video) -> Float[Array, ""]:
        """Mean LPIPS over the frames of all clips, pixels in [-1, 1].

        Raises:
          UserError: a side is below 16 pixels.
        """
        linear = [jax.lax.stop_gradient(weight.get_value()) for weight in self.linear]
        return _feature_distance(self.features, linear, prediction, target)


class UntrainedFeatures(nnx.Module):
    """An UNTRAINED stand-in for ``PerceptualLoss``: a small pyramid of fixed random convolutions.

    For tests and debug runs, where no weights are at hand. Its values are not LPIPS and must not be reported.
    It draws the same weights always and has no parameters.
    """

    WIDTHS = (8, 16, 32, 32, 32)

    def __init__(self, *, dtype: jnp.dtype = jnp.float32):
        self.dtype = dtype

    def features(self, images: Image) -> list[Image]:
        """Five scales of random features."""
        generator = np.random.default_rng(0)
        x, outputs = images.astype(self.dtype), []
        for width in self.WIDTHS:
            inputs = x.shape[-1]
            kernel = generator.normal(size=(3, 3, inputs, width)) * (2 / (9 * inputs)) ** 0.5
            x = _max_pool(x) if outputs else x
            x = jax.nn.relu(convolve(x, jnp.asarray(kernel, jnp.float32), padding=1))
            outputs.append(x)
        return outputs

    def __call__(self, prediction: Video, target: Video) -> Float[Array, ""]:
        """Mean distance over the frames of all clips, pixels in [-1, 1]; sides of at least 16 pixels."""
        linear = [np.full(width, 1 / width, np.float32) for width in self.WIDTHS]
        return _feature_distance(self.features, linear, prediction, target)


class Perceptual(Term):
    """Distance in the features of a frozen network, of prediction and target.

    Args:
      path: safetensors file with the network's weights; 'untrained' has none.
    """

    def __init__(self, weight: Weight | Mapping[str, Any], setting: Setting, *, path: str = ""):
        super().__init__(weight, setting)
        self.path = path

    def value(self, modules, outputs, key, step, micro):
        compared = outputs.passes[self.reads]
        return modules[self.label](compared.prediction, compared.target), {}


class Lpips(Perceptual):
    """LPIPS with its VGG16 (``PerceptualLoss``)."""

    def frozen(self, structure_only: bool) -> PerceptualLoss:
        if structure_only:
            return PerceptualLoss.structure(dtype=self.setting.dtype)
        if not self.path:
            raise UserError("perceptual loss 'lpips' needs the setting 'path': a safetensors file with its weights")
        return PerceptualLoss.load(self.path, dtype=self.setting.dtype)


class Untrained(Perceptual):
    """The UNTRAINED stand-in for LPIPS (``UntrainedFeatures``), for debug runs; it has no weights and no ``path``."""

    def frozen(self, structure_only: bool) -> UntrainedFeatures:
        return UntrainedFeatures(dtype=self.setting.dtype)


def _max_pool(x: Image) -> Image:
    """2×2 maxima, an odd last row or column left out."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def _feature_distance(
    features: Callable[[Image], list[Image]],
    linear: list[Float[Array, "channel"]],
    prediction: Video,
    target: Video,
) -> Float[Array, ""]:
    """Σ over layers of the mean weighted squared difference of features of unit length, mean over frames."""
    if min(prediction.shape[2:4]) < SMALLEST_SIDE:
        height, width = prediction.shape[2:4]
        raise UserError(f"perceptual losses need sides of at least {SMALLEST_SIDE} pixels, got {height}×{width}")
    # One pass over both videos: every convolution runs once. Joined in time, they stay on the devices they are on.
    frames = jnp.concatenate([prediction, target], axis=1).astype(jnp.float32)
    distance = jnp.zeros((), jnp.float32)
    for layer, weight in zip(features(frames.reshape(-1, *frames.shape[2:])), linear, strict=True):
        layer = l2_normalize(layer.astype(jnp.float32), 1e-20).reshape(*frames.shape[:2], *layer.shape[1:])
        ours, theirs = jnp.split(layer, 2, axis=1)
        distance += jnp.mean(jnp.square(ours - theirs) @ weight)
    return distance
