"""Masks from a language model: the hidden state of one marker is the prompt of a mask decoder in all frames (VideoLISA;
Bai et al., NeurIPS 2024)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building
from videogen.encoders import SamMaskDecoder
from videogen.encoders.loading import plain
from videogen.errors import UserError
from videogen.language import StreamModel, TokenStream
from videogen.language.video_language import VideoLanguage
from videogen.language.vision import Vision
from videogen.language.vision_encoders import VisionEncoder, build_encoder, in_seconds
from videogen.nn import Linear
from videogen.shapes import VideoShape


def at_marker(
    stream: TokenStream, x: Float[Array, "rows slots width"], number: int
) -> tuple[Float[Array, "rows width"], Bool[Array, "rows"]]:
    """Of every row of one sample the features of the slot that holds the marker, and which rows have one.

    The slot is looked up in the row itself, where clips have been inserted already and whatever reducers have left of
    them.

    Args:
      stream: the rows.
      x: features of their slots.
      number: of the marker's segment.
    """
    here = (stream.source == number) & stream.exists
    slot = jnp.argmax(here, axis=1)
    return jnp.take_along_axis(x, slot[:, None, None], axis=1)[:, 0], here.any(1)


class MaskHead(nnx.Module):
    """What makes masks of the frames of a clip from a hidden state.

    Args:
      clip: the shape of the clips.
      width: of the hidden state.
      channels: of the vision encoder that the language model reads, whose grid is taken where there is no ``encoder``.
      decoder: ``{width, hidden, layers, heads, …}`` of a ``SamMaskDecoder``.
      encoder: ``{name: patches, …}`` of an encoder of its own (``vision_encoders.VISION_ENCODERS``).

    Raises:
      UserError: the encoder reads a frozen part.
    """

    def __init__(
        self,
        clip: VideoShape,
        width: int,
        channels: int,
        *,
        decoder: Mapping[str, Any],
        encoder: Mapping[str, Any] | None = None,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.size = (clip.height, clip.width)
        self.encoder: VisionEncoder | None = nnx.data(None)
        if encoder is not None:
            self.encoder = build_encoder(encoder, clip, None, remat=remat, **common)
            channels = self.encoder.channels
        settings = {"name": "mask_decoder", **plain(decoder)}
        self.decoder = building.build({"mask_decoder": SamMaskDecoder}, settings, "decoder of masks", **common)
        self.linear = Linear(channels, self.decoder.width, axes=(None, "embed"), **common)
        self.inner = Linear(width, width, axes=("embed", "mlp"), **common)
        self.outer = Linear(width, self.decoder.width, axes=("mlp", "embed"), **common)

    def __call__(
        self, grid: Float[Array, "batch time height width channels"], state: Float[Array, "batch width"]
    ) -> Float[Array, "batch time tall wide"]:
        """Logits of the masks, as large as the frames; one prompt for all frames of a clip.

        Args:
          grid: of an encoder.
          state: hidden states of the marker.
        """
        batch, time, height, width, _ = grid.shape
        prompt = jnp.repeat(self.outer(jax.nn.relu(self.inner(state))), time, axis=0)
        features = self.linear(grid).reshape(batch * time, height, width, -1)
        logits = self.decoder(features, prompt)
        sides = (len(logits), *self.size)
        found = logits if logits.shape == sides else jax.image.resize(logits, sides, "linear", antialias=False)
        return found.reshape(batch, time, *self.size)


class SegmentingModel(VideoLanguage):
    """A video-language model with a head of masks.

    Args:
      vision: from clips to vectors of the backbone.
      stream: over texts and these vectors.
      masks: the head.
    """

    def __init__(self, vision: Vision, stream: StreamModel, masks: MaskHead):
        super().__init__(vision, stream)
        self.masks = masks

    def segmented(
        self,
        inputs: Array,
        seconds: Float[Array, "batch frames"],
        state: Float[Array, "batch width"],
    ) -> Float[Array, "batch time tall wide"]:
        """Logits of the masks of all frames.

        Args:
          inputs: of clips, as the encoders take them.
          seconds: of the frames.
          state: hidden states of the marker.

        Raises:
          UserError: the encoder joins frames, so that there is no place for each.
        """
        encoder = self.masks.encoder or self.vision.encoder
        if encoder.sides[0] != seconds.shape[1]:
            raise UserError("masks need a place in time for every frame: give model.masks.encoder patches of its own")
        return self.masks(encoder(inputs, in_seconds(seconds, encoder.centres)), state)
