"""What towers of clips have in common, and unit vectors."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

NONE: Mapping[str, Any] = MappingProxyType({})


def unit_rows(x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Vectors of length 1, float32, with a gradient everywhere; one of length 0 stays."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


class VideoTower(nnx.Module):
    """Base of the towers of clips.

    Attributes:
      tokens: of a clip behind its last layer.
      needs: arrays of a batch that it reads beside the clips.
    """

    tokens: int
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(
        self,
        inputs: Array,
        seconds: Float[Array, "batch frames"],
        exists: Bool[Array, "batch frames"] | None = None,
        key: Array | None = None,
        beside: Mapping[str, Array] = NONE,
    ) -> Float[Array, "batch embed"]:
        """The embedding of clips; it has no unit length.

        Args:
          inputs: pixels in [-1, 1], or what a frozen part gives.
          seconds: of the frames.
          exists: which frames there are; ``None``: all.
          key: one of each clip, for dropout; ``None``: none.
          beside: what it ``needs``.
        """
        raise NotImplementedError

    def sums(self, inputs: Array) -> dict[str, Array]:
        """What ``update`` needs of the inputs of a step; nothing where nothing is measured."""
        return {}

    def update(self, sums: Mapping[str, Array]) -> None:
        """Takes what a step has measured in."""
