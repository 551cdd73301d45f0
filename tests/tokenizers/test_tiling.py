"""Tiles against the whole frame: equal where a quarter of the overlap holds what a network sees, close elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tokenizers
from videogen.configs import magvit2, phenaki
from videogen.errors import UserError
from videogen.nn import Convolution, DepthToSpace
from videogen.quantizers.gaussian import GaussianQuantizer
from videogen.shapes import Compression
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.tiling import decode_tiled, encode_tiled


class Convolutions(Tokenizer):
    """Latents of 4 × 4 pixels that see 5 pixels beyond them, and pixels that see 1 latent beyond theirs; no norms."""

    def __init__(self):
        common = dict(padding="zero", rngs=nnx.Rngs(0))
        self.compression = Compression(1, 4, 4)
        self.first = Convolution(3, 8, (1, 3, 3), stride=(1, 2, 2), **common)
        self.second = Convolution(8, 8, (1, 3, 3), stride=(1, 2, 2), **common)
        self.up = DepthToSpace(8, 3, (1, 3, 3), stride=(1, 4, 4), **common)

        self.quantizer = GaussianQuantizer(8)

    def encode(self, video):
        return Encoded(self.second(jax.nn.swish(self.first(video))))

    def decode(self, latents):
        return self.up(jax.nn.swish(latents))


def video(height, width):
    """Smooth, as frames are: noise would have neither the same content in all tiles nor any seams to see."""
    y, x = np.mgrid[:height, :width] / 16
    frames = np.stack([np.sin(y + c) * np.cos(x - c / 2) for c in range(3)], -1)
    return np.broadcast_to(frames, (1, 1, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(48, 72), (32, 32), (68, 44)])
def test_convolutions_are_exact_where_the_overlap_holds_what_they_see(height, width):
    model, clip = Convolutions(), video(height, width)
    whole = model.encode(jnp.asarray(clip)).values
    latents = encode_tiled(model, clip, (32, 32), 16)
    np.testing.assert_allclose(latents, whole, atol=1e-5)
    np.testing.assert_allclose(decode_tiled(model, latents, (32, 32), 16), model.decode(whole), atol=1e-5)


def test_without_overlap_the_same_tiles_differ():
    model, clip = Convolutions(), video(48, 72)
    difference = np.abs(encode_tiled(model, clip, (32, 32), 0) - model.encode(jnp.asarray(clip)).values)
    assert difference.max() > 1e-2


def real(name):
    config = (magvit2.convolutional if name == "convolutional" else phenaki.cvivit)("debug")
    if name == "cvivit":
        config.update({"width": 32, "heads": 2, "mlp_width": 64, "encoder_layers": (1, 0), "decoder_layers": (1, 0)})
    return tokenizers.build(config, dtype=jnp.float32, remat="none", rngs=nnx.Rngs(0))


def step_at(difference, seam):
    """Mean step of a difference from one column to the next, across a seam."""
    return np.abs(difference[:, :, :, seam] - difference[:, :, :, seam - 1]).mean()


@pytest.mark.parametrize(
    ("name", "latent_error", "pixel_error", "seam"),
    [("convolutional", 0.4, 0.22, 0.35), ("cvivit", 0.23, 0.27, 0.3)],
)
def test_what_norms_and_attention_see_of_the_frame_is_lost_but_seams_are_hidden(name, latent_error, pixel_error, seam):
    """Errors in standard deviations, of tokenizers with fresh weights and clips that differ across tiles."""
    model, clip = real(name), video(48, 48)
    whole = encode_tiled(model, clip, (48, 48), 0)
    rebuilt = decode_tiled(model, whole, (48, 48), 0)
    latents = encode_tiled(model, clip, (32, 32), 16)
    blended = (decode_tiled(model, whole, (32, 32), 16) - rebuilt) / rebuilt.std()
    cut = (decode_tiled(model, whole, (24, 24), 0) - rebuilt) / rebuilt.std()
    assert np.abs(latents - whole).mean() < latent_error * whole.std()
    assert np.abs(blended).mean() < pixel_error
    # Both have a seam in the middle.
    assert step_at(blended, 24) < min(seam, 0.7 * step_at(cut, 24))


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [((30, 32), 16, "height 30"), ((32, 32), 6, "multiple of the patch 4"), ((16, 32), 16, "between 0 and 3")],
)
def test_tiles_that_do_not_fit_are_refused(tile, overlap, message):
    with pytest.raises(UserError, match=message):
        encode_tiled(Convolutions(), video(48, 48), tile, overlap)
