"""Classes of long clips in linear time: state-space layers over the tokens that a slower copy of the network finds
worth it (Selective S4; Wang et al., CVPR 2023)."""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.language.towers import unit_rows
from videogen.language.vision_encoders import Features, build_encoder, in_seconds
from videogen.nn import LearnedPositions, Linear
from videogen.nn.state_space import HalvingStack
from videogen.ranges import Count, Natural, OneOf, Share
from videogen.reducers.base import Reducer
from videogen.reducers.learned_selection import LearnedSelection
from videogen.reducers.selection import TokenSelection
from videogen.reducers.tokens import TokenSet, of_grid
from videogen.shapes import VideoShape

SELECTIONS = ("all", "learned", "random")
"""Which tokens the state spaces see: all, those that a learned selector scores highest, or random ones (a baseline)."""


class SelectiveStateSpace(nnx.Module):
    """A vision encoder, a choice of its tokens, halving state-space layers, their mean, and a linear classifier.

    Args:
      clip: the shape of the clips.
      features: what the frozen part gives that the encoder reads; ``None``: it reads pixels.
      encoder: ``{name, …}`` of ``vision_encoders.VISION_ENCODERS``.
      width: channels of the first layer; each layer halves them.
      pool: side of the windows of a frame's places whose mean is a token.
      selection: one of ``SELECTIONS``.
      share: of the tokens that are selected.
      hidden: channels inside of the selector.
      layers: state-space layers, each of which halves the length.
      states: complex numbers of a channel's state space.
      dropout: rate in every layer.
      embed: width of the space that windows of clips are compared in.
      classes: number of labels.
    """

    def __init__(
        self,
        clip: VideoShape,
        classes: int,
        *,
        features: Features | None = None,
        encoder: Mapping[str, Any],
        width: Count,
        pool: Count = 1,
        selection: Annotated[str, OneOf(*SELECTIONS)] = "learned",
        share: Share = 0.5,
        hidden: Count = 128,
        layers: Natural = 3,
        states: Count = 32,
        dropout: Share = 0.0,
        embed: Count = 128,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.encoder, self.pool = build_encoder(encoder, clip, features, remat=remat, **common), pool
        time, height, columns = self.encoder.sides
        if height % pool or columns % pool:
            raise UserError(f"windows of {pool} × {pool} do not tile frames of {height} × {columns} places: model.pool")
        self.grid = (time, height // pool, columns // pool)
        self.tokens = time * self.grid[1] * self.grid[2]
        self.budget = self.tokens if selection == SELECTIONS[0] else max(1, round(share * self.tokens))
        self.linear = Linear(self.encoder.channels, width, axes=(None, "embed"), **common)
        self.places = LearnedPositions(self.grid[1] * self.grid[2], width, rngs=rngs)
        self.times = LearnedPositions(time, width, rngs=rngs)
        self.selector = selector_of(selection, width, self.budget, hidden=hidden, **common)
        self.stack = HalvingStack(width, layers=layers, states=states, dropout=dropout, **common)
        self.classifier = Linear(self.stack.outputs, classes, axes=("embed", None), bias=True, rngs=rngs)
        self.projection = Linear(self.stack.outputs, embed, axes=("embed", None), bias=True, rngs=rngs)

    @property
    def guided(self) -> bool:
        """Whether the choice of tokens reads what a momentum copy makes of them."""
        return self.selector is not None and "teacher" in self.selector.needs

    def read(self, inputs: Array, seconds: Float[Array, "batch frames"]) -> TokenSet:
        """The tokens of whole clips on their grid, in raster order.

        Args:
          inputs: pixels in [-1, 1], or what a frozen part gives.
          seconds: of the frames.
        """
        x = self.encoder(inputs, in_seconds(seconds, self.encoder.centres))
        batch, (time, height, columns), side = len(x), self.grid, self.pool
        x = x.reshape(batch, time, height, side, columns, side, -1).mean((3, 5)) if side > 1 else x
        x = self.linear(x) + self.places(height * columns).reshape(height, columns, -1)
        return of_grid(x + self.times(time)[:, None, None])

    def guide(self, tokens: TokenSet) -> Float[Array, "batch tokens width"]:
        """What the first layer makes of every token before lengths are halved; the copy's guides the choice."""
        first = self.stack.layers[0] if len(self.stack.layers) else None
        return tokens.x if first is None else tokens.x + first.space(first.norm(tokens.x))

    def choose(
        self, tokens: TokenSet, guide: Float[Array, "batch tokens width"] | None, key: Array | None = None
    ) -> TokenSet:
        """The tokens that are looked at, in raster order.

        Args:
          tokens: all tokens of clips.
          guide: of the momentum copy, where the choice is ``guided``.
          key: one of each clip; of the learned choice in training alone.
        """
        if self.selector is None:
            return tokens
        return self.selector.reduce(tokens, {"teacher": guide, "key": key})[0]

    def pooled(self, tokens: TokenSet, key: Array | None = None) -> Float[Array, "batch outputs"]:
        """The mean over what the layers leave of the tokens; ``key`` is of the dropout."""
        x, there = self.stack(tokens.x, tokens.mask, key=key)
        x = jnp.where(there[..., None], x.astype(jnp.float32), 0.0)
        return x.sum(1) / jnp.maximum(there.sum(1, keepdims=True), 1)

    def logits(self, pooled: Float[Array, "batch outputs"]) -> Float[Array, "batch classes"]:
        """Of the classes."""
        return self.classifier(pooled).astype(jnp.float32)

    def embedded(self, pooled: Float[Array, "batch outputs"]) -> Float[Array, "batch embed"]:
        """Unit vectors that windows of one clip share."""
        return unit_rows(self.projection(jax.nn.gelu(pooled)))


def selector_of(selection: str, width: int, budget: int, *, hidden: int, **common: Any) -> Reducer | None:
    """What chooses ``budget`` tokens of ``width`` channels; ``None``: all are looked at."""
    if selection == "learned":
        return LearnedSelection(width, budget, hidden=hidden, **common)
    return TokenSelection(budget, rule="random") if selection == "random" else None
