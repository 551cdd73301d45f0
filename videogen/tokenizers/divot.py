"""Divot (Ge et al., CVPR 2025): a clip of two seconds as 64 continuous tokens, from five of its frames."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import reducers
from videogen.nn import (
    LayerNorm,
    Linear,
    Transformer,
    TransformerSection,
    normal,
    parameter,
    read_transformer,
    resize_area,
    zeros,
)
from videogen.ranges import Count, Triple
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.one_d import check_clip
from videogen.tokenizers.token_conditioned import Parts, TokenConditioned


class Motion(nnx.Module):
    """A transformer over the frames at each place, added to the vectors of the frames; a fresh one adds zeros.

    Args:
      inputs: channels of the image encoder.
      outputs: channels of the result.
      section: the transformer.
      frames: how many there are.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        section: TransformerSection,
        frames: int,
        *,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.still = Linear(inputs, outputs, axes=(None, "embed"), **common)
        self.inner = Linear(inputs, section.width, axes=(None, "embed"), **common)
        self.order = parameter(rngs, (frames, section.width), (None, "embed"), normal(0.02))
        self.tower = Transformer(section.stack(remat=remat, **common), section.last_norm(rngs=rngs))
        self.outer = Linear(section.width, outputs, axes=("embed", None), initializer=zeros, **common)

    def __call__(
        self, x: Float[Array, "batch frames height width inputs"]
    ) -> Float[Array, "batch frames height width outputs"]:
        """Attention sees the frames of one place."""
        y = jnp.moveaxis(self.inner(x), 1, 3)
        rows = y.reshape(-1, *y.shape[3:]) + self.order.get_value().astype(y.dtype)
        return self.still(x) + self.outer(jnp.moveaxis(self.tower(rows).reshape(y.shape), 3, 1))


class Divot(TokenConditioned):
    """Frames, equally spaced, through the frozen image encoder; then motion, pooling, blocks and a resampler to tokens.

    The denoiser is told what a second resampler makes of the tokens. Tokens are of a whole clip of one length.

    Args:
      clip: ``(frames, height, width)`` of every clip.
      frames: how many of them the image encoder sees.
      queries: tokens of a clip.
      width: of a token.
      motion: section of the transformer over the frames of a place (``nn.read_transformer``), with layer norms.
      pool: ``(height, width)`` that the places of a frame are averaged to.
      blocks: section of the transformer over all pooled places, with layer norms; its width is that of the places.
      resampler: reducer config ``{name, …}`` from the places to the tokens.
      expander: reducer config from the tokens to ``frames`` × ``pool`` vectors, which the denoiser is told.
      denoiser: section of the diffusion transformer.
      denoising: settings of ``Denoising``.
      vision: settings of ``VisionSection``.
      given: what follows from the frozen parts (``denoised.of_parts``); no setting of a config.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    sides = ("query",)
    parts = ("tokens",)
    encoder = ("motion", "pool_norm", "spatial", "temporal", "blocks", "resampler")
    """Paths of what leads to the tokens."""

    def __init__(
        self,
        clip: Triple,
        frames: Count,
        queries: Count,
        width: Count,
        motion: Mapping[str, Any],
        pool: tuple[Count, Count],
        blocks: Mapping[str, Any],
        resampler: Mapping[str, Any],
        expander: Mapping[str, Any],
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
        self.frames, self.pool, self.queries = min(frames, clip[0]), tuple(pool), queries
        read, over = read_transformer(blocks, norm="layer"), read_transformer(motion, norm="layer")
        inner, places = read.width, self.frames * pool[0] * pool[1]
        channels = expander.get("outputs") or expander["width"]
        settings = (given["latents"], given["normalise"], width, denoiser, channels, denoising, vision, (queries,))
        super().__init__(clip, *settings, **made_with)
        self.motion = Motion(given["inputs"], inner, over, self.frames, **made_with)
        self.pool_norm = LayerNorm(inner, rngs=rngs)
        self.spatial = parameter(rngs, (pool[0] * pool[1], inner), (None, "embed"), normal(0.02))
        self.temporal = parameter(rngs, (self.frames, inner), (None, "embed"), normal(0.02))
        self.blocks = Transformer(read.stack(**made_with), read.last_norm(rngs=rngs))
        self.resampler = reducers.build(resampler, inputs=inner, outputs=width, queries=(queries,), **made_with)
        self.expander = reducers.build(expander, inputs=width, queries=(places,), **made_with)

    @property
    def compression(self) -> Compression:
        return Compression(self.clip.frames, self.clip.height, self.clip.width, first_alone=False)

    def layout_sides(self, frames: int) -> tuple[int, ...]:
        check_clip(VideoShape(frames, self.clip.height, self.clip.width), self.clip)
        return (self.queries,)

    def shown(self, video: Video) -> Video:
        """As many frames as it sees, equally spaced from the first to the last."""
        return video[:, np.round(np.linspace(0, video.shape[1] - 1, self.frames)).astype(int)]

    def gather(self, features: Float[Array, "batch frames height width embed"]) -> Latents:
        x = self.pool_norm(self.motion(features))
        x = resize_area(x, (self.frames, *self.pool))
        x = x.reshape(*x.shape[:2], -1, x.shape[-1])
        x = x + self.spatial.get_value().astype(x.dtype) + self.temporal.get_value()[:, None].astype(x.dtype)
        return self.resampler(self.blocks(x.reshape(len(x), -1, x.shape[-1])))

    def conditions(self, tokens: Latents) -> list[Parts]:
        return [{"tokens": tokens}]

    def context(self, parts: Parts) -> Float[Array, "batch keys context_width"]:
        return self.expander(parts["tokens"])
