"""Video Swin as the vision encoder of clips: its grid, its pixels, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.encoders.preprocessing import IMAGENET_STATISTICS
from videogen.errors import UserError
from videogen.language.vision_encoders import build_encoder
from videogen.shapes import VideoShape

MODEL = {"width": 4, "depths": (1, 1), "heads": (1, 1), "window": (2, 2, 2), "patch": (1, 3, 3)}


def encoder(clip: tuple[int, int, int] = (2, 12, 18), **model):
    section = {"name": "video_swin", "model": {**MODEL, **model}}
    settings = dict(remat="none", dtype=jnp.float32, rngs=nnx.Rngs(0))
    return build_encoder(section, VideoShape(*clip), None, **settings)


def test_every_frame_has_a_place_of_its_own():
    found = encoder()
    assert found.sides == (2, 2, 3) and found.channels == 8 and found.centres == (0.0, 1.0)
    video = jax.random.uniform(jax.random.key(0), (1, 2, 12, 18, 3), minval=-1)
    mean, std = (np.asarray(IMAGENET_STATISTICS[name], np.float32) for name in ("mean", "std"))
    expected = found.network.maps(((video + 1) / 2 - mean) / std)
    assert expected.shape == (1, 2, 2, 3, 8)
    np.testing.assert_allclose(found(video, None), expected, rtol=1e-4, atol=1e-5)
    # A classifier is no part of it, and patches of two frames are half as many.
    assert encoder(classes=7).network.classifier is None
    halved = encoder(patch=(2, 3, 3))
    assert halved.sides == (1, 2, 3) and halved.centres == (0.5,)


@pytest.mark.uncompiled
def test_what_cannot_be_is_one_line():
    with pytest.raises(UserError, match="clip width 15 is no multiple of 6"):
        encoder((2, 12, 15))
    with pytest.raises(UserError, match="clip frames 3 is no multiple of 2"):
        encoder((3, 12, 12), patch=(2, 3, 3))
    with pytest.raises(UserError, match="all of their frames must be there"):
        encoder()(jnp.zeros((1, 2, 12, 18, 3)), None, jnp.ones((1, 2), bool))
    with pytest.raises(UserError, match="no setting 'widths'"):
        encoder(widths=3)
