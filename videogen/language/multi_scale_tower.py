"""VidLA's tower of clips: CLIP's image encoder with attention over time and tokens of several scales of time (Rizve et
al., 2024)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen import building
from videogen.encoders import ClipImage
from videogen.encoders.loading import plain
from videogen.encoders.vit import tower
from videogen.errors import UserError
from videogen.language.tower_base import NONE, VideoTower
from videogen.language.vision_encoders import Features
from videogen.nn import normal, parameter
from videogen.nn.space_time import Divided
from videogen.nn.structured_masks import multi_scale, multi_scale_tags
from videogen.ranges import Count, Natural
from videogen.shapes import VideoShape


class MultiScale(VideoTower):
    """[CLS], tokens of several levels, and the patches of all frames in one sequence.

    Every layer attends over time at each place of the patches, with an output that is 0 at first, and then over the
    sequence as ``nn.structured_masks.multi_scale`` says: patches see their frame and all levels, level u sees levels up
    to its own and every ``rate**u``-th frame, [CLS] sees everything, and nobody sees [CLS].

    Args:
      clip: the shape of the clips; frames are resized as the network's preprocessing does.
      embed: width of the space of clips and texts, that of the network.
      features: none.
      model: the image network, as ``encoders.ClipImage`` takes it.
      levels: of tokens; 0 leaves attention within frames and over time.
      each: tokens of a level.
      rate: of how many frames a level sees one more rarely than the level before it.
      remat: what the backward pass keeps.
    """

    def __init__(
        self,
        clip: VideoShape,
        embed: int,
        *,
        features: Features | None = None,
        model: Mapping[str, Any],
        levels: Natural = 3,
        each: Count = 4,
        rate: Count = 2,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        given = {key: plain(model[key]) for key in model if key not in ("name", "preprocessing")}
        made = building.build(
            {"clip_image": ClipImage}, {"name": "clip_image", **given}, "model", dtype=dtype, rngs=rngs
        )
        self.network = made.with_preprocessing(model)
        if self.network.width != embed:
            raise UserError(f"this CLIP embeds in {self.network.width} channels: set model.embed to it, not {embed}")
        sizes, self.first = given["sizes"], 1 + levels * each
        width = self.network.patches.linear.outputs

        def around(block: nnx.Module, rngs: nnx.Rngs) -> Divided:
            settings = dict(epsilon=sizes["epsilon"], dtype=dtype, rngs=rngs)
            return Divided(block, width, sizes["heads"], self.first, **settings)

        self.network.transformer = tower(**sizes, around=around, remat=remat, dtype=dtype, rngs=rngs)
        self.levels = parameter(rngs, (levels * each, width), (None, "embed"), normal(0.02)) if levels else None
        patches = self.network.positions.size - 1
        self.frames, self.mask = clip.frames, multi_scale(levels, rate)
        self.sides = levels, each, patches
        self.tokens = self.first + clip.frames * patches

    def __call__(self, inputs, seconds, exists=None, key=None, beside=NONE):
        if exists is not None:
            raise UserError("a tower of several scales sees whole clips: all of their frames must be there")
        x = self.network.transformer.finish(self.trunk(inputs)[:, 0])
        return self.network.projection(x)

    def trunk(self, video: Float[Array, "batch frames height width 3"]) -> Float[Array, "batch tokens width"]:
        """All tokens of clips in [-1, 1] behind the last layer: [CLS], levels, patches frame by frame."""
        batch, frames = video.shape[:2]
        pixels = self.network.preprocessing(video.reshape(-1, *video.shape[2:]))
        found = self.network.embedded(pixels)
        found = found.reshape(batch, frames, *found.shape[1:])
        # [CLS] is the same in front of every frame.
        parts = [found[:, 0, :1]]
        if self.levels is not None:
            own = self.levels.get_value().astype(found.dtype)
            parts.append(jnp.broadcast_to(own, (batch, *own.shape)))
        x = jnp.concatenate([*parts, found[:, :, 1:].reshape(batch, -1, found.shape[-1])], axis=1)
        levels, each, patches = self.sides
        tags = multi_scale_tags(frames, patches, levels, each)
        return self.network.transformer.trunk(x, frames=frames, mask=self.mask, tags=tags)[0]
