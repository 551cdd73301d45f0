"""First-frame and tubelet patches: separate paths, so that an image is a one-frame video."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.nn.linear import Linear
from videogen.nn.norms import LayerNorm
from videogen.shapes import Compression, Latents, Video


def patchify(
    frames: Float[Array, "batch time height width channel"], size: tuple[int, int, int]
) -> Float[Array, "batch a b c patch"]:
    """Cuts frames into ``time × height × width`` boxes, each flattened to one vector."""
    batch, t, h, w, channel = frames.shape
    pt, ph, pw = size
    x = frames.reshape(batch, t // pt, pt, h // ph, ph, w // pw, pw, channel)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, t // pt, h // ph, w // pw, pt * ph * pw * channel)


def unpatchify(
    patches: Float[Array, "batch a b c patch"], size: tuple[int, int, int]
) -> Float[Array, "batch time height width channel"]:
    """The inverse of ``patchify``."""
    batch, t, h, w, _ = patches.shape
    pt, ph, pw = size
    x = patches.reshape(batch, t, h, w, pt, ph, pw, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(batch, t * pt, h * ph, w * pw, -1)


class FirstFramePatches(nnx.Module):
    """Embeds frame 0 in ``1 × h × w`` patches and the rest in ``t × h × w`` tubelets (C-ViViT, Phenaki section 2.1).

    The two projections have separate weights, each followed by a layer norm. phenaki-pytorch also normalises the
    raw patch; that discards the brightness of flat patches, and reconstructions then stay several dB behind.
    """

    def __init__(
        self, compression: Compression, width: int, *, channels: int = 3, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.compression, self.dtype = compression, dtype
        area = compression.height * compression.width * channels

        def path(inputs: int) -> nnx.Dict:
            return nnx.Dict(
                linear=Linear(inputs, width, axes=(None, "embed"), dtype=dtype, rngs=rngs),
                norm=LayerNorm(width, rngs=rngs),
            )

        self.first = path(area)
        self.rest = path(area * compression.time)

    def __call__(self, video: Video, *, continued: bool = False) -> Latents:
        """``[batch, 1 + k·t, height, width, 3]`` -> ``[batch, 1 + k, h, w, embed]``.

        A video that is ``continued`` from an earlier chunk has no first frame: k·t frames -> k latents.
        """
        c = self.compression

        def embed(path: nnx.Dict, frames: Video, time: int) -> Latents:
            return path.norm(path.linear(patchify(frames, (time, c.height, c.width))))

        video = video.astype(self.dtype)
        if continued:
            return embed(self.rest, video, c.time)
        first = embed(self.first, video[:, :1], 1)
        if video.shape[1] == 1:
            return first
        return jnp.concatenate([first, embed(self.rest, video[:, 1:], c.time)], axis=1)


class FirstFramePixels(nnx.Module):
    """Maps latents back to pixels: one linear projection for frame 0, one for tubelets (no convolution)."""

    def __init__(
        self, compression: Compression, width: int, *, channels: int = 3, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.compression = compression
        area = compression.height * compression.width * channels
        self.first = Linear(width, area, axes=("embed", None), dtype=dtype, rngs=rngs)
        self.rest = Linear(width, area * compression.time, axes=("embed", None), dtype=dtype, rngs=rngs)

    def __call__(self, latents: Latents, *, continued: bool = False) -> Video:
        """``[batch, 1 + k, h, w, embed]`` -> ``[batch, 1 + k·t, height, width, 3]``, float32.

        Latents that are ``continued`` from an earlier chunk have no first frame: k latents -> k·t frames.
        """
        c = self.compression
        if continued:
            return unpatchify(self.rest(latents), (c.time, c.height, c.width)).astype(jnp.float32)
        first = unpatchify(self.first(latents[:, :1]), (1, c.height, c.width))
        if latents.shape[1] == 1:
            return first.astype(jnp.float32)
        rest = unpatchify(self.rest(latents[:, 1:]), (c.time, c.height, c.width))
        return jnp.concatenate([first, rest], axis=1).astype(jnp.float32)
