"""A transformer over noisy patches and the registers that say what they show (FlexTok; Bachmann et al., 2025)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.nn import (
    MODULATIONS,
    Linear,
    TimeEmbedding,
    Transformer,
    TransformerSection,
    lay_out,
    modulate,
    normal,
    parameter,
    sincos_positions,
    zeros,
)

EARLY_LAYER = 1
"""The layer after which hidden states can be compared with those of a frozen encoder (REPA), counted from 0."""

PATCH, REGISTER = 0, 1
"""Kinds of tokens, each with its own shift, scale and gate in every block."""


class Denoised(NamedTuple):
    """What the network makes of noisy patches.

    Attributes:
      values: the prediction for every patch, float32.
      early: its tokens behind the layer ``EARLY_LAYER``, or the last one there is.
    """

    values: Float[Array, "batch patches area"]
    early: Float[Array, "batch patches width"]


class RegisterDenoiser(nnx.Module):
    """Predicts something of noisy patches; patches and registers are one sequence, and everything sees everything.

    The time sets shift, scale and gate of every branch (adaLN-zero), apart for patches and registers. A fresh network
    gives zeros. Patches have fixed places, registers a learned place in their row.

    Args:
      places: patches along time, height and width.
      area: numbers in a patch.
      registers: how many there are.
      section: the transformer.
      order_scale: standard deviation of the fresh places of registers.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    last_layer = ("head",)

    def __init__(
        self,
        places: Sequence[int],
        area: int,
        registers: int,
        section: TransformerSection,
        *,
        order_scale: float = 0.02,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.places, self.dtype, width = tuple(places), dtype, section.width
        self.patches = Linear(area, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.order = parameter(rngs, (registers, width), (None, "embed"), normal(order_scale))
        self.time = TimeEmbedding(width, rngs=rngs)
        kinds = {"name": "zero", "kinds": len((PATCH, REGISTER))}
        stack = section.stack(modulation=kinds, remat=remat, dtype=dtype, rngs=rngs)
        norm = section.last_norm(affine=False, rngs=rngs)
        self.tower = Transformer(stack, norm, taps=(min(EARLY_LAYER, section.layers - 1),))
        self.norm_modulation = MODULATIONS["zero"](width, 2, rngs=rngs)
        self.head = Linear(width, area, axes=("embed", None), initializer=zeros, rngs=rngs)

    def __call__(
        self,
        noisy: Float[Array, "batch patches area"],
        t: Float[Array, "batch"],
        registers: Float[Array, "batch registers width"],
    ) -> Denoised:
        """The prediction for patches at times ``t`` in [0, 1]; all registers are seen."""
        patches = self.patches(noisy)
        count, width = patches.shape[1:]
        patches = patches + jnp.asarray(sincos_positions(self.places, width), patches.dtype)
        registers = registers.astype(self.dtype) + self.order.get_value().astype(self.dtype)
        kinds = np.repeat([PATCH, REGISTER], [count, registers.shape[1]])
        condition = self.time(t)[:, None]
        tokens = jnp.concatenate([patches, registers], axis=1)
        tokens, _, tapped = self.tower.trunk(tokens, condition=condition, group_of=kinds)
        (early,) = tapped.values()
        shift, scale = lay_out(self.norm_modulation(condition), patches)
        values = self.head(modulate(self.tower.finish(tokens[:, :count]), shift, scale))
        return Denoised(values.astype(jnp.float32), early[:, :count])
