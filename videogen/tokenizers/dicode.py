"""DiCoDe (Li et al., 2024): 16 continuous tokens for every key frame, between which a diffusion model fills in."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen import reducers
from videogen.nn import Linear, normal, parameter
from videogen.ranges import Count, Triple
from videogen.shapes import Compression, Latents, Video
from videogen.tokenizers.token_conditioned import Parts, TokenConditioned


class DiCoDe(TokenConditioned):
    """Every key frame by itself becomes ``queries`` tokens; the first and the last frame of a clip are its key frames.

    Neighbouring clips share a key frame: n clips have n + 1, and a video of them has n·(frames - 1) + 1 frames. The
    denoiser is told the tokens of both ends of a clip, with a learned vector for head and tail; of the frame that two
    clips share, the video has the one of the earlier clip. An image is one key frame; it decodes as the first frame
    of a clip between that key frame and itself.

    Args:
      clip: ``(frames, height, width)`` of a clip, both key frames among them.
      queries: tokens of a key frame.
      width: of a token.
      resampler: reducer config ``{name, …}`` from the places of a frame to its tokens.
      context_width: channels of what the denoiser is told.
      denoiser: section of the diffusion transformer.
      denoising: settings of ``Denoising``.
      vision: settings of ``VisionSection``.
      given: what follows from the frozen parts (``denoised.of_parts``); no setting of a config.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    sides = ("time", "query")
    parts = ("head", "tail")
    prefix_equal = True
    encoder = ("places", "resampler")
    """Paths of what leads to the tokens."""

    def __init__(
        self,
        clip: Triple,
        queries: Count,
        width: Count,
        resampler: Mapping[str, Any],
        context_width: Count,
        denoiser: Mapping[str, Any],
        *,
        denoising: Mapping[str, Any],
        vision: Mapping[str, Any],
        given: Mapping[str, Any],
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        made_with = dict(remat=remat, dtype=dtype, rngs=rngs)
        self.queries = queries
        sides = (2, queries)
        about = (given["latents"], given["normalise"], width, denoiser, context_width, denoising, vision, sides)
        super().__init__(clip, *about, **made_with)
        self.resampler = reducers.build(
            resampler, inputs=given["inputs"], outputs=width, queries=(queries,), **made_with
        )
        # An image encoder need not say where in the frame its vectors are from.
        self.places = parameter(rngs, (math.prod(given["places"]), given["inputs"]), (None, "embed"), normal(0.02))
        self.from_tokens = Linear(width, context_width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.ends = parameter(rngs, (2, context_width), (None, "embed"), normal(0.02))
        self.order = parameter(rngs, (queries, context_width), (None, "embed"), normal(0.02))

    @property
    def compression(self) -> Compression:
        return Compression(self.clip.frames - 1, self.clip.height, self.clip.width)

    def layout_sides(self, frames: int) -> tuple[int, ...]:
        return self.compression.latent_frames(frames), self.queries

    def shown(self, video: Video) -> Video:
        """The key frames."""
        return video[:, :: self.compression.time]

    def gather(self, features: Float[Array, "batch frames height width embed"]) -> Latents:
        batch, keys, *_, embed = features.shape
        places = self.places.get_value()
        tokens = self.resampler(features.reshape(batch * keys, -1, embed) + places.astype(features.dtype))
        return tokens.reshape(batch, keys, *tokens.shape[1:])

    def conditions(self, tokens: Latents) -> list[Parts]:
        count = tokens.shape[1]
        pairs = [(i, i + 1) for i in range(count - 1)] or [(0, 0)]
        return [{"head": tokens[:, head], "tail": tokens[:, tail]} for head, tail in pairs]

    def context(self, parts: Parts) -> Float[Array, "batch keys context_width"]:
        ends = [
            self.from_tokens(parts[name]) + end for name, end in zip(self.parts, self.ends.get_value(), strict=True)
        ]
        return jnp.concatenate([end + self.order.get_value().astype(end.dtype) for end in ends], axis=1)

    def joined(self, clips: list[Video], count: int) -> Video:
        """The clips one after another, each without its first frame but the first one."""
        first, *rest = clips
        if count == 1:
            return first[:, :1]
        return jnp.concatenate([first, *(clip[:, 1:] for clip in rest)], axis=1)
