"""C3D (Tran et al., 2015), fine-tuned on UCF-101: the classifier of the Inception Score of videos."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.convolutions import Convolve, pool
from videogen.encoders.loading import Published, Source, linear_names
from videogen.encoders.preprocessing import in_range
from videogen.errors import UserError
from videogen.nn import Linear

CONVOLUTIONS = {
    "conv1": 64,
    "conv2": 128,
    "conv3a": 256,
    "conv3b": 256,
    "conv4a": 512,
    "conv4b": 512,
    "conv5a": 512,
    "conv5b": 512,
}
"""Name -> channels; behind all but those that end in a comes a max pooling."""

FRAMES, SIDE = 16, 112
RESIZED = (128, 171)
MEAN = np.array([90.25, 97.66, 101.41], np.float32)
"""Of blue, green and red in [0, 255], rounded; the published mean is one of each pixel and frame."""


class C3d(Published):
    """``clips of 16 frames -> [batch, classes]`` logits.

    Args:
      classes: 101, or 487 before the fine-tuning.
    """

    CONFIGURED = False
    PREFIXES = ("", "module.")

    def __init__(self, *, classes: int = 101, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        inputs, layers, common = 3, {}, dict(dtype=dtype, rngs=rngs)
        for name, outputs in CONVOLUTIONS.items():
            layers[name] = Convolve(inputs, outputs, (3, 3, 3), padding=1, **common)
            inputs = outputs
        self.layers, self.classes = nnx.Dict(layers), classes
        # The first of the linear layers sees the whole last map, so it is a convolution without padding.
        self.fc6 = Convolve(inputs, 4096, (1, 4, 4), **common)
        self.fc7, self.fc8 = Linear(4096, 4096, **common), Linear(4096, classes, **common)

    @classmethod
    def sizes(cls, weights):
        found = [len(array) for name, array in weights.items() if name.endswith("fc8.bias")]
        return {"classes": found[0]} if found else {}

    def names(self):
        table = {"fc6.kernel": Source(("fc6.weight",), sides=(1, 4, 4)), "fc6.bias": "fc6.bias"}
        for name in self.layers:
            table |= linear_names(f"layers.{name}", name)
        return table | linear_names("fc7", "fc7") | linear_names("fc8", "fc8")

    def encode(self, pixels: Float[Array, "batch 16 112 112 3"]) -> Float[Array, "batch classes"]:
        """Logits for blue, green and red less their mean.

        Raises:
          UserError: clips of another size; the linear layers have no other.
        """
        if pixels.shape[1:] != (FRAMES, SIDE, SIDE, 3):
            raise UserError(f"C3D takes clips of {FRAMES}×{SIDE}×{SIDE} pixels, got {list(pixels.shape[1:])}")
        x = pixels
        for name, layer in self.layers.items():
            x = jax.nn.relu(layer(x))
            if name.endswith("a"):
                continue
            size = (1, 2, 2) if name == "conv1" else (2, 2, 2)
            padding = (0, 1, 1) if name == "conv5b" else 0
            x = pool(x, size, kind="max", padding=padding)
        x = jax.nn.relu(self.fc6(x)).reshape(len(x), -1)
        return self.fc8(jax.nn.relu(self.fc7(x))).astype(jnp.float32)

    def __call__(
        self, clips: Float[Array, "batch 16 height width 3"], mean: Float[np.ndarray, "*shape 3"] = MEAN
    ) -> Float[Array, "batch classes"]:
        """Logits of clips: resized to 128 × 171, the middle 112 × 112, blue first, less the mean.

        Args:
          clips: in [-1, 1] (or ``uint8``).
          mean: of blue, green and red in [0, 255]; the published one is an array ``[16, 112, 112, 3]``.
        """
        x = in_range(clips)
        x = jax.image.resize(x, (*x.shape[:2], *RESIZED, 3), "linear", antialias=False)
        top, left = ((n - SIDE) // 2 for n in RESIZED)
        x = x[:, :, top : top + SIDE, left : left + SIDE, ::-1]
        return self.encode((x + 1) * 127.5 - mean)
