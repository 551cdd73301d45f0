"""Learned queries gather any number of tokens into a fixed number (Perceiver; Jaegle et al., 2021), with the layers of
Flamingo's resampler (Alayrac et al., 2022): keys and values are the tokens and the queries themselves."""

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError
from videogen.nn import MLP, Attention, LayerNorm, Linear, Stack, angles_at, normal, parameter
from videogen.ranges import Count, OneOf, Positive
from videogen.reducers.base import Reducer, Report, report
from videogen.reducers.tokens import TokenSet

ROTARY = ("none", "keys", "both")
"""What has rotary positions: nothing, the tokens, or the tokens and the queries."""


class PerceiverLayer(nnx.Module):
    """Attention from the queries to the tokens and themselves, then an MLP, both with norms before them."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        mlp_width: int,
        *,
        qk_norm: bool,
        depth: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common = dict(out_scale=(2 * depth) ** -0.5, dtype=dtype, rngs=rngs)
        self.input_norm, self.norm = LayerNorm(width, rngs=rngs), LayerNorm(width, rngs=rngs)
        settings = dict(head_width=head_width, context_width=width, qk_norm="head" if qk_norm else None)
        self.attention = Attention(width, heads, **settings, **common)
        self.mlp_norm, self.mlp = LayerNorm(width, rngs=rngs), MLP(width, mlp_width, kind="gelu", **common)

    def __call__(
        self,
        x: Float[Array, "batch queries width"],
        *,
        inputs: Float[Array, "batch tokens width"],
        key_mask: Bool[Array, "batch keys"] | None,
        rotary: Float[Array, "*batch queries angles"] | None,
        context_rotary: Float[Array, "*batch keys angles"] | None,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch queries width"]:
        """The queries one layer on; keys are the tokens, then the queries."""
        y = self.norm(x)
        context = jnp.concatenate([self.input_norm(inputs), y], axis=1)
        x = x + self.attention(y, context, key_mask=key_mask, rotary=rotary, context_rotary=context_rotary)
        return x + self.mlp(self.mlp_norm(x))


class Perceiver(Reducer):
    """Tokens of any number, and of any grid, become ``queries`` tokens.

    Permuting the tokens together with their positions changes nothing. With rotary positions of queries, these lie on
    a grid of their own that is spread evenly over the places of the tokens, so moving all of those changes nothing.

    Args:
      inputs: channels of the tokens.
      queries: ``(count,)``, or the sides ``(time, height, width)`` of the grid of queries.
      width: channels inside.
      depth: layers.
      heads: attention heads.
      outputs: channels of the result; ``None`` means ``width``.
      head_width: of a head.
      mlp_width: channels inside the MLPs; ``None`` means four times ``width``.
      qk_norm: RMS-normalise queries and keys of every head.
      rotary: what has rotary positions along time, height and width, one of ``ROTARY``.
      query_scale: standard deviation of the fresh queries.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).

    Raises:
      UserError: queries without a grid are to have positions.
    """

    laws = ("fixed_budget",)

    def __init__(
        self,
        inputs: Count,
        queries: tuple[Count, ...],
        width: Count,
        depth: Count,
        heads: Count,
        *,
        outputs: Count | None = None,
        head_width: Count = 64,
        mlp_width: Count | None = None,
        qk_norm: bool = False,
        rotary: Annotated[str, OneOf(*ROTARY)] = "none",
        query_scale: Positive = 0.02,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.sides, self.rotary, self.head_width, self.dtype = tuple(queries), rotary, head_width, dtype
        if rotary == "both" and len(self.sides) != 3:
            raise UserError("rotary positions of queries need a grid of them: queries = (time, height, width)")
        self.outputs = outputs or width
        common = dict(dtype=dtype, rngs=rngs)
        self.input = Linear(inputs, width, axes=(None, "embed"), **common)
        self.queries = parameter(rngs, (self.count, width), (None, "embed"), normal(query_scale))
        sizes = (width, heads, head_width, mlp_width or 4 * width)

        def layer(rngs: nnx.Rngs) -> PerceiverLayer:
            return PerceiverLayer(*sizes, qk_norm=qk_norm, depth=depth, dtype=dtype, rngs=rngs)

        self.stack = Stack(layer, depth, remat=remat, rngs=rngs)
        self.norm = LayerNorm(self.outputs, rngs=rngs)
        self.output = Linear(width, self.outputs, axes=("embed", None), **common)

    @property
    def count(self) -> int:
        """Number of queries."""
        return int(np.prod(self.sides))

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = MappingProxyType({})) -> tuple[TokenSet, Report]:
        batch, seen = tokens.x.shape[0], tokens.mask
        x, places = self(tokens.x, seen, tokens.position), None
        if tokens.position is not None and len(self.sides) == 3:
            places = jnp.broadcast_to(self.places(tokens.position, seen), (batch, self.count, 3))
        found = TokenSet(x, position=places, source=jnp.full((batch, tokens.shape[1]), -1))
        return found, report(tokens, found, self.count)

    def __call__(
        self,
        x: Float[Array, "batch tokens inputs"],
        mask: Bool[Array, "batch tokens"] | None = None,
        position: Float[Array, "*batch tokens 3"] | None = None,
    ) -> Float[Array, "batch queries outputs"]:
        """What the queries find.

        Args:
          x: tokens.
          mask: which exist; ``None``: all.
          position: time, row and column of each, for rotary positions.
        """
        batch, width = len(x), self.queries.shape[1]
        inputs = self.input(x.astype(self.dtype))
        queries = jnp.broadcast_to(self.queries.get_value().astype(self.dtype), (batch, self.count, width))
        key_mask = None if mask is None else jnp.pad(mask, ((0, 0), (0, self.count)), constant_values=True)
        angles = dict(zip(("rotary", "context_rotary"), self._angles(position, mask), strict=True))
        y = self.stack(queries, inputs=inputs, key_mask=key_mask, **angles)
        return self.norm(self.output(y)).astype(jnp.float32)

    def places(
        self, position: Float[Array, "*batch tokens 3"], mask: Bool[Array, "batch tokens"] | None
    ) -> Float[Array, "*batch queries 3"]:
        """The middle of what each query of a grid stands for, when they share out the places of the tokens evenly."""
        low = high = position
        if mask is not None:
            low, high = (jnp.where(mask[..., None], position, end) for end in (jnp.inf, -jnp.inf))
        low, high = low.min(axis=-2, keepdims=True), high.max(axis=-2, keepdims=True)
        index = np.array([*itertools.product(*map(range, self.sides))], np.float32)
        return low + (index + 0.5) / np.array(self.sides, np.float32) * (high - low + 1) - 0.5

    def _angles(self, position: Array | None, mask: Array | None) -> tuple[Array | None, Array | None]:
        """Angles of the queries and of the keys; none without rotary positions."""
        if self.rotary == "none":
            return None, None
        if position is None:
            raise UserError("a resampler with rotary positions needs the positions of its tokens")
        own = self.places(position, mask) if self.rotary == "both" else jnp.zeros((*position.shape[:-2], self.count, 3))
        queries, tokens = (angles_at(p, self.head_width) for p in (own, position))
        # Padding differs from example to example, and with it the places of the queries.
        tokens = jnp.broadcast_to(tokens, (*queries.shape[:-2], *tokens.shape[-2:]))
        return queries, jnp.concatenate([tokens, queries], axis=-2)
