"""Targets of masked places: ids on the grid of the network, features, pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import encoders, tokenizers
from videogen.configs.networks import cvivit
from videogen.configs.tokenflow import STAND_IN
from videogen.configs.video_text import image_codes
from videogen.errors import UserError
from videogen.losses.distillation import at_places
from videogen.shapes import Compression, VideoShape
from videogen.tasks.visual_targets import Codes, Features, PatchPixels, resized

CLIP = VideoShape(3, 12, 12)
VIDEO = jax.random.uniform(jax.random.key(0), (2, 3, 12, 12, 3), minval=-1)


def pictures() -> nnx.Module:
    """Codes of 4 x 4 pixels, frame by frame."""
    model = image_codes("debug")
    model.update({"width": 8, "norm_groups": 2})
    return tokenizers.build(model, dtype=jnp.float32, remat="none", rngs=nnx.Rngs(0))


def clips() -> nnx.Module:
    """Codes of 4 x 4 pixels and two frames, the first alone."""
    model = cvivit("debug")
    model.update({"width": 16, "heads": 2, "mlp_width": 16, "decoder_layers": (0, 0)})
    return tokenizers.build(model, dtype=jnp.float32, remat="none", rngs=nnx.Rngs(0))


def test_frames_alone_have_the_ids_of_pictures_on_the_grid_of_the_network():
    tokenizer = pictures()
    target = Codes((3, 2, 2), CLIP, tokenizer)
    assert target.outputs == 64
    ids = target({"tokenizer": tokenizer}, VIDEO, None)
    small = jax.image.resize(VIDEO, (2, 3, 8, 8, 3), "linear", antialias=True)
    for t in range(3):
        expected = tokenizer.tokenize(small[:, t : t + 1]).only.values
        np.testing.assert_array_equal(ids[:, t : t + 1], expected[..., 0])
    assert ids.shape == (2, 3, 2, 2)
    assert resized(VIDEO, VideoShape(1, 12, 12)) is VIDEO


def test_frames_together_have_the_ids_of_their_latent_frame():
    tokenizer = clips()
    target = Codes((3, 3, 3), CLIP, tokenizer, frames="together")
    ids = target({"tokenizer": tokenizer}, VIDEO, None)
    latents = tokenizer.tokenize(VIDEO).only.values[..., 0]
    assert latents.shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(ids, latents[:, np.array([0, 1, 1])])
    # A network with as many times as there are latent frames has theirs.
    as_many = Codes((2, 3, 3), CLIP, tokenizer, frames="together")
    np.testing.assert_array_equal(as_many({"tokenizer": tokenizer}, VIDEO, None), latents)


def test_no_gradient_reaches_the_tokenizer_or_the_teacher():
    tokenizer = pictures()
    target = Codes((3, 2, 2), CLIP, tokenizer)
    slope = jax.grad(lambda v: target({"tokenizer": tokenizer}, v, None).astype(jnp.float32).sum())(VIDEO)
    assert not np.asarray(slope).any()


@pytest.mark.parametrize("grid", [(2, 2, 2), (4, 2, 2)])
def test_another_grid_is_refused(grid):
    with pytest.raises(UserError, match=r"the grid of ids \(3, 2, 2\) is not that of the tokens"):
        Codes(grid, CLIP, pictures())


def test_tokens_that_are_no_ids_on_a_grid_are_refused():
    model = {
        **image_codes("debug").to_dict(),
        "width": 8,
        "norm_groups": 2,
        "quantizer": {"name": "gaussian", "width": 4},
    }
    continuous = tokenizers.build(model, dtype=jnp.float32, remat="none", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="targets are ids on a grid, one at each place"):
        Codes((3, 2, 2), CLIP, continuous)


def test_pixels_of_places():
    target = PatchPixels((3, 2, 2), CLIP)
    assert target.outputs == 3 * 36
    found = np.asarray(target({}, VIDEO, None))
    np.testing.assert_array_equal(found[1, 2, 0, 1], np.asarray(VIDEO)[1, 2, :6, 6:].reshape(-1))
    with pytest.raises(UserError, match="12 rows of pixels do not divide into 5 tokens"):
        PatchPixels((3, 5, 2), CLIP)


@pytest.mark.slow
def test_features_of_the_teacher_at_the_places_of_the_network():
    teacher = encoders.load("shapes_classifier", encoders.folder_of("shapes_classifier", ""))
    clip = VideoShape(4, 24, 24)
    video = jax.random.uniform(jax.random.key(0), (1, 4, 24, 24, 3), minval=-1)
    target = Features((2, 3, 3), clip, teacher)
    grid = teacher.grid(video)
    assert target.outputs == grid.shape[-1] and STAND_IN["name"] == "shapes_classifier"
    expected = at_places(grid, (2, 3, 3), 4, Compression(2, 1, 1, first_alone=False))
    np.testing.assert_allclose(target({"teacher": teacher}, video, None), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="4 frames are no multiple of the 3 times"):
        Features((3, 3, 3), clip, teacher)
