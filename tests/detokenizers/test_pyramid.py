"""Layers along a pyramid: what they begin as, and settings that are refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.detokenizers import Down, FrameAttention, Pyramid, Up
from videogen.errors import UserError
from videogen.shapes import Compression

SETTINGS = {"widths": (4, 4), "spatial_strides": (2, 1), "temporal_strides": (1, 2)}


def test_strides_multiply_to_the_compression():
    assert Pyramid.read(SETTINGS).compression == Compression(2, 2, 2)
    published = {"widths": (128, 256, 384, 512), "spatial_strides": (1, 2, 2, 2), "temporal_strides": (1, 1, 2, 2)}
    assert Pyramid.read(published).compression == Compression(4, 8, 8)


@pytest.mark.parametrize(("padding", "first"), [("zero", 0.5), ("replicate", 1.0)])
def test_time_down_sampling_begins_as_a_mean(padding, first):
    down = Down(3, (2, 1), Pyramid.read(SETTINGS | {"padding": padding}), dtype=jnp.float32, rngs=nnx.Rngs(0))
    constant = down(jnp.ones((1, 5, 2, 2, 3)))
    np.testing.assert_allclose(constant, np.array([first, 1, 1]).reshape(1, 3, 1, 1, 1) * np.ones((1, 3, 2, 2, 3)))
    video = np.random.default_rng(0).normal(size=(1, 5, 2, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(down(video)[:, 1], video[:, 1:3].mean(1), atol=1e-6)


@pytest.mark.parametrize("time", [2, 3])
def test_time_up_sampling_begins_as_repetition_of_all_but_the_first_frame(time):
    up = Up(3, (time, 1), Pyramid.read(SETTINGS), dtype=jnp.float32, rngs=nnx.Rngs(0))
    video = np.random.default_rng(0).normal(size=(1, 3, 2, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(up(video), np.repeat(video, time, axis=1)[:, time - 1 :], atol=1e-6)


def test_attention_sees_its_own_frame_only_and_all_of_it():
    attention = FrameAttention(4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    video = np.random.default_rng(0).normal(size=(1, 2, 3, 3, 4)).astype(np.float32)
    changed = video.copy()
    changed[:, 1, 0, 0] += np.arange(4)
    difference = np.abs(attention(video) - attention(changed)).max(-1)
    assert (difference[:, 0] == 0).all() and (difference[:, 1] > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_strides": (2,)}, "2 widths of a pyramid need 2 spatial_strides"),
        ({"padding": "same"}, "future"),
        ({"upsampling": "nearst"}, "did you mean 'nearest'"),
        ({"kernels": ((3, 3, 3),)}, "2 kernels"),
        ({"strides": (1, 2)}, "has no setting 'strides'"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        Pyramid.read(SETTINGS | changes)
