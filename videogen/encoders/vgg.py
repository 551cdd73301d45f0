"""VGG16 (Simonyan and Zisserman, 2014) and AlexNet (Krizhevsky, 2014) as features of pictures, torchvision's files."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from videogen.encoders.convolutions import Convolve, Map, pool
from videogen.encoders.loading import Published, linear_names


class Trunk(Published):
    """Convolutions with ReLUs, in stages; a stage may begin with a max pooling.

    Attributes:
      widths: channels of the features of each stage.
    """

    CONFIGURED = False
    PREFIXES = ("features.", "")
    SKIPPED = ("classifier.*",)

    STAGES: ClassVar[tuple]
    """Of each stage the convolutions ``(place in torchvision's list, outputs, size, stride, padding)``."""

    POOLING: ClassVar[tuple[int, int]]
    """Window and stride of the max pooling."""

    POOLED: ClassVar[tuple[int, ...]]
    """The stages that begin with it."""

    smallest: ClassVar[int]
    """Shortest side in pixels."""

    def __init__(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.dtype = dtype
        inputs, layers = 3, []
        for stage in self.STAGES:
            for _, outputs, size, stride, padding in stage:
                settings = dict(stride=stride, padding=padding, dtype=dtype, rngs=rngs)
                layers.append(Convolve(inputs, outputs, (size, size), **settings))
                inputs = outputs
        self.layers = nnx.List(layers)
        self.widths = tuple(stage[-1][1] for stage in self.STAGES)

    def names(self):
        places = [place for stage in self.STAGES for place, *_ in stage]
        return {k: v for i, place in enumerate(places) for k, v in linear_names(f"layers.{i}", str(place)).items()}

    def __call__(self, pixels: Map) -> list[Map]:
        """The last ReLU of every stage, for normalised pixels ``[batch, height, width, 3]``."""
        x, layers, outputs = pixels.astype(self.dtype), iter(self.layers), []
        window, stride = self.POOLING
        for number, stage in enumerate(self.STAGES):
            if number in self.POOLED:
                x = pool(x, (window, window), kind="max", stride=stride)
            for _ in stage:
                x = jax.nn.relu(next(layers)(x))
            outputs.append(x)
        return outputs


def _vgg_stages() -> tuple:
    stages, place = [], 0
    for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        # A ReLU has a place of its own in torchvision's numbering, and so has the pooling.
        stages.append(tuple((place + 2 * i, width, 3, 1, 1) for i in range(count)))
        place += 2 * count + 1
    return tuple(stages)


class Vgg16(Trunk):
    """Five stages of two or three convolutions, of 64, 128, 256, 512 and 512 channels."""

    STAGES, POOLING, POOLED, smallest = _vgg_stages(), (2, 2), (1, 2, 3, 4), 16


class AlexNet(Trunk):
    """Five convolutions, of 64, 192, 384, 256 and 256 channels."""

    STAGES = (
        ((0, 64, 11, 4, 2),),
        ((3, 192, 5, 1, 2),),
        ((6, 384, 3, 1, 1),),
        ((8, 256, 3, 1, 1),),
        ((10, 256, 3, 1, 1),),
    )
    POOLING, POOLED, smallest = (3, 2), (1, 2), 31
