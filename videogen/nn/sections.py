"""The section of a config that says what a transformer is made of, read and built in one place."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videogen import building
from videogen.nn.norms import LayerNorm, RMSNorm, build_norm
from videogen.nn.transformer import Around, Stack, block_stack
from videogen.ranges import Count, Natural, Share


@dataclasses.dataclass(frozen=True)
class OtherNorms:
    """Norms of places that have another one than the branches of a transformer; ``None``: the same.

    Attributes:
      cross: before the cross-attention.
      last: behind the last block.
    """

    cross: str | Mapping[str, Any] | None = None
    last: str | Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class TransformerSection:
    """What a transformer is made of: ``{width, layers, heads, mlp_width, …}``.

    Attributes:
      width: channels of a token.
      layers: blocks.
      heads: attention heads.
      mlp_width: channels inside an MLP.
      norm: before every branch and behind the last block: a name in ``nn.NORMS``, or ``{name, epsilon, …}``.
      norms: ``{cross, last}``: norms of places that have another one (``OtherNorms``).
      qk_norm: RMS-normalise queries and keys of every head.
      rotary: 3-D rotary positions in self-attention.
      position_generator: blocks begin with depthwise convolutions over the grid, as in phenaki-pytorch.
      null_keys: learned slots of the cross-attention that are always visible.
      dropout: rate on the residual branches.
      attention: further settings of ``nn.Attention``.
      mlp: further settings of ``nn.MLP``.
    """

    width: Count
    layers: Natural
    heads: Count
    mlp_width: Count
    norm: str | Mapping[str, Any] = "rms"
    qk_norm: bool = True
    rotary: bool = False
    position_generator: bool = False
    null_keys: Natural = 0
    dropout: Share = 0.0
    attention: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mlp: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    norms: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def head_width(self) -> int:
        """Channels of an attention head."""
        return self.attention.get("head_width") or self.width // self.heads

    def stack(
        self,
        *,
        context_width: int | None = None,
        modulation: str | Mapping[str, Any] | None = None,
        around: Around | None = None,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> Stack:
        """The blocks.

        Args:
          context_width: of the keys of a cross-attention; ``None`` leaves it out.
          modulation: a name in ``nn.MODULATIONS``, ``{name, …}``, or none.
          around: makes the layer of each block (``nn.block_stack``); ``None``: the block itself.
          remat: what the backward pass keeps, a name in ``nn.REMAT_POLICIES``.
          dtype: of the products.
          rngs: random streams.
        """
        cross = {"context_width": context_width, "null_keys": self.null_keys} if context_width else None
        return block_stack(
            self.width,
            self.layers,
            attention={"heads": self.heads, "qk_norm": "head" if self.qk_norm else None, **self.attention},
            mlp={"hidden": self.mlp_width, **self.mlp},
            norm=self.norm,
            cross_norm=self._others.cross,
            cross_attention=cross,
            position_generator="bidirectional" if self.position_generator else None,
            modulation=modulation,
            dropout=self.dropout,
            around=around,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def _others(self) -> OtherNorms:
        return building.build({"norms": OtherNorms}, {"name": "norms", **self.norms}, "section")

    def last_norm(self, *, affine: bool = True, rngs: nnx.Rngs) -> LayerNorm | RMSNorm:
        """The norm behind the last block; without ``affine`` it has no parameters."""
        return build_norm(self._others.last or self.norm, self.width, affine=affine, rngs=rngs)


def read_transformer(section: Mapping[str, Any], **defaults: Any) -> TransformerSection:
    """Reads ``{width, layers, heads, mlp_width, …}``; ``defaults`` hold where the section says nothing.

    Raises:
      UserError: a setting is missing, unknown or out of range.
    """
    return building.build(
        {"transformer": TransformerSection}, {"name": "transformer", **defaults, **section}, "section"
    )
