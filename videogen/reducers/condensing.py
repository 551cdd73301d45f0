"""Latents of a video, chunk after chunk, to a few tokens each (TokensGen, 2025)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.nn import patchify
from videogen.reducers.perceiver import Perceiver


def condense(
    normalised: Float[Array, "batch time height width channels"],
    chunk: int,
    patch: Sequence[int],
    embed: nnx.Module,
    resampler: Perceiver,
) -> Float[Array, "batch slots height width embed"]:
    """Tokens of latents of whole chunks, which are condensed apart from one another.

    Args:
      normalised: latents.
      chunk: latent frames of a chunk.
      patch: sides of a patch.
      embed: maps patches to vectors.
      resampler: from these, with their places, to tokens on a grid of queries.
    """
    batch, frames = normalised.shape[:2]
    chunks = normalised.reshape(batch * frames // chunk, chunk, *normalised.shape[2:])
    x = embed(patchify(chunks, tuple(patch)))
    axes = np.meshgrid(*map(np.arange, x.shape[1:4]), indexing="ij")
    places = np.stack(axes, axis=-1).reshape(-1, 3).astype(np.float32)
    tokens = resampler(x.reshape(len(x), -1, x.shape[-1]), position=jnp.asarray(places))
    return tokens.reshape(batch, -1, *resampler.sides[1:], tokens.shape[-1])
