"""What a token is worth, by name: ``score(tokens, aux) -> [batch, tokens]``, the higher the sooner it stays (X3).

External models stand behind what ``aux`` holds: the embedding of a question, attention mass, the probability that a
frame helps. Scores that are learned are those of ``LearnedSelection`` and ``nn.depth_mixture``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.reducers.tokens import TokenSet, unit

Score = Callable[[TokenSet, Mapping[str, Any]], Float[Array, "batch tokens"]]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A rule.

    Attributes:
      score: the rule.
      needs: names in ``aux`` that it reads.
      grid: the tokens must be a whole grid.
    """

    score: Score
    needs: tuple[str, ...] = ()
    grid: bool = False


def _norm(tokens: TokenSet, aux: Mapping[str, Any]) -> Array:
    """The length of the vector (D-CoDe)."""
    return jnp.linalg.norm(tokens.x.astype(jnp.float32), axis=-1)


def _question(tokens: TokenSet, aux: Mapping[str, Any]) -> Array:
    """The cosine of ``aux["joint"]`` ``[batch, tokens, width]`` and ``aux["question"]`` (Free Video-LLM, PPLLaVA)."""
    return jnp.einsum("bnd,bd->bn", unit(aux["joint"]), unit(aux["question"]))


def _indicator(tokens: TokenSet, aux: Mapping[str, Any]) -> Array:
    """The cosine of the tokens themselves and ``aux["indicator"]`` ``[batch, width]`` (VideoStreaming)."""
    return jnp.einsum("bnd,bd->bn", unit(tokens.x), unit(aux["indicator"]))


def _change(tokens: TokenSet, aux: Mapping[str, Any]) -> Array:
    """1 - the cosine with the token at the same place a frame before; 2, the most, in the first frame (TimeChat-Online,
    GRT)."""
    if tokens.grid is None:
        raise UserError("the score 'change' compares frames on their whole grid, and some tokens are gone here")
    batch, time = len(tokens.x), tokens.grid[0]
    x = unit(tokens.x).reshape(batch, time, -1, tokens.x.shape[-1])
    later = 1 - (x[:, 1:] * x[:, :-1]).sum(-1)
    return jnp.concatenate([jnp.full_like(x[:, :1, :, 0], 2.0), later], axis=1).reshape(batch, -1)


def _frames(tokens: TokenSet, aux: Mapping[str, Any]) -> Array:
    """``aux["weights"]`` ``[batch, frames]`` of the frame of each token, such as the probability of yes (QuoTA)."""
    frame = tokens.filled().position[..., 0]
    weights = jnp.asarray(aux["weights"])
    return jnp.take_along_axis(weights, jnp.clip(jnp.round(frame), 0, weights.shape[1] - 1).astype(jnp.int32), axis=1)


def _given(name: str) -> Score:
    """What ``aux`` says of every token."""
    return lambda tokens, aux: jnp.asarray(aux[name])


SCORERS = {
    "norm": Scorer(_norm),
    "question": Scorer(_question, ("joint", "question")),
    "indicator": Scorer(_indicator, ("indicator",)),
    "change": Scorer(_change, grid=True),
    "pixel_change": Scorer(_given("difference"), ("difference",)),
    "attention": Scorer(_given("mass"), ("mass",)),
    "frames": Scorer(_frames, ("weights",)),
    "score": Scorer(_given("score"), ("score",)),
}
"""Name -> rule. ``pixel_change`` is ``aux["difference"]``, ``attention`` the mass that a token gets from probe queries,
``aux["mass"]`` (HoliTom, VideoScan), ``score`` any other ``aux["score"]``, all ``[batch, tokens]``."""
