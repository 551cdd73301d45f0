"""ResNet-50 and its deeper relatives (He et al., 2015), from torchvision's file or a folder of the hub."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.convolutions import Map, Unit, pool
from videogen.encoders.loading import Published, linear_names
from videogen.encoders.preprocessing import IMAGENET_STATISTICS, Preprocessing
from videogen.nn import Linear

REDUCTION = 4


class Bottleneck(nnx.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolutions beside a skip path."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        inner, common = outputs // REDUCTION, dict(dtype=dtype, rngs=rngs)
        self.first = Unit(inputs, inner, (1, 1), **common)
        self.second = Unit(inner, inner, (3, 3), stride=stride, padding=1, **common)
        self.third = Unit(inner, outputs, (1, 1), active=False, **common)
        skipped = inputs != outputs or stride != 1
        self.skip = Unit(inputs, outputs, (1, 1), stride=stride, active=False, **common) if skipped else None

    def __call__(self, x: Map) -> Map:
        y = self.third(self.second(self.first(x)))
        return jax.nn.relu(y + (x if self.skip is None else self.skip(x)))


class ResNet(Published):
    """Four stages of bottlenecks.

    Args:
      stem: channels of the first convolution.
      widths: channels of each stage.
      depths: blocks of each stage.
      classes: of the classifier; 0 leaves it out.
    """

    CONFIGURED = False
    PREFIXES = ("", "resnet.")
    SKIPPED = ("*.num_batches_tracked",)

    def __init__(
        self,
        *,
        stem: int = 64,
        widths: Sequence[int] = (256, 512, 1024, 2048),
        depths: Sequence[int] = (3, 4, 6, 3),
        classes: int = 1000,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.stem = Unit(3, stem, (7, 7), stride=2, padding=3, **common)
        inputs, stages = stem, []
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            strides = [1 if number == 0 else 2] + [1] * (depth - 1)
            blocks = [Bottleneck(inputs if k == 0 else width, width, s, **common) for k, s in enumerate(strides)]
            stages.append(nnx.List(blocks))
            inputs = width
        self.stages, self.width, self.widths = nnx.List(stages), inputs, tuple(widths)
        self.classifier = Linear(inputs, classes, **common) if classes else None
        self.preprocessing = Preprocessing(256, 224, "linear", **IMAGENET_STATISTICS)

    @classmethod
    def sizes(cls, weights: Mapping[str, np.ndarray]):
        """The sizes that the names and shapes of the file show; those of ResNet-50 if they are not a ResNet's."""
        firsts = ("conv1.weight", "embedder.embedder.convolution.weight", "resnet.embedder.embedder.convolution.weight")
        stem = next((len(weights[name]) for name in firsts if name in weights), 64)
        patterns = ("layer{}.{}.bn3.weight", "encoder.stages.{}.layers.{}.layer.2.normalization.weight")
        for pattern, offset in ((patterns[0], 1), (patterns[1], 0), (f"resnet.{patterns[1]}", 0)):
            widths, depths = [], []
            while (name := pattern.format(len(depths) + offset, 0)) in weights:
                widths.append(len(weights[name]))
                depths.append(next(k for k in range(1000) if pattern.format(len(depths) + offset, k) not in weights))
            if depths:
                heads = [len(weights[n]) for n in ("fc.bias", "classifier.1.bias") if n in weights]
                return dict(stem=stem, widths=widths, depths=depths, classes=heads[0] if heads else 0)
        return {}

    def names(self):
        hub = "embedder.embedder"
        table = Unit.names("stem", f"conv1|{hub}.convolution", f"bn1|{hub}.normalization")
        table |= linear_names("classifier", "/fc|/classifier.1")
        for s, blocks in enumerate(self.stages):
            for k in range(len(blocks)):
                ours, own, hub = f"stages.{s}.{k}", f"layer{s + 1}.{k}", f"encoder.stages.{s}.layers.{k}"
                for n, unit in enumerate(("first", "second", "third")):
                    layer = f"{hub}.layer.{n}"
                    convolution, norm = (
                        f"{own}.conv{n + 1}|{layer}.convolution",
                        f"{own}.bn{n + 1}|{layer}.normalization",
                    )
                    table |= Unit.names(f"{ours}.{unit}", convolution, norm)
                skip = [
                    f"{own}.downsample.{n}|{hub}.shortcut.{m}" for n, m in ((0, "convolution"), (1, "normalization"))
                ]
                table |= Unit.names(f"{ours}.skip", *skip)
        return table

    def maps(self, pixels: Float[Array, "batch height width 3"]) -> list[Map]:
        """What each stage gives for preprocessed pictures."""
        x, found = pool(self.stem(pixels), (3, 3), kind="max", stride=2, padding=1), []
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
            found.append(x)
        return found

    def encode(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """The mean of the last map of preprocessed pictures."""
        return self.maps(pixels)[-1].astype(jnp.float32).mean(axis=(1, 2))

    def logits(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch classes"]:
        """Scores of the classes of preprocessed pictures."""
        return self.classifier(self.encode(pixels))

    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """The mean of the last map of pictures in [-1, 1]."""
        return self.encode(self.preprocessing(images))
