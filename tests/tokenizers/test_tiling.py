"""Tiles against the whole frame: equal where a quarter of the overlap holds what a network sees, close elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tokenizers
from videogen.configs.networks import convolutional, cvivit
from videogen.errors import UserError
from videogen.nn import Convolution, DepthToSpace
from videogen.quantizers.gaussian import GaussianQuantizer
from videogen.shapes import Compression, VideoShape
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.long import LongVideos
from videogen.tokenizers.tiling import Tiled, read_tile


class Convolutions(Tokenizer):
    """Latents of 4 × 4 pixels that see 5 pixels beyond them, and pixels that see 1 latent beyond theirs; no norms."""

    def __init__(self):
        common = dict(padding="zero", rngs=nnx.Rngs(0))
        self.compression = Compression(1, 4, 4)
        self.first = Convolution(3, 8, (1, 3, 3), stride=(1, 2, 2), **common)
        self.second = Convolution(8, 8, (1, 3, 3), stride=(1, 2, 2), **common)
        self.up = DepthToSpace(8, 3, (1, 3, 3), stride=(1, 4, 4), **common)

        self.quantizer = GaussianQuantizer(8)

    def encode(self, video, request=None):
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
    latents = Tiled(model, (32, 32), 16).encode(clip).values
    np.testing.assert_allclose(latents, whole, atol=1e-5)
    np.testing.assert_allclose(Tiled(model, (32, 32), 16).decode(latents), model.decode(whole), atol=1e-5)


def test_without_overlap_the_same_tiles_differ():
    model, clip = Convolutions(), video(48, 72)
    difference = np.abs(Tiled(model, (32, 32), 0).encode(clip).values - model.encode(jnp.asarray(clip)).values)
    assert difference.max() > 1e-2


def real(name):
    config = (convolutional if name == "convolutional" else cvivit)("debug")
    if name == "cvivit":
        config.update({"width": 32, "heads": 2, "mlp_width": 64, "encoder_layers": (1, 0), "decoder_layers": (1, 0)})
    return tokenizers.build(config, dtype=jnp.float32, remat="none", rngs=nnx.Rngs(0))


def step_at(difference, seam):
    """Mean step of a difference from one column to the next, across a seam."""
    return np.abs(difference[:, :, :, seam] - difference[:, :, :, seam - 1]).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "latent_error", "pixel_error", "seam"),
    [("convolutional", 0.4, 0.22, 0.35), ("cvivit", 0.23, 0.27, 0.3)],
)
def test_what_norms_and_attention_see_of_the_frame_is_lost_but_seams_are_hidden(name, latent_error, pixel_error, seam):
    """Errors in standard deviations, of tokenizers with fresh weights and clips that differ across tiles."""
    model, clip = real(name), video(48, 48)
    whole = Tiled(model, (48, 48), 0).encode(clip).values
    rebuilt = Tiled(model, (48, 48), 0).decode(whole)
    latents = Tiled(model, (32, 32), 16).encode(clip).values
    blended = (Tiled(model, (32, 32), 16).decode(whole) - rebuilt) / rebuilt.std()
    cut = (Tiled(model, (24, 24), 0).decode(whole) - rebuilt) / rebuilt.std()
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
        Tiled(Convolutions(), tile, overlap).encode(video(48, 48))


def test_without_another_wish_tiles_share_a_fourth():
    model, clip = Convolutions(), video(48, 72)
    latents = Tiled(model, (32, 32)).encode(clip).values
    np.testing.assert_array_equal(latents, Tiled(model, (32, 32), 8).encode(clip).values)


@pytest.mark.slow
def test_a_tiled_tokenizer_is_one():
    model, clip = real("convolutional"), np.repeat(video(24, 40), 5, axis=1)
    tiled = Tiled(model, (16, 16))
    tokens = tiled.tokenize(clip)
    assert tokens.only.values.shape == model.tokenize(clip).only.values.shape and tiled.coder is model
    np.testing.assert_array_equal(tiled.detokenize(tokens), jnp.clip(tiled.decode(model.lookup(tokens)), -1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolutional", "cvivit"])
def test_long_videos_by_tiles_are_the_tiles_of_whole_clips(name):
    """The caches of windows of time, of bounded and of growing ones, belong to their tiles."""
    model = Tiled(real(name), (16, 16))
    unit = model.compression.time
    frames = 1 + 2 * unit
    still = video(24, 24)
    clip = np.concatenate([still * (1 - 0.2 * i) for i in range(frames)], axis=1)
    long = LongVideos(model, VideoShape(1 + unit, 24, 24))
    first = model.tokenize(clip[:, : 1 + unit]).only.values
    np.testing.assert_array_equal(long.encode(clip)[:, :2], first)
    if name == "convolutional":
        # Nothing that it sees is beyond its caches, so all windows are exact.
        whole = model.tokenize(clip)
        np.testing.assert_array_equal(long.encode(clip), whole.only.values)
        rebuilt = long.decode(whole.only.values)
        np.testing.assert_allclose(rebuilt, model.detokenize(whole), atol=1e-4)
    assert long.decode(long.encode(clip), frames=frames).shape == clip.shape


def test_a_tile_is_height_by_width():
    assert read_tile("64x96") == (64, 96)
    for text in ("64", "64x0", "ax64", "64x96x3"):
        with pytest.raises(UserError, match=f"--tile={text} must be HEIGHTxWIDTH"):
            read_tile(text)
