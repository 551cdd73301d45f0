"""What a video-language model is given of the clips of a batch: pixels, or what a frozen part makes of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.data.token_files import PREFIX
from videogen.errors import UserError, near_matches
from videogen.language.vision_encoders import ENCODER, TOKENIZER, Features, flat_sides, part_of
from videogen.shapes import Latents, Video, VideoShape
from videogen.tasks.base import Batch, Modules, to_video
from videogen.tasks.rows import tokens_of
from videogen.tokens import Tokens


class Clips(NamedTuple):
    """The clips of a batch, those of a sample one after another.

    Attributes:
      inputs: what the vision encoder takes of each.
      seconds: the times of their frames.
      frames: which frames there are; ``None``: all.
      exists: which clips of a sample there are, ``[samples, clips]``; ``None``: all.
    """

    inputs: Array
    seconds: Float[Array, "clips frames"]
    frames: Bool[Array, "clips frames"] | None = None
    exists: Bool[Array, "samples clips"] | None = None


class Pixels:
    """The clips themselves.

    Args:
      settings: of the vision encoder.
      clip: the shape of the clips.
      fps: frames per second of clips whose batch does not say their times; ``None``: unknown.
      part: the frozen part that is read, without arrays.

    Attributes:
      features: what the part gives of a clip; ``None``: there is none.
    """

    features: Features | None = None

    def __init__(self, settings: Mapping[str, Any], clip: VideoShape, fps: float | None, part: nnx.Module | None):
        self.settings, self.clip, self.fps = settings, clip, fps

    def inputs(self, modules: Modules, batch: Batch, video: Array | None, keys: Array | None) -> Array:
        """What the vision encoder takes of clips, uint8 pixels or, where there are none, tokens of the batch."""
        if video is None:
            raise UserError("this model reads pixels, and the batch has tokens")
        return to_video(video)

    def clips(self, modules: Modules, batch: Batch, keys: Array | None = None) -> Clips | None:
        """The clips of a batch; ``None`` where it has none. No gradient goes into frozen parts.

        Args:
          modules: the frozen part by its name.
          batch: with ``video`` ``[batch, (clips,) frames, height, width, 3]``, or the tokens of a cache.
          keys: one of each clip, for a tokenizer that draws.

        Raises:
          UserError: nothing says the times of the frames.
        """
        cached = any(name.startswith(PREFIX) for name in batch)
        if not cached and "video" not in batch:
            return None
        several = not cached and batch["video"].ndim == 6

        def flat(name: str) -> Array | None:
            array = batch.get(name)
            return array.reshape(-1, *array.shape[2:]) if several and array is not None else array

        inputs = self.inputs(modules, batch, None if cached else flat("video"), keys)
        seconds = flat("times")
        if seconds is None:
            if not self.fps:
                raise UserError("nothing says when the frames are shown: give times, or data.clip.fps")
            seconds = jnp.broadcast_to(jnp.arange(self.clip.frames) / self.fps, (len(inputs), self.clip.frames))
        seconds = jnp.asarray(seconds, jnp.float32)
        return Clips(jax.lax.stop_gradient(inputs), seconds, flat("frame_mask"), batch.get("video_mask"))

    def _shown(self, part: nnx.Module, make: Any) -> tuple[int, ...]:
        """The shape of what ``make(part, video)`` gives of one clip."""
        graph, state = nnx.split(part)
        video = jax.ShapeDtypeStruct((1, self.clip.frames, self.clip.height, self.clip.width, 3), jnp.float32)
        return jax.eval_shape(lambda state, video: make(nnx.merge(graph, state), video), state, video).shape[1:]


class OfTokenizer(Pixels):
    """The vectors of the tokens of the frozen tokenizer, or the part of their channels that is read."""

    def __init__(self, settings, clip, fps, part):
        super().__init__(settings, clip, fps, part)
        self.layout, known, self.reading = part.layout(clip), part.readings, settings.get("reading", "")
        if self.reading and self.reading not in known:
            raise UserError(f"the tokenizer has no reading {self.reading!r}{near_matches(self.reading, known)}")
        *sides, channels = self._shown(part, lambda live, video: self._vectors(live, live.tokenize(video)))
        self.features = Features.evenly(tuple(sides), channels, clip.frames)
        if part.on_grid:
            (places,) = part.centres(clip).values()
            self.features = Features(tuple(sides), channels, tuple(places[:, 0, 0, 0].tolist()))

    def inputs(self, modules, batch, video, keys):
        tokenizer = modules[TOKENIZER]
        given = batch if video is None else {tokenizer.field: video}
        return self._vectors(tokenizer, tokens_of(given, tokenizer, self.layout, keys))

    def _vectors(self, tokenizer: nnx.Module, tokens: Tokens) -> Latents:
        latents = tokenizer.lookup(tokens)
        latents = latents[..., tokenizer.readings[self.reading]] if self.reading else latents
        return latents.reshape(len(latents), *flat_sides(latents.shape[1:-1]), latents.shape[-1])


class OfEncoder(Pixels):
    """The patches of the frozen encoder."""

    def __init__(self, settings, clip, fps, part):
        super().__init__(settings, clip, fps, part)
        *sides, channels = self._shown(part, self._grid)
        self.features = Features.evenly(tuple(sides), channels, clip.frames)

    def inputs(self, modules, batch, video, keys):
        return self._grid(modules[ENCODER], super().inputs(modules, batch, video, keys))

    def _grid(self, encoder: nnx.Module, video: Video) -> Latents:
        return encoder.grid(video, self.settings.get("side", 0), self.settings.get("reading", "last"))


READERS = {None: Pixels, TOKENIZER: OfTokenizer, ENCODER: OfEncoder}
"""Frozen part that the vision encoder reads -> how."""


def reader_of(section: Mapping[str, Any], clip: VideoShape, fps: float | None, part: nnx.Module | None) -> Pixels:
    """How the vision encoder of a section ``{name, …}`` gets its inputs; arguments as for ``Pixels``."""
    settings = {key: section[key] for key in section if key != "name"}
    return READERS[part_of(section)](settings, clip, fps, part)
