"""A tokenizer of a frozen tokenizer's continuous latents in the place of pixels (FlexTok)."""

from collections.abc import Mapping
from typing import Any

import jax

from videogen import building
from videogen.errors import UserError
from videogen.nn import MicroBatch
from videogen.ranges import Triple
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Compared, Encoded, Tokenizer
from videogen.tokenizers.one_d import check_clip
from videogen.tokenizers.wrapped import Wrapped
from videogen.tokens import Layout, Tokens

LATENTS = "latents"
"""The name in ``Encoded.extra`` of what the frozen tokenizer makes of the clips ``[batch, time, height, width,
channels]``."""


def of_latents(config: Mapping[str, Any], vae: Tokenizer) -> dict[str, Any]:
    """The config of a tokenizer for clips of one fixed shape, ``clip``, as one of the latents that clips have in a VAE.

    Args:
      config: with ``clip`` in pixels and ``patch`` in latents.
      vae: a tokenizer, of which only the structure is needed.

    Raises:
      UserError: it has codes, latents without a place, or latents of other patches.
    """
    if "clip" not in config:
        raise UserError(f"a tokenizer of latents has clips of one shape; {config.get('name')!r} has no setting 'clip'")
    building.check_value("clip of the tokenizer", Triple, config["clip"])
    if not vae.on_grid:
        raise UserError("the latents of this tokenizer have no place in the picture; take a VAE with a grid")
    layout = vae.layout(VideoShape(*config["clip"])).only
    if not layout.channels:
        raise UserError("the frozen tokenizer gives codes, and continuous latents are needed; take one with a Gaussian")
    return {**config, "clip": layout.shape, "channels": layout.channels, "normalise": not vae.normalised}


def latents_of_frozen(vae: Tokenizer, video: Video) -> Latents:
    """The latents that a frozen tokenizer has of clips; no gradient leads back."""
    return jax.lax.stop_gradient(vae.bottleneck(vae.encode(video))[1].only.values)


class OverLatents(Wrapped):
    """``tokenizer`` codes the latents of ``vae``, which is frozen: pixels -> latents -> codes, and back.

    Its latents are the means of their posteriors. The codes are of whole clips, all of one shape.

    Args:
      vae: a tokenizer with continuous latents; no gradient reaches its encoder, and none changes it.
      tokenizer: built with what ``of_latents`` gives.

    Raises:
      UserError: a patch would join the lone first frame with others.
    """

    def __init__(self, vae: Tokenizer, tokenizer: Tokenizer):
        self.vae, self.tokenizer = vae, tokenizer
        inner, outer = tokenizer.clip, vae.compression
        sides = outer.frames(inner.frames), inner.height * outer.height, inner.width * outer.width
        self.clip = VideoShape(*sides)
        if outer.first_alone and inner.frames > 1 and tokenizer.feature_compression.time > 1:
            raise UserError("the first latent frame is of one frame alone: make patches of one latent frame (patch)")

    @property
    def compression(self) -> Compression:
        """The whole clip."""
        return Compression(self.clip.frames, self.clip.height, self.clip.width, first_alone=False)

    @property
    def feature_compression(self) -> Compression:
        inner, outer = self.tokenizer.feature_compression, self.vae.compression
        sides = inner.time * outer.time, inner.height * outer.height, inner.width * outer.width
        return Compression(*sides, first_alone=outer.first_alone)

    @property
    def coder(self) -> Tokenizer:
        return self

    @property
    def drops(self) -> bool:
        return self.tokenizer.drops

    @property
    def features(self) -> dict[str, int]:
        return self.tokenizer.features

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the last layer of the decoder that is trained."""
        return ("tokenizer", *self.tokenizer.last_layer)

    def layout(self, shape: VideoShape) -> Layout:
        check_clip(shape, self.clip)
        return self.tokenizer.layout(self.tokenizer.clip)

    def encode(self, video: Video, request: Any = None) -> Encoded:
        check_clip(VideoShape(*video.shape[1:4]), self.clip)
        latents = self.latents(video)
        encoded = self.tokenizer.encode(latents, request)
        return encoded._replace(extra={**encoded.extra, LATENTS: latents})

    def latents(self, video: Video) -> Latents:
        """What the frozen tokenizer makes of clips; no gradient leads back."""
        return latents_of_frozen(self.vae, video)

    def pixels(self, latents: Latents) -> Video:
        """Latents as the frozen tokenizer gives them to pixels."""
        return self.vae.decode(self.vae.lookup(Tokens.single(latents, self.vae.layout(self.clip))))

    def compare(
        self,
        encoded: Encoded,
        latents: Latents,
        video: Video,
        key: jax.Array,
        micro: MicroBatch | None = None,
        **seen: Any,
    ) -> Compared:
        compared = self.tokenizer.compare(encoded, latents, encoded.extra[LATENTS], key, micro, **seen)
        return compared._replace(video=self.pixels(compared.video))

    def denoise(
        self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None, **seen: Any
    ) -> Video:
        return self.pixels(self.tokenizer.denoise(latents, self.latents(video), key, micro, **seen))

    def decode(self, latents: Latents, kept: Any = None, **settings: Any) -> Video:
        """Quantised latents to pixels; ``settings`` go to the tokenizer's ``decode``."""
        return self.pixels(self.tokenizer.decode(latents, **({} if kept is None else {"kept": kept}), **settings))
