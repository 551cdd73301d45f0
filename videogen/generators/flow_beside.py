"""A trained diffusion transformer that is told the condensed tokens of its video by a branch beside its blocks (To2V of
TokensGen, 2025)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import reducers
from videogen.conditioning import ChunkTokens, Conditioning
from videogen.denoisers import ORIGIN, Beside, Prepared, TokenBranch
from videogen.errors import UserError
from videogen.generators.chunks import Slots, middles
from videogen.generators.flow import FlowTransformer
from videogen.nn import MicroBatch, angles_at, named_key, read_transformer
from videogen.ranges import Count, Weight
from videogen.shapes import Latents, TokenGrid
from videogen.tokens import Tokens


class FlowBesideTokens(FlowTransformer):
    """A ``FlowTransformer`` over windows of one chunk of latent frames, and what condenses chunks to tokens.

    The resampler sees the transformer's own tokens of a chunk's latents, so that it needs no network below it. In
    training a window begins anywhere in the clip's chunks but the last, and is told the tokens that cover it. The
    transformer begins with a trained one (``start_from.run``) and is frozen by path, the branch as a copy of its
    projections and modulations (``start_from.paths``). Text is a part of the sequence (``text = "joint"``).

    Args:
      channels: of the latents.
      grid: ``(time, height, width)`` of a training clip in latents: whole chunks, two or more.
      base: settings of the ``FlowTransformer``: ``{transformer, patch, text, times, noise, …}``.
      resampler: reducer config ``{name, …}``, without its queries.
      queries: ``(time, height, width)`` of the tokens of a chunk.
      chunk: latent frames of a chunk, and of a window.
      scale: how much the branch counts; 0 is the transformer without it.
      context_width: width of the text features.
      classes: as for ``FlowTransformer``.
      vocabulary: empty: tokens are of continuous latents.
    """

    def __init__(
        self,
        channels: int,
        grid: Sequence[int],
        base: Mapping[str, Any],
        resampler: Mapping[str, Any],
        queries: tuple[Count, Count, Count],
        chunk: Count,
        *,
        scale: Weight = 1.0,
        context_width: int | None = None,
        classes: int | None = None,
        vocabulary: Sequence[int] = (),
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        made_with = dict(remat=remat, dtype=dtype, rngs=rngs)
        about = dict(vocabulary=vocabulary, context_width=context_width, classes=classes)
        super().__init__(channels, (chunk, *grid[1:]), **base, **about, **made_with)
        if not self.joint or context_width is None or self.patch[0] != 1 or not self.rotary:
            raise UserError(
                "tokens beside a transformer need text in its sequence (base.text=joint), rotary positions and patches "
                "of one latent frame"
            )
        if grid[0] % chunk or grid[0] < 2 * chunk:
            raise UserError(
                f"windows of {chunk} latent frames are cut from clips of two or more chunks of as many, got "
                f"{grid[0]}; set data.clip.frames"
            )
        self.chunk, self.scale, self.queries = chunk, scale, tuple(queries)
        self.slots = Slots(chunk, self.queries[0])
        self.resampler = reducers.build(resampler, inputs=self.width, queries=self.queries, **made_with)
        section = read_transformer(base["transformer"], norm="layer", rotary=True)
        modulation = base.get("modulation", "zero")
        self.branch = TokenBranch(self.resampler.outputs, section, modulation=modulation, **made_with)

    beside_tokens = True

    # Condensing ------------------------------------------------------------------------------------------------------

    def condense(self, normalised: Latents) -> Float[Array, "batch slots height width embed"]:
        """The tokens of normalised latents of whole chunks, chunk after chunk."""
        return reducers.condense(normalised, self.chunk, self.patch, self.embed, self.resampler)

    def beside(self, told: ChunkTokens) -> Beside:
        """What a window that begins with the latent frame ``told.at`` is told."""
        grid, (_, high, wide) = self.tokens(self.grid), self.queries
        index = self.slots.index(told.at, told.count)
        seen = jnp.take_along_axis(told.features, index[:, :, None, None, None], axis=1)
        rows, columns = np.meshgrid(middles(high, grid.height), middles(wide, grid.width), indexing="ij")
        place = jnp.asarray(np.stack([rows, columns], axis=-1))
        times = jnp.broadcast_to(self.slots.times(told.at)[:, :, None, None, None], (*index.shape, high, wide, 1))
        position = jnp.concatenate([times, jnp.broadcast_to(place, (*times.shape[:-1], 2))], axis=-1)
        flat = (len(index), index.shape[1] * high * wide)
        exists = jnp.broadcast_to((told.count > 0)[:, None], flat)
        return Beside(seen.reshape(*flat, -1), exists, position.reshape(*flat, 3), told.at)

    # The network -----------------------------------------------------------------------------------------------------

    def prepare(self, conditioning: Conditioning) -> Prepared:
        prepared, told = super().prepare(conditioning), conditioning.beside
        return prepared if told is None else dataclasses.replace(prepared, beside=self.beside(told))

    def _joint(
        self,
        x: Float[Array, "batch time height width embed"],
        condition: Float[Array, "batch groups embed"],
        rotary: Float[np.ndarray, "tokens angles"] | None,
        prepared: Prepared,
        key: jax.Array | None,
        layers: Callable[..., Any] | None,
    ) -> Float[Array, "batch time height width embed"]:
        told = prepared.beside
        if told is None or self.scale == 0:
            return super()._joint(x, condition, rotary, prepared, key, layers)
        sequence, call = self._sequence(x, condition, rotary, prepared)
        grid = TokenGrid(*x.shape[1:4])
        moved = jnp.zeros((len(x), 1, 3)).at[..., 0].set(told.at[:, None] + ORIGIN)
        video = angles_at(_places(grid) + moved, self.head_width)
        text = jnp.zeros((len(x), sequence.shape[1] - grid.tokens, video.shape[-1]))
        own = angles_at(told.position + jnp.array([ORIGIN, 0, 0]), self.head_width)
        y = self.branch(
            self.stack,
            sequence,
            told.tokens,
            **call,
            scale=self.scale,
            angles=(jnp.concatenate([text, video], axis=1), own),
            # Of frames at several times the mean of their embeddings.
            branch_condition=self._for_blocks(condition.mean(axis=1, keepdims=True)),
            exists=told.exists,
        )
        return y[:, -grid.tokens :].reshape(x.shape)

    # Training --------------------------------------------------------------------------------------------------------

    def loss(
        self,
        tokens: Tokens,
        conditioning: Conditioning,
        key: jax.Array,
        *,
        train: bool = True,
        micro: MicroBatch | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """That of ``FlowTransformer`` over a window that begins anywhere in the clip, told the clip's tokens."""
        values, grid = tokens.only.values, tokens.layout.only.grid
        latents, micro = values.reshape(len(values), *grid.shape, -1), micro or MicroBatch()

        def draw(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.randint(key, shape, 0, grid.time - self.chunk + 1)

        at = micro.draw(draw, named_key(key, "window"), (len(values),))
        condensed = self.condense(self.statistics.normalise(latents))
        window = jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, self.chunk))(latents, at)
        told = ChunkTokens(condensed, jnp.full(len(values), condensed.shape[1]), at)
        conditioning = dataclasses.replace(conditioning, beside=told)
        seen = Tokens.single(window, tokens.layout.with_time(self.chunk))
        return super().loss(seen, conditioning, key, train=train, micro=micro)


def _places(grid: TokenGrid) -> Float[np.ndarray, "tokens 3"]:
    """Time, row and column of every token of a grid."""
    axes = np.meshgrid(*map(np.arange, grid.shape), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 3).astype(np.float32)
