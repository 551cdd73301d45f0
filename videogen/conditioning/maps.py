"""Several maps of a frame as one embedding: grouped convolutions and a gate (SignViP, section 3.2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError
from videogen.nn import Convolution
from videogen.ranges import Count

COLOURS = 3
"""Channels of a map."""


class MapEncoder(nnx.Module):
    """The maps of every frame, frame by frame, to ``conditions · channels[-1]`` channels at a fraction of their size.

    Each condition has convolutions of its own (one group each of grouped ones). A gate sees the features of all of them
    and gives one weight in (0, 1) for each condition and place, which multiplies the features of that condition.

    Args:
      conditions: maps of a frame, ``COLOURS`` channels each, one behind the other.
      channels: of each convolution, of one condition.
      strides: of each, along height and width.
      gate_width: channels between the two convolutions of the gate (ours: those of one condition).
    """

    def __init__(
        self,
        conditions: Count = 2,
        channels: Sequence[Count] = (16, 32, 96, 256),
        strides: Sequence[Count] = (1, 2, 2, 2),
        *,
        gate_width: Count | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(channels) != len(strides):
            raise UserError(f"the encoder of maps has {len(channels)} channels and {len(strides)} strides: one of each")
        self.conditions, self.stride = conditions, 1
        for stride in strides:
            self.stride *= stride
        self.width = conditions * channels[-1]
        common = dict(dtype=dtype, rngs=rngs)

        def tower() -> nnx.List:
            inputs = (COLOURS, *channels[:-1])
            sizes = zip(inputs, channels, strides, strict=True)
            return nnx.List([Convolution(a, b, (1, 3, 3), stride=(1, s, s), **common) for a, b, s in sizes])

        self.towers = nnx.List([tower() for _ in range(conditions)])
        inner = gate_width or channels[-1]
        self.gate = nnx.List(
            [Convolution(self.width, inner, (1, 3, 3), **common), Convolution(inner, conditions, (1, 7, 7), **common)]
        )

    def features(self, maps: Float[Array, "batch time height width channels"]) -> list[Float[Array, "batch ..."]]:
        """What the convolutions of each condition give, before the gate."""
        found = []
        for x, layers in zip(jnp.split(maps, self.conditions, axis=-1), self.towers, strict=True):
            for layer in layers:
                x = jax.nn.silu(layer(x))
            found.append(x)
        return found

    def weights(self, features: Float[Array, "batch time rows columns width"]) -> Float[Array, "batch ... conditions"]:
        """The weight of each condition at every place, in (0, 1), float32."""
        first, last = self.gate
        return jax.nn.sigmoid(last(jax.nn.silu(first(features))).astype(jnp.float32))

    def __call__(
        self,
        maps: Float[Array, "batch time height width channels"],
        dropped: Bool[Array, "batch conditions"] | None = None,
    ) -> Float[Array, "batch time rows columns width"]:
        """The embedding, float32.

        Args:
          maps: in [0, 1], 0 where nothing is drawn.
          dropped: the conditions of each example that are left out: their features are 0, also for the gate.
        """
        found = self.features(maps)
        if dropped is not None:
            found = [jnp.where(dropped[:, i, None, None, None, None], 0, x) for i, x in enumerate(found)]
        weights = self.weights(jnp.concatenate(found, axis=-1))
        return jnp.concatenate([x.astype(jnp.float32) * weights[..., i, None] for i, x in enumerate(found)], axis=-1)
