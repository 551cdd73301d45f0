"""The video VAEs of LTX-Video and LTX-2 (Lightricks, 2024 to 2026), equal to their publication.

The encoder is causal: what stands before the first frame is the first frame again. Decoders are causal or see as far
ahead as back. Those of version 0.9.1 and later are one step of a diffusion: they are told a time, what they decode are
slightly noisy latents, and some of their blocks add noise of their own. Both networks are given as a list of stages
(``tokenizers.staged``), as the published files describe them.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.nn import MicroBatch, Stream, constant, draw, example_keys, named_key, parameter
from videogen.nn.convolution import EDGE
from videogen.nn.modulation import TIME_SCALE
from videogen.quantizers import GaussianQuantizer
from videogen.ranges import Count, OneOf, Share
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.convolutional import Cache
from videogen.tokenizers.staged import Kind, Network, Noise, Told

ENCODER = (
    {"name": "blocks", "count": 4},
    {"name": "strided"},
    {"name": "widen", "width": 256},
    {"name": "blocks", "count": 3},
    {"name": "strided"},
    {"name": "widen", "width": 512},
    {"name": "blocks", "count": 3},
    {"name": "strided"},
    {"name": "blocks", "count": 3},
    {"name": "blocks", "count": 4},
)
"""Of 0.9.0 and 0.9.1, behind a convolution to 128 channels."""

DECODER = (
    {"name": "blocks", "count": 4},
    {"name": "blocks", "count": 3},
    {"name": "unfold", "width": 512},
    {"name": "blocks", "count": 3},
    {"name": "widen", "width": 256},
    {"name": "unfold", "width": 256},
    {"name": "blocks", "count": 3},
    {"name": "widen", "width": 128},
    {"name": "unfold", "width": 128},
    {"name": "blocks", "count": 4},
)
"""Of 0.9.0, behind a convolution to 512 channels."""

FRAMES = ("zeros", "mirrored")
"""What stands around frames."""

Around = Annotated[str, OneOf(*FRAMES)]


class TimeScale(nnx.Variable):
    """What times are multiplied by before their embedding: a tensor of the files, which no gradient trains."""


class Ltx(Tokenizer):
    """Continuous latents, of 8 × 32 × 32 pixels as published; raw ones, before the statistics of the file.

    Latent j depends on frames up to 8j only, and the first frame of a clip is coded as a picture. All channels of a
    latent have the same variance.

    Args:
      width: channels of the encoder behind its first convolution …
      decoder_width: … and of the decoder.
      latents: channels of a latent.
      encoder: stages ``{name, …}`` (``STAGES``) from the pixels down.
      decoder: stages from the latents up.
      patch: pixels of a side that become channels first.
      channels: colour channels.
      causal: the decoder does not see later latents, so that it can decode in chunks.
      time: that the decoder is told where ``decode`` is not given another (published: 0.05); ``None``: it is told none.
      noise_scale: share of noise in the latents that a decoder with a time decodes.
      frames: what stands around frames, in the encoder and in the decoder (``FRAMES``).
      remat: unused; what is trained of it keeps all.

    Raises:
      UserError: stages that do not fit.
    """

    last_layer = ("decoder", "output")
    prefix_equal = True

    def __init__(
        self,
        width: Count = 128,
        decoder_width: Count = 512,
        latents: Count = 128,
        *,
        encoder: Sequence[Mapping[str, Any]] = ENCODER,
        decoder: Sequence[Mapping[str, Any]] = DECODER,
        patch: Count = 4,
        channels: Count = 3,
        causal: bool = False,
        time: Share | None = None,
        noise_scale: Share = 0.025,
        frames: tuple[Around, Around] = ("zeros", "zeros"),
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.patch, self.dtype = patch, dtype
        self.time, self.noise_scale, timed = time, noise_scale, time is not None
        self.quantizer = GaussianQuantizer(latents)
        mirrored, pixels = [each == "mirrored" for each in frames], channels * patch**2
        kind = Kind("replicate", mirrored[0], False)
        self.encoder = Network(pixels, width, latents + 1, encoder, kind, **common)
        kind = Kind("replicate" if causal else EDGE, mirrored[1], timed)
        self.decoder = Network(latents, decoder_width, pixels, decoder, kind, **common)
        networks = self.encoder, self.decoder
        down, up = [own.down for own in networks], [own.up for own in networks]
        if down[0] != up[1] or {*down[1], *up[0]} != {1}:
            raise UserError(
                f"the encoder goes down by {down[0]}, up by {up[0]} and the decoder down by {down[1]}, up by {up[1]}; "
                "the one must go down as far as the other goes up"
            )
        self.compression = Compression(down[0][0], patch * down[0][1], patch * down[0][2])
        self.time_scale = parameter(rngs, (), (), constant(TIME_SCALE), TimeScale) if timed else None
        self.noisy = any(section.get("noise", False) for section in decoder)
        self.streams = causal and not timed and not self.noisy

    @property
    def drawn_with(self) -> Mapping[str, Any]:
        """The time and the share of noise, of a decoder that is told them."""
        return {"time": self.time, "noise_scale": self.noise_scale} if self.time is not None else {}

    def _encoded(self, video: Video, stream: Stream | None = None) -> Float[Array, "batch ..."]:
        x, p = video.astype(self.dtype), self.patch
        batch, t, h, w, channels = x.shape
        # Published code has the colour first, then the column, then the row of a pixel in its patch.
        x = x.reshape(batch, t, h // p, p, w // p, p, channels).transpose(0, 1, 2, 4, 6, 5, 3)
        x = self.encoder(x.reshape(batch, t, h // p, w // p, -1), Told(stream=stream)).astype(jnp.float32)
        mean, log_variance = x[..., :-1], x[..., -1:]
        return jnp.concatenate([mean, jnp.broadcast_to(log_variance, mean.shape)], axis=-1)

    def _decoded(self, latents: Latents, told: Told) -> Video:
        x, p = self.decoder(latents.astype(self.dtype), told), self.patch
        batch, t, h, w, _ = x.shape
        x = x.reshape(batch, t, h, w, -1, p, p).transpose(0, 1, 2, 6, 3, 5, 4)
        return x.reshape(batch, t, h * p, w * p, -1).astype(jnp.float32)

    def encode(self, video: Video, request: None = None) -> Encoded:
        self.layout(VideoShape(*video.shape[1:4]))
        return Encoded(self._encoded(video))

    def encode_chunk(self, cache: Cache | None, chunk: Video) -> tuple[Cache, Encoded]:
        self.check_chunk(chunk, first=cache is None)
        stream = Stream(cache)
        latents = self._encoded(chunk, stream)
        return stream.cache, Encoded(latents)

    def decode(
        self,
        latents: Latents,
        kept: None = None,
        *,
        keys: jax.Array | None = None,
        time: float | Float[Array, "batch"] | None = None,
        noise_scale: float | None = None,
        injected: bool = True,
    ) -> Video:
        """Latents to pixels; no example depends on the others.

        Args:
          latents: raw ones, ``[batch, time, height, width, latents]``.
          kept: not used: the decoder needs all latents.
          keys: of the noise, one or one of each example; ``None``: the same noise for every clip, always.
          time: that the decoder is told, in [0, 1], one or one of each example; ``None`` takes the setting.
          noise_scale: the decoder sees ``(1 - noise_scale) · latents + noise_scale · noise``, as in diffusers; 0: no
            noise; ``None`` takes the setting. (The original code does so with normalised latents.)
          injected: blocks that add noise of their own do so.

        Raises:
          UserError: a time or noise for a decoder that is told no time.
        """
        batch = len(latents)
        timed = self.time is not None
        if not timed and (time is not None or noise_scale is not None):
            raise UserError("this decoder is told no time and decodes latents without noise: leave these settings out")
        keys = jnp.broadcast_to(jax.random.key(0), (batch,)) if keys is None else example_keys(keys, batch)
        if timed:
            share = self.noise_scale if noise_scale is None else noise_scale
            noise = draw(jax.random.normal, named_key(keys, "latents"), latents.shape)
            latents = (1 - share) * latents.astype(jnp.float32) + share * noise
            time = jnp.broadcast_to(jnp.asarray(self.time if time is None else time, jnp.float32), (batch,))
            # The embedding multiplies by the usual scale itself.
            time = time * (self.time_scale.get_value() / TIME_SCALE)
        return self._decoded(latents, Told(time, Noise(keys) if injected and self.noisy else None))

    def denoise(
        self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None, **seen: Any
    ) -> Video:
        """``decode`` at the time of the setting, with noise by ``key``."""
        keys = (micro or MicroBatch()).keys(named_key(key, "noise"), len(video))
        return self.decode(latents, keys=keys)

    def decode_chunk(self, cache: Cache | None, latents: Latents) -> tuple[Cache, Video]:
        if not self.streams:
            return super().decode_chunk(cache, latents)
        stream = Stream(cache)
        video = self._decoded(latents, Told(stream=stream))
        return stream.cache, video
