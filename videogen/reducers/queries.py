"""Queries that come from the tokens: a key frame and what is new, and clusters with their layout (R2, R4)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.errors import UserError
from videogen.nn import MLP, Attention, LayerNorm, Linear
from videogen.nn.resizing import resize_area
from videogen.ranges import Count, OneOf
from videogen.reducers.base import Reducer, Report, report
from videogen.reducers.clusters import CHOICES, KMeans
from videogen.reducers.selection import NONE
from videogen.reducers.tokens import TokenSet, unit


class ConditionalQueries(Reducer):
    """The first frame of every chunk stays; each other frame becomes a few queries, the pooled first frame, that have
    read it (TDC, Temporal Dynamic Context, 2025).

    The queries attend to the tokens of their frame and, where given, to ``aux["text"]`` ``[batch, words, inputs]`` with
    ``aux["text_mask"]``; they are of length 1, as published, so what is left is what changed.

    Args:
      inputs: channels of the tokens.
      side: the queries of a frame are ``side × side``.
      frames: of a chunk; they must divide the frames of the clip.
      heads: of the attention.
      text: the text must be given.
    """

    laws = ("fixed_budget",)
    needs_grid = True

    def __init__(
        self,
        inputs: Count,
        *,
        side: Count = 4,
        frames: Count = 8,
        heads: Count = 8,
        text: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.side, self.frames, self.needs = side, frames, ("text",) * text
        self.norm, self.context_norm = LayerNorm(inputs, rngs=rngs), LayerNorm(inputs, rngs=rngs)
        self.attention = Attention(inputs, heads, context_width=inputs, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(inputs, rngs=rngs)
        self.mlp = MLP(inputs, 4 * inputs, kind="gelu", dtype=dtype, rngs=rngs)

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        (time, height, width), batch = self.grid_of(tokens), len(tokens.x)
        if time % self.frames:
            raise UserError(f"{time} frames do not divide into chunks of {self.frames}; change frames")
        given, each, count = tokens.filled(), height * width, time // self.frames
        if self.frames == 1:
            return given, report(tokens, given, time * each)
        x = given.x.reshape(batch, count, self.frames, each, -1)
        still = x[:, :, :1]
        queries = resize_area(
            still.astype(jnp.float32).reshape(batch * count, 1, height, width, -1), (1, self.side, self.side)
        ).reshape(batch, count, 1, self.side**2, -1)
        others = x[:, :, 1:]
        queries = jnp.broadcast_to(queries, (*others.shape[:3], *queries.shape[3:]))
        flat = queries.reshape(-1, *queries.shape[3:]).astype(x.dtype)
        context = others.reshape(-1, each, x.shape[-1])
        mask = given.mask.reshape(batch, count, self.frames, each)[:, :, 1:].reshape(-1, each)
        if aux.get("text") is not None:
            repeats = count * (self.frames - 1)
            context = jnp.concatenate([context, jnp.repeat(aux["text"], repeats, axis=0)], axis=1)
            words = jnp.ones(aux["text"].shape[:2], bool) if aux.get("text_mask") is None else aux["text_mask"]
            mask = jnp.concatenate([mask, jnp.repeat(words, repeats, axis=0)], axis=1)
        seen = mask.at[:, 0].set(mask[:, 0] | ~mask.any(1))
        y = flat + self.attention(self.norm(flat), self.context_norm(context), key_mask=seen)
        y = unit(y + self.mlp(self.mlp_norm(y))).astype(x.dtype).reshape(*others.shape[:3], self.side**2, -1)
        return self._laid(given, still, y, (time, height, width), tokens)

    def _laid(self, given: TokenSet, still: Array, y: Array, grid: tuple, tokens: TokenSet) -> tuple[TokenSet, Report]:
        """Chunk after chunk the first frame, then the queries of the others."""
        (time, height, width), batch = grid, len(given.x)
        count, each, few = time // self.frames, height * width, self.side**2
        new = y.reshape(batch, count, (self.frames - 1) * few, y.shape[-1])
        x = jnp.concatenate([still.reshape(batch, count, each, -1), new], axis=2)

        def frames(values: Array) -> Array:
            return values.reshape(batch, count, self.frames, each, *values.shape[2:])

        exists = frames(given.mask)
        mask = jnp.concatenate([exists[:, :, 0], jnp.repeat(exists.any(3)[:, :, 1:], few, axis=2)], axis=2)
        places = resize_area(
            frames(given.position)[:, :, 1:].reshape(-1, 1, height, width, 3), (1, self.side, self.side)
        ).reshape(batch, count, (self.frames - 1) * few, 3)
        position = jnp.concatenate([frames(given.position)[:, :, 0], places], axis=2)
        size = jnp.concatenate(
            [jnp.ones((batch, count, each)), jnp.full((batch, count, (self.frames - 1) * few), each / few)], axis=2
        )
        length = each + (self.frames - 1) * few
        own = jnp.arange(count)[:, None] * length + jnp.arange(each)
        at = jnp.concatenate([own[:, None], jnp.full((count, self.frames - 1, each), -1)], axis=1).reshape(-1)
        x, size = jnp.where(mask[..., None], x, 0), jnp.where(mask, size, 0.0)
        flat = [v.reshape(batch, count * length, *v.shape[3:]) for v in (x, mask, position, size)]
        source = jnp.where(given.mask, jnp.broadcast_to(at, given.mask.shape), -1)
        found = TokenSet(*flat, source)
        return found, report(tokens, found, count * length)


LAYOUTS = ("occupancy", "indices")
"""What an MLP reads of the places of clusters: a map of each, or the numbers of the clusters of all places."""


class LayoutAttention(nnx.Module):
    """Clusters with where their members are: ``softmax((C Wq)(C Wk)ᵀ / √d) (M Wv)`` (VQToken, 2025).

    With ``occupancy`` M is an MLP of the map of each cluster over the places of the clip, 1 where a token is its
    member, so that renumbering the clusters renumbers the result and changes nothing else. With ``indices`` one MLP
    reads the number of the cluster of every place and gives all rows of M, as published; it depends on the numbering.

    Args:
      width: channels of the clusters.
      places: original tokens of a clip.
      hidden: channels inside the MLP.
      outputs: channels of the result.
      heads: of the attention; 8 as published.
      layout: one of ``LAYOUTS``.
      clusters: how many; needed by ``indices``.
    """

    def __init__(
        self,
        width: int,
        places: int,
        hidden: int,
        outputs: int,
        *,
        heads: int = 1,
        layout: str = "occupancy",
        clusters: int | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if width % heads or outputs % heads:
            raise UserError(f"{heads} heads do not divide widths of {width} and {outputs}; change heads")
        common = dict(dtype=dtype, rngs=rngs)
        self.places, self.heads, self.layout = places, heads, layout
        self.query = Linear(width, width, axes=("embed", None), bias=False, **common)
        self.key = Linear(width, width, axes=("embed", None), bias=False, **common)
        self.inner = Linear(places, hidden, axes=(None, "mlp"), **common)
        rows = clusters if layout == "indices" else 1
        self.outer = Linear(hidden, rows * width, axes=("mlp", "embed"), **common)
        self.value = Linear(width, outputs, axes=("embed", None), bias=False, **common)

    def motion(self, source: Int[Array, "batch originals"], count: int) -> Float[Array, "batch clusters width"]:
        """M, a row of each cluster."""
        if source.shape[1] != self.places:
            raise UserError(
                f"layouts of {source.shape[1]} tokens do not fit the {self.places} that they were built for"
            )
        read = layout_of(source, count) if self.layout == "occupancy" else source.astype(jnp.float32)
        return self.outer(jax.nn.gelu(self.inner(read))).reshape(len(source), count, -1)

    def __call__(self, clusters: TokenSet) -> Float[Array, "batch clusters outputs"]:
        """What each cluster says, with its layout."""
        given = clusters.filled()

        def split(x: Array) -> Array:
            return x.reshape(*x.shape[:2], self.heads, -1)

        query, key = split(self.query(given.x)), split(self.key(given.x))
        value = split(self.value(self.motion(given.source, clusters.shape[1])))
        scores = jnp.einsum("bkhd,bjhd->bhkj", query, key) / query.shape[-1] ** 0.5
        scores = jnp.where(given.mask[:, None, None], scores.astype(jnp.float32), -1e30)
        found = jnp.einsum("bhkj,bjhd->bkhd", jax.nn.softmax(scores, axis=-1), value)
        return jnp.where(given.mask[..., None], found.reshape(*found.shape[:2], -1), 0.0)


def layout_of(source: Int[Array, "batch originals"], clusters: int) -> Float[Array, "batch clusters originals"]:
    """1 where an original token is a member of a cluster."""
    return (source[:, None] == jnp.arange(clusters)[None, :, None]).astype(jnp.float32)


class TokenHash(Reducer):
    """A clip as the clusters of its tokens, each with where its members are (VQToken, 2025): ``KMeans``, then
    ``LayoutAttention``.

    Args:
      inputs: channels of the tokens.
      places: tokens of a clip.
      budget: clusters, at most where there are ``choices``.
      choices: numbers of clusters of which every clip takes one (``KMeans``).
      rule: for the number of clusters.
      rounds: of k-means.
      hidden: channels inside the MLP of layouts.
      outputs: channels of the result; ``None``: ``inputs``.
      heads: of the attention.
      layout: one of ``LAYOUTS``.
    """

    laws = ("fixed_budget", "conserved_mass")

    def __init__(
        self,
        inputs: Count,
        places: Count,
        *,
        budget: Count = 32,
        choices: Sequence[Count] = (),
        rule: Annotated[str, OneOf(*CHOICES)] = "silhouette",
        rounds: Count = 20,
        hidden: Count = 256,
        outputs: Count | None = None,
        heads: Count = 8,
        layout: Annotated[str, OneOf(*LAYOUTS)] = "occupancy",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.clusters = KMeans(min(budget, places), rounds=rounds, choices=choices, rule=rule)
        sizes, common = (inputs, places, hidden, outputs or inputs), dict(dtype=dtype, rngs=rngs)
        self.attention = LayoutAttention(*sizes, heads=heads, layout=layout, clusters=self.clusters.budget, **common)

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        found, said = self.clusters.reduce(tokens, aux)
        return dataclasses.replace(found, x=self.attention(found).astype(tokens.x.dtype)), said
