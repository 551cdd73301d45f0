"""A row of codes for every latent frame: learned queries that see the frames so far, so that videos stream.

The 1-D tokenizers of images and clips (``one_d``) code a fixed number of frames as a whole. This one is our extension
of them to videos of any length; it has the same parts, and a window in time.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import (
    FULL,
    FirstFramePatches,
    FirstFramePixels,
    KeyValues,
    Linear,
    SlidingWindow,
    Stack,
    Stream,
    Within,
    angles_at,
    normal,
    parameter,
    read_transformer,
    sincos_positions,
    truncated_normal,
)
from videogen.ranges import Count, OneOf, Positive, Triple
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers import lengths as length_rules
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.one_d import DROPPED
from videogen.tokens import Layout

FRAME = "frame"
"""The tag of attention that is the latent frame of a token."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
    """What a stack keeps of the frames before: its size does not depend on how many there were.

    Attributes:
      keys: keys and values of the last frames, of every layer.
      frames: how many latent frames there were.
    """

    keys: tuple[KeyValues, ...]
    frames: Int[Array, ""]


class CausalOneD(Tokenizer):
    """``queries`` codes for each latent frame, which see that frame and the ``window - 1`` before it.

    Encoder and decoder are transformers over the frames' [patches; queries] and [codes; patch queries]. Inside a frame
    everything sees everything, a frame sees none that comes later. Places in a frame are learned or sines, the time is
    rotary, so a video may be longer than those of training: chunks equal the whole, in constant memory.

    Args:
      size: height and width of every frame.
      patch: ``(time, height, width)`` of a patch; the first frame stands alone and uses ``(1, height, width)``.
      queries: number of codes of a latent frame.
      encoder: section of the transformer over patches and queries (``nn.read_transformer``), with layer norms.
      decoder: section of the transformer over codes and patch queries.
      quantizer: quantizer config ``{name, …}``.
      window: latent frames that a token sees in a layer, its own included.
      lengths: length rule ``{name, …}``, which counts the codes of a frame; without one every code is seen.
      dropped: how the decoder does without a code, one of ``one_d.DROPPED``.
      query_scale: standard deviation of the fresh queries.
      channels: colour channels.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    sides = ("time", "query")
    last_layer = ("pixels", "rest")
    drops = prefix_equal = streams = True

    def __init__(
        self,
        size: tuple[Count, Count],
        patch: Triple,
        queries: Count,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        quantizer: Mapping[str, Any],
        *,
        window: Count = 4,
        lengths: Mapping[str, Any] | None = None,
        dropped: Annotated[str, OneOf(*DROPPED)] = "hidden",
        query_scale: Positive = 0.02,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        read, write = (read_transformer(section, norm="layer") for section in (encoder, decoder))
        made_with = dict(remat=remat, dtype=dtype, rngs=rngs)
        self.size, self.codes, self.window, self.dtype = tuple(size), queries, window, dtype
        self.patch = tuple(patch)
        self.compression = Compression(patch[0], *size)
        self.places = VideoShape(1, *size).grid(self.feature_compression).shape[1:]
        self.lengths = length_rules.build(lengths or {"name": "all"})
        common = dict(channels=channels, dtype=dtype, rngs=rngs)
        self.patches = FirstFramePatches(self.feature_compression, read.width, **common)
        self.queries = parameter(rngs, (queries, read.width), (None, "embed"), normal(query_scale))
        self.encoder, self.encoder_norm = read.stack(**made_with), read.last_norm(rngs=rngs)
        self.quantizer = quantizers.build(quantizer, rngs=rngs)
        # Quantizers work in float32, so the projections around them do too.
        self.to_code = Linear(read.width, self.quantizer.input_width, axes=("embed", None), precision=FULL, rngs=rngs)
        self.from_code = Linear(
            self.quantizer.width, write.width, axes=(None, "embed"), precision=FULL, dtype=dtype, rngs=rngs
        )
        initial = truncated_normal(0.02)
        self.no_code = parameter(rngs, (write.width,), (None,), initial) if dropped == "replaced" else None
        self.patch_type = parameter(rngs, (write.width,), (None,), initial)
        self.decoder, self.decoder_norm = write.stack(**made_with), write.last_norm(rngs=rngs)
        self.pixels = FirstFramePixels(self.feature_compression, write.width, **common)
        self.head_widths = {"encoder": read.head_width, "decoder": write.head_width}

    @property
    def feature_compression(self) -> Compression:
        return Compression(*self.patch)

    def layout(self, shape: VideoShape) -> Layout:
        """A row of codes for every latent frame; raises ``UserError`` for frames of another size."""
        if (shape.height, shape.width) != self.size:
            built, got = (f"{height}×{width}" for height, width in (self.size, (shape.height, shape.width)))
            raise UserError(f"this tokenizer codes frames of {built} as a whole, got {got}; set data.clip to that")
        return self.layout_of((self.compression.latent_frames(shape.frames), self.codes))

    def encode(self, video: Video, request: int | None = None) -> Encoded:
        """Pixels to ``[batch, time, queries, code]`` before quantisation, float32.

        Args:
          video: in [-1, 1].
          request: how many codes of each frame the decoder is to see, the first ones; ``None`` leaves it to the rule.
        """
        self.layout(VideoShape(*video.shape[1:4]))
        encoded = self._encoded(self.patches(video), None)[1]
        if request is None:
            return encoded
        if not 1 <= request <= self.codes:
            raise UserError(f"this tokenizer has 1 … {self.codes} tokens for a frame, and {request} are asked for")
        shape = encoded.values.shape[:-1]
        return encoded._replace(extra={length_rules.ASKED: length_rules.first(jnp.full(shape[0], request), shape)})

    def encode_chunk(self, cache: Past | None, chunk: Video) -> tuple[Past, Encoded]:
        self.check_chunk(chunk, first=cache is None)
        past = cache or self._begin(self.encoder, len(chunk), self.codes)
        return self._encoded(self.patches(chunk, continued=cache is not None), past)

    def decode(self, latents: Latents, kept: Bool[Array, "batch time queries"] | None = None) -> Video:
        """Quantised latents to pixels; frame f depends on the latents of the frames up to its own only."""
        return self._decoded(latents, kept, None, continued=False)[1]

    def decode_chunk(self, cache: Past | None, latents: Latents) -> tuple[Past, Video]:
        past = cache or self._begin(self.decoder, len(latents), self.codes)
        return self._decoded(latents, None, past, continued=cache is not None)

    def _encoded(
        self, patches: Float[Array, "batch time height width embed"], past: Past | None
    ) -> tuple[Any, Encoded]:
        batch, frames, *_, width = patches.shape
        patches = patches.reshape(batch, frames, -1, width) + self._sines(width)
        queries = jnp.broadcast_to(self.queries.get_value().astype(self.dtype), (batch, frames, *self.queries.shape))
        x = jnp.concatenate([patches, queries], axis=2)
        past, x = self._attend("encoder", x, past)
        x = self.encoder_norm(x[:, :, patches.shape[2] :])
        return past, Encoded(self.to_code(x.astype(jnp.float32)))

    def _decoded(
        self, latents: Latents, kept: Bool[Array, "batch time queries"] | None, past: Past | None, *, continued: bool
    ) -> tuple[Any, Video]:
        codes = self.from_code(latents)
        batch, frames, count, width = codes.shape
        if kept is not None and self.no_code is not None:
            codes, kept = jnp.where(kept[..., None], codes, self.no_code.get_value().astype(codes.dtype)), None
        codes = codes + jnp.asarray(sincos_positions([count], width), codes.dtype)
        patches = self._sines(width) + self.patch_type.get_value().astype(self.dtype)
        x = jnp.concatenate([codes, jnp.broadcast_to(patches, (batch, frames, *patches.shape))], axis=2)
        seen = None
        if kept is not None:
            seen = jnp.concatenate([kept, jnp.ones((batch, frames, len(patches)), bool)], axis=2).reshape(batch, -1)
        past, x = self._attend("decoder", x, past, seen)
        x = self.decoder_norm(x[:, :, count:]).reshape(batch, frames, *self.places, width)
        return past, self.pixels(x, continued=continued)

    def _sines(self, width: int) -> Float[Array, "patches width"]:
        return jnp.asarray(sincos_positions(self.places, width), self.dtype)

    def _attend(
        self,
        name: str,
        x: Float[Array, "batch time group width"],
        past: Past | None,
        seen: Bool[Array, "batch tokens"] | None = None,
    ) -> tuple[Past | None, Float[Array, "batch time group width"]]:
        """The layers over frames that follow on ``past``, and what they leave for the next ones."""
        batch, frames, group, _ = x.shape
        own = np.repeat(np.arange(frames), group)
        first = 0 if past is None else past.frames
        angles = angles_at((first + own)[:, None], self.head_widths[name])
        call = dict(mask=Within(FRAME, before=self.window - 1), tags={FRAME: first + own}, rotary=angles, key_mask=seen)
        stack, flat = getattr(self, name), x.reshape(batch, frames * group, -1)
        if past is None:
            return None, stack(flat, **call).reshape(x.shape)
        stream = Stream([_with_room(past.keys, frames * group)])
        y = stack(flat, **call, stream=stream).reshape(x.shape)
        (keys,) = stream.cache
        return Past(_last(keys, (self.window - 1) * group), past.frames + frames), y

    def _begin(self, stack: Stack, batch: int, codes: int) -> Past:
        """The past of a video's first frame, of which nothing exists."""
        group = codes + int(np.prod(self.places))
        return Past(stack.begin(batch, (self.window - 1) * group, tags=(FRAME,)), jnp.zeros((), jnp.int32))


