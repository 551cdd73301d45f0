"""An autoencoder of feature maps, frame by frame, to few codes of each; and a frozen model of them around it (SignViP,
stage II)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import MicroBatch
from videogen.ranges import Count
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Compared, Encoded, Tokenizer
from videogen.tokenizers.convolutional import Decoder, Encoder
from videogen.tokenizers.convolutional import Layout as Levels
from videogen.tokenizers.wrapped import Wrapped
from videogen.tokens import Layout

EMBEDDING = "embedding"
"""The pass of the autoencoder: what it decodes, beside the features."""

FEATURES = "features"

Features = Float[Array, "batch time rows columns channels"]


class FeatureCodec(Tokenizer):
    """Features of a frame to ``query`` codes and back; no frame sees another.

    A frame is resized to the next lower multiples of the down-sampling first, and back at the end (ours: 34 × 28 places
    have no eighth). A frame that is not ``kept`` is decoded as the last one before it that is.

    Args:
      size: ``(rows, columns)`` of the features.
      channels: theirs.
      width: channels of the first level …
      multipliers: … times these give the channels of each level, with down-sampling by 2 between them.
      blocks: residual blocks of each level.
      quantizer: quantizer config ``{name, …}``.
      norm_groups: groups of the norms.
      remat: what the backward pass keeps of each residual block (``nn.REMAT_POLICIES``).
    """

    field, sides, drops, prefix_equal = FEATURES, ("time", "query"), True, True
    last_layer = ("decoder", "output")

    def __init__(
        self,
        size: Sequence[Count],
        channels: Count,
        width: Count,
        multipliers: Sequence[Count],
        blocks: Count,
        quantizer: Mapping[str, Any],
        *,
        norm_groups: Count = 32,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        between = len(multipliers) - 1
        levels = Levels.of(
            width,
            multipliers,
            (2,) * between,
            (1,) * between,
            blocks=blocks,
            middle_blocks=blocks,
            time_kernel=1,
            groups=norm_groups,
            padding="zero",
            downsampling="strided",
            depth_to_space=False,
            adaptive=False,
        )
        self.size, self.channels = tuple(size), channels
        self.grid_sides = tuple(side // 2**between for side in size)
        if 0 in self.grid_sides:
            raise UserError(
                f"features of {size[0]}×{size[1]} places cannot be halved {between} times: give fewer model.multipliers"
            )
        self.inner = tuple(side * 2**between for side in self.grid_sides)
        self.queries = math.prod(self.grid_sides)
        self.quantizer = quantizers.build(quantizer, rngs=rngs)
        common = dict(remat=remat, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(levels, channels, self.quantizer.input_width, **common)
        self.decoder = Decoder(levels, self.quantizer.width, channels, **common)

    @property
    def compression(self) -> Compression:
        """Frames per entry of ``time``; the rest of a frame is one."""
        return Compression(1, *self.size)

    def budgets(self, layout: Layout) -> list[int]:
        """None: frames may be missing at the end, and all tokens of the others are needed."""
        return []

    def layout(self, shape: VideoShape) -> Layout:
        """The tokens of features of ``shape.frames`` frames."""
        return self.layout_of((shape.frames, self.queries))

    def encode(self, video: Features, request: Any = None) -> Encoded:
        """Features to latents before quantisation ``[batch, time, query, width]``; ``request`` is not used."""
        x = self._resized(video, self.inner)
        return Encoded(self.encoder(x).reshape(*video.shape[:2], self.queries, -1))

    def decode(self, latents: Latents, kept: Bool[Array, "batch time query"] | None = None) -> Features:
        """Quantised latents to features, float32."""
        if kept is not None:
            frames = jnp.arange(latents.shape[1])
            last = jax.lax.cummax(jnp.where(kept.all(axis=-1), frames, 0), axis=1)
            latents = jnp.take_along_axis(latents, last[..., None, None], axis=1)
        x = self.decoder(latents.reshape(*latents.shape[:2], *self.grid_sides, -1))
        return self._resized(x, self.size).astype(jnp.float32)

    @staticmethod
    def _resized(x: Features, sides: Sequence[int]) -> Features:
        if x.shape[2:4] == tuple(sides):
            return x
        return jax.image.resize(x, (*x.shape[:2], *sides, x.shape[-1]), "linear")

    def compare(
        self,
        encoded: Encoded,
        latents: Latents,
        video: Features,
        key: jax.Array,
        micro: MicroBatch | None = None,
        **seen: Any,
    ) -> Compared:
        """The decoded features beside the features."""
        decoded = self.decode(latents)
        return Compared(decoded, {EMBEDDING: (decoded, video)})


class CodedFeatures(Wrapped):
    """``tokenizer`` codes the features of ``model``, which is frozen: its input -> features -> codes, and back.

    Args:
      model: a tokenizer with continuous tokens on a grid, frame by frame.
      tokenizer: a ``FeatureCodec``, built with what ``of_model`` says.
    """

    drops = True

    def __init__(self, model: Tokenizer, tokenizer: FeatureCodec):
        self.model, self.tokenizer = model, tokenizer

    @property
    def field(self) -> str:
        """What the frozen model encodes."""
        return self.model.field

    @property
    def needs(self) -> Sequence[str]:
        """What the frozen model is told when it decodes."""
        return self.model.needs

    @property
    def drawn_with(self) -> Mapping[str, Any]:
        """How the frozen model draws."""
        return self.model.drawn_with

    @property
    def diffuses(self) -> bool:
        return self.model.diffuses

    @property
    def coder(self) -> Tokenizer:
        return self

    @property
    def compression(self) -> Compression:
        """A token of ``time`` is a frame; the queries are of the whole frame."""
        own, codec = self.model.compression, self.tokenizer
        return Compression(own.time, own.height * codec.size[0], own.width * codec.size[1], own.first_alone)

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the last layer of the decoder that is trained."""
        return ("tokenizer", *self.tokenizer.last_layer)

    def budgets(self, layout: Layout) -> list[int]:
        """None, as of the codec."""
        return []

    def layout(self, shape: VideoShape) -> Layout:
        """The tokens of a clip; raises ``UserError`` for frames that the frozen model does not take."""
        return self.tokenizer.layout_of((self.model.layout(shape).only.length("time"), self.tokenizer.queries))

    def encode(self, video: Array, request: Any = None) -> Encoded:
        """What the frozen model encodes, to latents before quantisation.

        Raises:
          UserError: there is a request: all tokens of a frame are needed.
        """
        if request is not None:
            raise UserError("this tokenizer decodes whole frames of tokens only: ask for no number of them")
        features = jax.lax.stop_gradient(self.model.encode(video).values)
        encoded = self.tokenizer.encode(features)
        return encoded._replace(extra={**encoded.extra, FEATURES: features})

    def compare(
        self,
        encoded: Encoded,
        latents: Latents,
        video: Video,
        key: jax.Array,
        micro: MicroBatch | None = None,
        **seen: Any,
    ) -> Compared:
        """The decoded features beside the features; nothing is drawn, so the video stands for itself."""
        return self.tokenizer.compare(encoded, latents, encoded.extra[FEATURES], key, micro)._replace(video=video)

    def decode(self, latents: Latents, kept: Bool[Array, "batch time query"] | None = None, **settings: Any) -> Video:
        """Quantised latents to pixels; ``settings`` are those of the frozen model's ``decode``."""
        return self.model.decode(self.tokenizer.decode(latents, kept), **settings)


def of_model(config: Mapping[str, Any], model: Tokenizer) -> dict[str, Any]:
    """The config of a ``FeatureCodec`` with the sizes of the features of a frozen model in the place of its ``clip``.

    Raises:
      UserError: there is no clip, or the model gives codes, or features without a place.
    """
    settings = dict(config)
    if "clip" not in settings:
        raise UserError("a codec of features has frames of one size: give model.clip")
    shape = VideoShape(*settings.pop("clip"))
    layout = model.layout(shape).only if model.on_grid else None
    if layout is None or not layout.channels:
        raise UserError("a codec of features needs a model that gives features of every place of a frame")
    return {**settings, "size": layout.shape[1:], "channels": layout.channels}
