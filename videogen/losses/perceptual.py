"""Perceptual distances between videos: LPIPS over VGG16, and an untrained stand-in for tests."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import encoders
from videogen.encoders.lpips import check_sides
from videogen.encoders.preprocessing import IMAGENET_STATISTICS
from videogen.errors import UserError
from videogen.losses.discriminators import Image, convolve
from videogen.losses.terms import RECONSTRUCTION, Setting, Term
from videogen.nn import l2_normalize
from videogen.ranges import Weight
from videogen.shapes import Video

SMALLEST_SIDE = 16


class PerceptualLoss(encoders.Lpips):
    """LPIPS v0.1 (``encoders.Lpips``) of videos: ``(prediction, target) -> scalar``, frames judged one by one."""

    def __call__(self, prediction: Video, target: Video) -> Float[Array, ""]:
        """Mean LPIPS over the frames of all clips, pixels in [-1, 1].

        Raises:
          UserError: a side is below 16 pixels.
        """
        return _feature_distance(self.features, self.weights(), prediction, target)


class FeatureLoss(nnx.Module):
    """Mean squared difference of what a frozen network makes of prediction and target; no gradient reaches it.

    Args:
      network: an encoder.
    """

    def __init__(self, network: encoders.Published):
        self.network = network

    @property
    def sha256(self) -> str:
        """Of the file of its weights."""
        return self.network.hash

    def __call__(self, prediction: Video, target: Video) -> Float[Array, ""]:
        """Mean over examples and features, pixels in [-1, 1]."""
        graph, state = nnx.split(self.network)
        network = nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, state))
        ours, theirs = jnp.split(self.features(network, jnp.concatenate([prediction, target])), 2)
        return jnp.mean(jnp.square(ours - theirs))

    @staticmethod
    def features(network: encoders.Published, clips: Video) -> Float[Array, "examples features"]:
        """What is compared."""
        raise NotImplementedError


class ResNetLoss(FeatureLoss):
    """Of the logits of ResNet-50 for every frame, resized to 224 × 224 (as MaskGIT's tokenizer is trained)."""

    @staticmethod
    def features(network, clips):
        frames = clips.reshape(-1, *clips.shape[2:]).astype(jnp.float32)
        frames = jax.image.resize(frames, (len(frames), 224, 224, 3), "linear", antialias=False)
        mean, std = (np.asarray(IMAGENET_STATISTICS[name], np.float32) for name in ("mean", "std"))
        return network.logits(((frames + 1) / 2 - mean) / std)


class I3dLoss(FeatureLoss):
    """Of the logits of I3D for every clip of at least 9 frames (as Phenaki's tokenizer is trained, section 2.1)."""

    @staticmethod
    def features(network, clips):
        return network.head(network.maps(network.resized(clips.astype(jnp.float32))))


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
      path: file with the network's weights, or two with a comma between; 'untrained' has none.
      reads: the pass that is compared.
    """

    def __init__(
        self, weight: Weight | Mapping[str, Any], setting: Setting, *, path: str = "", reads: str = RECONSTRUCTION
    ):
        super().__init__(weight, setting)
        self.path, self.reads = path, reads

    def value(self, modules, outputs, key, step, micro):
        compared = self.compared(outputs)
        return modules[self.label](compared.prediction, compared.target), {}


class Lpips(Perceptual):
    """LPIPS with its VGG16 (``PerceptualLoss``)."""

    def frozen(self, structure_only: bool) -> PerceptualLoss:
        if structure_only:
            return PerceptualLoss.structure(dtype=self.setting.dtype)
        if not self.path:
            raise UserError("perceptual loss 'lpips' needs the setting 'path': vgg16-397923af.pth,vgg.pth")
        return PerceptualLoss.load(self.path, dtype=self.setting.dtype)


class FeaturesTerm(Perceptual):
    """Base of the terms that compare what an encoder makes of prediction and target."""

    network: ClassVar[type[encoders.Published]]
    loss: ClassVar[type[FeatureLoss]]

    def frozen(self, structure_only: bool) -> FeatureLoss:
        if structure_only:
            return self.loss(self.network(dtype=self.setting.dtype, rngs=nnx.Rngs(0)))
        if not self.path:
            raise UserError(
                f"perceptual loss {self.network.__name__} needs the setting 'path': the file of its weights"
            )
        return self.loss(self.network.load(self.path, dtype=self.setting.dtype))


class ResNetFeatures(FeaturesTerm):
    """Logits of ResNet-50 (``ResNetLoss``), from torchvision's file."""

    network, loss = encoders.ResNet, ResNetLoss


class I3dFeatures(FeaturesTerm):
    """Logits of I3D (``I3dLoss``): a perceptual loss of motion."""

    network, loss = encoders.I3d, I3dLoss


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
    check_sides(*prediction.shape[2:4], SMALLEST_SIDE)
    # One pass over both videos: every convolution runs once. Joined in time, they stay on the devices they are on.
    frames = jnp.concatenate([prediction, target], axis=1).astype(jnp.float32)
    distance = jnp.zeros((), jnp.float32)
    for layer, weight in zip(features(frames.reshape(-1, *frames.shape[2:])), linear, strict=True):
        layer = l2_normalize(layer.astype(jnp.float32), 1e-20).reshape(*frames.shape[:2], *layer.shape[1:])
        ours, theirs = jnp.split(layer, 2, axis=1)
        distance += jnp.mean(jnp.square(ours - theirs) @ weight)
    return distance
