"""Clips as tokens of moving things, and as tubes of pixels beside it (TrajViT; Zheng et al., 2025)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.data.segments import LINKS, SEGMENTS
from videogen.errors import UserError
from videogen.language.tower_base import NONE, VideoTower
from videogen.nn import Linear, Stack, normal, parameter, patchify, read_transformer
from videogen.nn.convolution import Convolution
from videogen.ranges import Count, Natural
from videogen.reducers.trajectories import shares_of_things
from videogen.shapes import Video, VideoShape

STRIDE = 4
"""Pixels of a side of a place of the features."""

WAVES = 8
"""Sines and cosines of each number that says a place or a time."""


def sines(values: Float[Array, "*any numbers"]) -> Float[Array, "*any features"]:
    """Sines and cosines of numbers from 0 to 1, of ``WAVES`` waves each: the first of twice the range."""
    angles = values[..., None].astype(jnp.float32) * np.pi * 2.0 ** np.arange(WAVES, dtype=np.float32)
    angles = angles.reshape(*values.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Stages(nnx.Module):
    """Features of every frame on a grid of ``STRIDE`` pixels: convolutions, each with half as many places as the one
    before, whose results are brought to one width and one size and added.

    Args:
      widths: channels of the stages, whose first one has ``STRIDE``.
      width: of the sum.
    """

    def __init__(self, widths: Sequence[int], width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.first = Linear(3 * STRIDE**2, widths[0], axes=(None, "embed"), **common)
        sides = list(zip(widths, widths[1:], strict=False))
        self.own = nnx.List([Convolution(w, w, (1, 3, 3), **common) for w in widths])
        self.down = nnx.List([Convolution(a, b, (1, 2, 2), stride=(1, 2, 2), **common) for a, b in sides])
        self.to_width = nnx.List([Linear(w, width, axes=(None, "embed"), **common) for w in widths])

    def __call__(self, video: Video) -> Float[Array, "batch time rows columns width"]:
        """One vector for each place."""
        x = self.first(patchify(video, (1, STRIDE, STRIDE)))
        total, sides = 0.0, x.shape[1:4]
        for number, (own, to_width) in enumerate(zip(self.own, self.to_width, strict=True)):
            x = x if number == 0 else self.down[number - 1](x)
            x = x + jax.nn.gelu(own(x))
            found = to_width(x)
            total += jax.image.resize(found, (len(x), *sides, found.shape[-1]), "nearest")
        return total


class OneLatent(nnx.Module):
    """A learned query reads the frames of a thing, in layers of cross-attention: one vector of each (a Perceiver of one
    latent). Times are sines that are added to what is read.

    Args:
      width: channels.
      heads: of the attention.
      layers: how many.
    """

    def __init__(self, width: int, heads: int, layers: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        section = read_transformer({"width": width, "layers": layers, "heads": heads, "mlp_width": 2 * width})
        self.latent = parameter(rngs, (1, width), (None, "embed"), normal(0.02))
        self.times = Linear(2 * WAVES, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.stack: Stack = section.stack(context_width=width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch things time width"],
        there: Bool[Array, "batch things time"],
        shares: Float[Array, "time 1"],
    ) -> Float[Array, "batch things width"]:
        """One vector of each thing; what it is where a thing is in no frame has no meaning, and is finite.

        Args:
          x: of the frames.
          there: in which of them a thing is.
          shares: of the clip that has gone by at each frame.
        """
        batch, things, time, width = x.shape
        read = (x + self.times(sines(shares))).reshape(batch * things, time, width)
        latent = jnp.broadcast_to(self.latent.get_value(), (batch * things, 1, width)).astype(x.dtype)
        seen = there | ~there.any(-1, keepdims=True)
        found = self.stack(latent, context=read, context_mask=seen.reshape(batch * things, time))
        return found.reshape(batch, things, width)


class Classed(nnx.Module):
    """[CLS] before tokens, a transformer that sees those that exist, and an embedding of what [CLS] becomes.

    Args:
      transformer: ``{width, layers, heads, mlp_width, …}``.
      embed: width of the embedding.
    """

    def __init__(self, transformer: Mapping[str, Any], embed: int, *, remat: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        section = read_transformer(transformer)
        if section.rotary or section.position_generator:
            raise UserError("tokens of things have no order: leave rotary positions and position generators out")
        self.width, self.heads = section.width, section.heads
        self.first = parameter(rngs, (1, section.width), (None, "embed"), normal(0.02))
        self.stack = section.stack(remat=remat, dtype=dtype, rngs=rngs)
        self.norm = section.last_norm(rngs=rngs)
        self.projection = Linear(section.width, embed, bias=False, axes=("embed", None), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "batch tokens width"],
        there: Bool[Array, "batch tokens"],
        key: Array | None = None,
    ) -> Float[Array, "batch embed"]:
        """Of every clip."""
        first = jnp.broadcast_to(self.first.get_value(), (len(tokens), *self.first.shape)).astype(tokens.dtype)
        x = jnp.concatenate([first, tokens], axis=1)
        seen = jnp.pad(there, ((0, 0), (1, 0)), constant_values=True)
        x = self.stack(x, key_mask=seen, key=key)
        return self.projection(self.norm(x[:, 0]))


class Things(VideoTower):
    """A token for every moving thing: the means of the features of its pixels in every frame, and where it is, each
    read by one latent and added.

    It reads ``segments [batch, frames, height, width]`` and ``links [batch, things, frames]``; things that are in no
    frame are padding.

    Args:
      clip: the shape of the clips.
      embed: width of the space of clips and texts.
      features: none.
      widths: channels of the stages of convolutions.
      latents: layers of the readers of frames.
      transformer: ``{width, layers, heads, mlp_width, …}`` over the tokens of things.
      things: of a clip, ``data.source.things``.
      remat: what the backward pass keeps.
    """

    needs = (SEGMENTS, LINKS)

    def __init__(
        self,
        clip: VideoShape,
        embed: int,
        *,
        features: Any = None,
        widths: Sequence[Count],
        transformer: Mapping[str, Any],
        latents: Natural = 2,
        things: Count = 16,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        smallest = STRIDE * 2 ** (len(widths) - 1)
        if not widths or clip.height % smallest or clip.width % smallest:
            raise UserError(
                f"{len(widths)} stages of convolutions need sides that divide by {smallest}: model.video.widths"
            )
        common = dict(dtype=dtype, rngs=rngs)
        self.classed = Classed(transformer, embed, remat=remat, **common)
        width, heads = self.classed.width, self.classed.heads
        self.stages = Stages(widths, width, **common)
        self.look, self.place = (OneLatent(width, heads, latents, **common) for _ in range(2))
        self.at = Linear(4 * WAVES, width, axes=(None, "embed"), **common)
        self.tokens = things

    def of_things(
        self,
        features: Float[Array, "batch time rows columns width"],
        labels: Array,
        links: Int[Array, "batch things time"],
    ) -> tuple[Array, Array, Bool[Array, "batch things time"]]:
        """Of every thing in every frame the mean of the features of its pixels, its middle (y, x) as shares of the
        frame, and whether it is there."""
        shares = jax.vmap(lambda a, b: shares_of_things(a, b, features.shape[2:4]))(labels, links)
        size = shares.sum((-2, -1))
        means = jnp.einsum("bmthw,bthwc->bmtc", shares, features.astype(jnp.float32))
        mine = (links[..., None, None] == labels[:, None]) & (links > 0)[..., None, None]
        height, width = labels.shape[-2:]
        pixels = jnp.maximum(mine.sum((-2, -1)), 1)
        y = (mine.sum(-1) * ((jnp.arange(height) + 0.5) / height)).sum(-1) / pixels
        x = (mine.sum(-2) * ((jnp.arange(width) + 0.5) / width)).sum(-1) / pixels
        return means / jnp.maximum(size, 1e-6)[..., None], jnp.stack([y, x], axis=-1), mine.any((-2, -1))

    def __call__(self, inputs, seconds, exists=None, key=None, beside=NONE):
        labels, links = (jnp.asarray(beside[name]).astype(jnp.int32) for name in self.needs)
        features = self.stages(inputs)
        means, middles, there = self.of_things(features, labels, links)
        there = there if exists is None else there & exists[:, None]
        time = links.shape[-1]
        shares = jnp.arange(time)[:, None] / max(time - 1, 1)
        look = self.look(means.astype(features.dtype), there, shares)
        place = self.place(self.at(sines(middles)).astype(features.dtype), there, shares)
        return self.classed(look + place, there.any(-1), key)


class Tubes(VideoTower):
    """A token for every box of pixels with its learned place: a 3-D-patch vision transformer, to compare with.

    Args:
      clip: the shape of the clips.
      embed: width of the space of clips and texts.
      features: none.
      size: sides of a box: frames, rows and columns of pixels.
      transformer: ``{width, layers, heads, mlp_width, …}``.
      remat: what the backward pass keeps.
    """

    def __init__(
        self,
        clip: VideoShape,
        embed: int,
        *,
        features: Any = None,
        size: tuple[Count, Count, Count],
        transformer: Mapping[str, Any],
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.size = tuple(size)
        sides = (clip.frames, clip.height, clip.width)
        if any(side % own for side, own in zip(sides, self.size, strict=True)):
            raise UserError(f"boxes of {self.size} do not tile clips of {sides}: model.video.size")
        self.classed = Classed(transformer, embed, remat=remat, dtype=dtype, rngs=rngs)
        width = self.classed.width
        self.tokens = int(np.prod([side // own for side, own in zip(sides, self.size, strict=True)]))
        self.linear = Linear(3 * int(np.prod(self.size)), width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.places = parameter(rngs, (self.tokens, width), (None, "embed"), normal(0.02))

    def __call__(self, inputs, seconds, exists=None, key=None, beside=NONE):
        x = self.linear(patchify(inputs, self.size))
        x = x.reshape(len(x), self.tokens, -1) + self.places.get_value()
        there = jnp.ones(x.shape[:2], bool)
        if exists is not None:
            of_boxes = exists.reshape(len(x), -1, self.size[0]).any(-1)
            there = jnp.repeat(of_boxes, self.tokens // of_boxes.shape[1], axis=1)
        return self.classed(x, there, key)