def _with_room(caches: tuple[KeyValues, ...], count: int) -> tuple[KeyValues, ...]:
    """Caches of stacked layers, with places for ``count`` more tokens."""

    def pad(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, count if i == axis % x.ndim else 0) for i in range(x.ndim)])

    def one(cache: KeyValues) -> KeyValues:
        places = cache.places
        named = {name: jax.tree.map(lambda a: pad(a, -1), getattr(places, name)) for name in _OF_PLACES}
        grown = dataclasses.replace(places, **named)
        return dataclasses.replace(cache, key=pad(cache.key, -1), value=pad(cache.value, -2), places=grown)

    return tuple(map(one, caches))


def _last(caches: tuple[KeyValues, ...], count: int) -> tuple[KeyValues, ...]:
    """Caches of stacked layers with the last ``count`` tokens alone."""

    def one(cache: KeyValues) -> KeyValues:
        kept = jax.vmap(lambda layer: layer.evict(SlidingWindow(count + 1)))(cache)
        named = {name: jax.tree.map(lambda a: a[..., :count], getattr(kept.places, name)) for name in _OF_PLACES}
        places = dataclasses.replace(kept.places, **named)
        return dataclasses.replace(kept, key=kept.key[..., :count], value=kept.value[..., :count, :], places=places)

    return tuple(map(one, caches))


_OF_PLACES = ("exists", "index", "bias", "tags")
"""What a cache knows of each of its places."""
