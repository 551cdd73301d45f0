"""C-ViViT: the causal tubelet tokenizer of Phenaki (section 2.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen import quantizers
from videogen.nn import (
    NORMS,
    Block,
    Causal,
    ContinuousPositionBias,
    FirstFramePatches,
    FirstFramePixels,
    Linear,
    Stack,
    grid_of,
    rotary_angles,
)
from videogen.shapes import Codes, Compression, Latents, TokenGrid, Video, VideoShape


class FactorisedStack(nnx.Module):
    """Spatial layers (all-to-all inside each latent frame) and causal temporal layers (at each place over time)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        spatial_layers: int,
        temporal_layers: int,
        *,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        depth = spatial_layers + temporal_layers
        self.head_width = width // heads

        def make(**positions: Any) -> Any:
            return lambda r: Block(width, heads, mlp_width, depth=depth, dtype=dtype, rngs=r, **positions)

        # Spatial layers know places by the relative bias, temporal layers by the causal position generator.
        self.spatial = Stack(make(), spatial_layers, remat=remat, rngs=rngs)
        self.temporal = Stack(make(position_generator="causal", time_axis=3), temporal_layers, remat=remat, rngs=rngs)
        self.bias = ContinuousPositionBias(heads, dtype=dtype, rngs=rngs) if spatial_layers else None

    def space(self, x: Latents) -> Latents:
        """Spatial layers on ``[batch, time, height, width, embed]``."""
        bias = self.bias(*x.shape[2:4]) if self.bias is not None else None
        return self.spatial(x, bias=bias, attended_axes=2)

    def time(self, x: Latents) -> Latents:
        """Temporal layers, on ``[batch, height, width, time, embed]`` inside."""
        x = jnp.moveaxis(x, 1, 3)
        angles = rotary_angles((x.shape[3],), self.head_width)
        return jnp.moveaxis(self.temporal(x, mask=Causal(), rotary=angles), 3, 1)


class CViViT(nnx.Module):
    """Causal video tokenizer with a separately patched first frame; codes of a prefix are a prefix of the codes.

    Args:
      patch: ``(time, height, width)`` of a tubelet; the first frame uses ``(1, height, width)``.
      width: token width.
      heads: attention heads.
      mlp_width: hidden width of the MLPs.
      encoder_layers: ``(spatial, causal temporal)`` layers of the encoder.
      decoder_layers: ``(spatial, causal temporal)`` layers of the decoder, which runs its temporal ones first.
      quantizer: quantizer config ``{name, …}``.
      channels: colour channels.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        patch: Sequence[int],
        width: int,
        heads: int,
        mlp_width: int,
        encoder_layers: Sequence[int],
        decoder_layers: Sequence[int],
        quantizer: Mapping[str, Any],
        *,
        channels: int = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.compression = Compression(*patch)
        common = dict(dtype=dtype, rngs=rngs)
        self.patches = FirstFramePatches(self.compression, width, channels=channels, **common)
        self.encoder = FactorisedStack(width, heads, mlp_width, *encoder_layers, remat=remat, **common)
        self.encoder_norm = NORMS["rms"](width, rngs=rngs)
        self.quantizer = quantizers.build(quantizer, rngs=rngs)
        # Quantizers work in float32, so the projections around them do too.
        self.to_code = Linear(width, self.quantizer.input_width, axes=("embed", None), rngs=rngs)
        self.from_code = Linear(self.quantizer.width, width, axes=(None, "embed"), **common)
        self.decoder = FactorisedStack(width, heads, mlp_width, *decoder_layers, remat=remat, **common)
        self.decoder_norm = NORMS["rms"](width, rngs=rngs)
        self.pixels = FirstFramePixels(self.compression, width, channels=channels, **common)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return self.quantizer.vocabulary

    def grid(self, shape: VideoShape) -> TokenGrid:
        """The token grid of a clip; raises ``UserError`` for a shape the tokenizer cannot take."""
        return shape.grid(self.compression, levels=len(self.vocabulary))

    def encode(self, video: Video) -> Latents:
        """Pixels to latents before quantisation; latent j depends on frames up to j·t only."""
        self.grid(VideoShape(*video.shape[1:4]))
        x = self.encoder.time(self.encoder.space(self.patches(video)))
        return self.encoder_norm(x)

    def bottleneck(
        self, latents: Latents, *, key: jax.Array | None = None, train: bool = False
    ) -> tuple[Latents, Codes, dict[str, Float[Array, ""]], dict[str, Array]]:
        """Quantises latents: ``(quantised latents, codes, losses, statistics)``."""
        quantized = self.quantizer(self.to_code(latents.astype(jnp.float32)), key=key, train=train)
        codes = Codes(quantized.indices, grid_of(latents, len(self.vocabulary)))
        return self.from_code(quantized.latents), codes, quantized.losses, quantized.statistics

    def decode(self, latents: Latents) -> Video:
        """Quantised latents to pixels; frame f depends on latents up to ceil(f/t) only."""
        x = self.decoder.space(self.decoder.time(latents))
        return self.pixels(self.decoder_norm(x))

    def encode_chunk(self, cache: Latents | None, chunk: Video) -> tuple[Latents, Latents]:
        """Encodes the next frames of a clip; all chunks together equal ``encode`` of the whole.

        Temporal attention reaches back to the first frame, so the cache is the temporal layers' input at every latent
        so far: it grows by a latent frame for t frames of pixels, and each chunk costs as much as all latents before.

        Args:
          cache: what the call before returned; ``None`` begins a clip.
          chunk: 1 + k·t frames at the beginning, k·t frames later.

        Returns:
          The cache for the next chunk, and the chunk's latents.
        """
        self.grid(self.compression.chunk(VideoShape(*chunk.shape[1:4]), first=cache is None))
        x = self.encoder.space(self.patches(chunk, continued=cache is not None))
        seen = x if cache is None else jnp.concatenate([cache, x], axis=1)
        return seen, self.encoder_norm(self.encoder.time(seen)[:, -x.shape[1] :])

    def decode_chunk(self, cache: Latents | None, latents: Latents) -> tuple[Latents, Video]:
        """Decodes the next quantised latents; the cache holds all of them, for the reason in ``encode_chunk``."""
        seen = latents if cache is None else jnp.concatenate([cache, latents], axis=1)
        x = self.decoder.space(self.decoder.time(seen)[:, -latents.shape[1] :])
        return seen, self.pixels(self.decoder_norm(x), continued=cache is not None)

    def tokenize(self, video: Video) -> Codes:
        """Pixels to codes."""
        return self.bottleneck(self.encode(video))[1]

    def detokenize(self, codes: Codes) -> Video:
        """Codes to pixels, clipped to [-1, 1]."""
        return jnp.clip(self.decode(self.from_code(self.quantizer.lookup(codes.indices))), -1.0, 1.0)
