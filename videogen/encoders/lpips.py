"""LPIPS v0.1 (Zhang et al., 2018): a distance of pictures in the features of VGG16 or AlexNet."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.files import Weights
from videogen.encoders.loading import Source, fill
from videogen.encoders.vgg import AlexNet, Vgg16
from videogen.errors import UserError, near_matches
from videogen.nn import l2_normalize, parameter, zeros

TRUNKS = {"vgg": Vgg16, "alex": AlexNet}
"""Name in the ``lpips`` package -> the trunk."""

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
"""From [-1, 1] to the statistics that the trunks were trained with."""

Images = Float[Array, "batch height width 3"]


class Lpips(nnx.Module):
    """``(one, other) -> a distance for every pair`` of pictures in [-1, 1]; nothing trains its weights.

    ``load`` reads the public files themselves: the trunk's (torchvision's ``vgg16-397923af.pth``,
    ``alexnet-owt-7be5be79.pth``) and that of the linear heads (``weights/v0.1/vgg.pth``, ``alex.pth`` of the ``lpips``
    package), as torch archives or safetensors, or one file with the tensors of both.

    Args:
      trunk: a name in ``TRUNKS``.
      dtype: of the convolutions and features; distances are float32.

    Attributes:
      sha256: of the files; empty without weights.
    """

    sha256 = ""

    def __init__(self, trunk: str = "vgg", *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        if trunk not in TRUNKS:
            raise UserError(f"unknown trunk {trunk!r} of LPIPS{near_matches(trunk, TRUNKS)}")
        self.trunk = TRUNKS[trunk](dtype=dtype, rngs=rngs)
        self.heads = nnx.List([parameter(rngs, (width,), (None,), zeros) for width in self.trunk.widths])

    def names(self) -> dict[str, str | Source]:
        """The table of our parameters."""
        heads = {f"heads.{k}": f"lin{k}.model.1.weight" for k in range(len(self.trunk.widths))}
        return {f"trunk.{path}": f"features.{name}" for path, name in self.trunk.names().items()} | heads

    @classmethod
    def structure(cls, trunk: str = "vgg", *, dtype: jnp.dtype = jnp.float32) -> Self:
        """The module with zeros for the weights of its heads: its shapes, without a file."""
        return cls(trunk, dtype=dtype, rngs=nnx.Rngs(0))

    @classmethod
    def load(
        cls, path: str | Path | Sequence[str | Path], *, trunk: str = "vgg", dtype: jnp.dtype = jnp.float32
    ) -> Self:
        """Reads the weights.

        Args:
          path: the files, or a text with their paths and commas between.
          trunk: a name in ``TRUNKS``.
          dtype: as for the class.

        Raises:
          UserError: a file is unreadable, or a tensor is missing, has another shape or, of a head, a negative value.
        """
        network = nnx.eval_shape(lambda: cls.structure(trunk, dtype=dtype))
        names = path.split(",") if isinstance(path, str) else [path] if isinstance(path, Path) else path
        paths = [Path(name) for name in names]
        tensors = {name: array for file in paths for name, array in Weights(file).items()}
        where = " with ".join(map(str, paths))
        network = fill(network, network.names(), tensors, where, skipped=("classifier.*",))
        for k, head in enumerate(network.heads):
            if not jnp.all(head.get_value() >= 0):
                raise UserError(f"{paths[-1]}: lin{k}.model.1.weight must not be negative; is it an LPIPS v0.1 head?")
        hashes = [hashlib.sha256(file.read_bytes()) for file in paths]
        joined = hashes[0] if len(hashes) == 1 else hashlib.sha256(b"".join(h.digest() for h in hashes))
        network.sha256 = joined.hexdigest()
        return network

    def features(self, images: Images) -> list[Float[Array, "batch h w channel"]]:
        """The last ReLU of each stage for pictures in [-1, 1]."""
        graph, state = nnx.split(self.trunk)
        return nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, state))((images - SHIFT) / SCALE)

    def weights(self) -> list[Float[Array, "channel"]]:
        """The linear heads: how much each channel of each stage counts."""
        return [jax.lax.stop_gradient(head.get_value()) for head in self.heads]

    def __call__(self, one: Images, other: Images) -> Float[Array, "batch"]:
        """The distance of every pair.

        Raises:
          UserError: a side is too short for the trunk.
        """
        check_sides(one.shape[1], one.shape[2], self.trunk.smallest)
        distance = jnp.zeros(len(one), jnp.float32)
        features = self.features(jnp.concatenate([one, other]).astype(jnp.float32))
        for layer, weight in zip(features, self.weights(), strict=True):
            ours, theirs = jnp.split(l2_normalize(layer.astype(jnp.float32), 1e-20), 2)
            distance += jnp.mean(jnp.square(ours - theirs) @ weight, axis=(1, 2))
        return distance


def check_sides(height: int, width: int, smallest: int) -> None:
    """Refuses pictures that the pooling of a trunk would leave nothing of.

    Raises:
      UserError: names the shortest side.
    """
    if min(height, width) < smallest:
        raise UserError(f"perceptual losses need sides of at least {smallest} pixels, got {height}×{width}")
