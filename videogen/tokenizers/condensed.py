"""Condensed tokens of chunks of a video: what a resampler makes of a VAE's latents (the plan of TokensGen, 2025)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import diffusion, quantizers, reducers
from videogen.errors import UserError
from videogen.nn import Linear
from videogen.ranges import Count, Triple
from videogen.reducers import Perceiver, condense
from videogen.shapes import Compression, Latents, TokenGrid, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.over_latents import latents_of_frozen
from videogen.tokens import Layout


class Condenser(nnx.Module):
    """From latents of whole chunks to tokens: patches, one linear layer, a resampler.

    In training the parts are those of the generator that is told the tokens (``generators.FlowBesideTokens``).

    Args:
      statistics: brings latents to mean 0 and variance 1.
      embed: maps patches to vectors.
      resampler: from the vectors of a chunk to its tokens, on a grid of queries.
      chunk: latent frames of a chunk.
      patch: ``(time, height, width)`` of latents in a patch.
    """

    def __init__(
        self, statistics: nnx.Module, embed: nnx.Module, resampler: Perceiver, chunk: int, patch: tuple[int, int, int]
    ):
        self.statistics, self.embed, self.resampler = statistics, embed, resampler
        self.chunk, self.patch, self.queries = chunk, tuple(patch), resampler.sides

    def __call__(self, latents: Latents) -> Float[Array, "batch slots height width embed"]:
        """The tokens of raw latents of whole chunks, chunk after chunk."""
        return condense(self.statistics.normalise(latents), self.chunk, self.patch, self.embed, self.resampler)


def build_condenser(
    channels: int,
    normalised: bool,
    chunk: Count,
    queries: Triple,
    width: Count,
    patch: Triple,
    resampler: Mapping[str, Any],
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Condenser:
    """A condenser from its section.

    Args:
      channels: of the latents.
      normalised: they come normalised.
      chunk: latent frames of a chunk.
      queries: ``(time, height, width)`` of its tokens.
      width: channels of a patch's vector.
      patch: ``(time, height, width)`` of latents in a patch.
      resampler: reducer config ``{name, …}``.
    """
    statistics = diffusion.NormalisedLatents() if normalised else diffusion.LatentStatistics(channels)
    embed = Linear(channels * int(np.prod(patch)), width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
    made_with = dict(remat=remat, dtype=dtype, rngs=rngs)
    built = reducers.build(resampler, inputs=width, queries=tuple(queries), **made_with)
    return Condenser(statistics, embed, built, chunk, tuple(patch))


class Condensed(Tokenizer):
    """Clips of whole chunks to condensed tokens, which a planner learns. It does not decode: the generator that is
    told the tokens draws the video (``inference.planned``).

    Args:
      vae: a causal tokenizer with continuous latents on a grid; nothing changes it.
      condenser: from its latents to tokens.
    """

    def __init__(self, vae: Tokenizer, condenser: Condenser):
        self.vae, self.condenser = vae, condenser
        self.quantizer = quantizers.build({"name": "unquantized", "width": condenser.resampler.outputs}, rngs=None)

    @property
    def on_grid(self) -> bool:
        return False

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the last layer that makes tokens."""
        return ("condenser", "resampler", "output")

    @property
    def compression(self) -> Compression:
        """Of a whole chunk; its slots have no whole number of frames."""
        own = self.vae.compression
        return Compression(own.time * self.condenser.chunk, own.height, own.width, first_alone=False)

    def layout(self, shape: VideoShape) -> Layout:
        """The slots of all chunks; raises ``UserError`` for a clip that is no whole number of chunks."""
        grid, chunk = self.vae.grid(shape), self.condenser.chunk
        if grid.time % chunk:
            frames = [
                self.vae.compression.frames(n * chunk) for n in (max(grid.time // chunk, 1), grid.time // chunk + 1)
            ]
            raise UserError(
                f"clips are whole chunks of {chunk} latent frames, and {shape.frames} frames are {grid.time}; use "
                f"{frames[0]} or {frames[1]}"
            )
        slots, *sides = self.condenser.queries
        return self.layout_of((grid.time // chunk * slots, *sides))

    def grid(self, shape: VideoShape) -> TokenGrid:
        return self.layout(shape).only.grid

    def encode(self, video: Video, request: Any = None) -> Encoded:
        """Pixels to ``[batch, slots, height, width, embed]``, float32; ``request`` is not used."""
        self.layout(VideoShape(*video.shape[1:4]))
        raw = latents_of_frozen(self.vae, video)
        return Encoded(self.condenser(raw))

    def decode(self, latents: Latents, kept: Any = None, **settings: Any) -> Video:
        """Raises ``UserError``: a generator draws what the tokens say."""
        raise UserError("condensed tokens are a plan: videogen.inference.planned draws the video with the stage to2v")
