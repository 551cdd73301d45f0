"""Patches: inverse maps, box contents, and images as one-frame videos."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.nn import FirstFramePatches, FirstFramePixels, patchify, unpatchify
from videogen.shapes import Compression

COMPRESSION = Compression(2, 4, 2)


def video(frames: int = 5) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (2, frames, 8, 6, 3), minval=-1)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 4, 3), (4, 2, 6)])
def test_round_trip(size):
    frames = video(4)
    patches = patchify(frames, size)
    assert patches.shape == (2, 4 // size[0], 8 // size[1], 6 // size[2], 3 * np.prod(size))
    np.testing.assert_array_equal(unpatchify(patches, size), frames)
    np.testing.assert_array_equal(patchify(unpatchify(patches, size), size), patches)


def test_a_patch_holds_its_box():
    frames = video(4)
    patches = patchify(frames, (2, 4, 3))
    np.testing.assert_array_equal(patches[1, 1, 0, 1], frames[1, 2:4, 0:4, 3:6].ravel())


def test_an_image_is_the_first_frame_of_a_clip():
    embed = jax.jit(FirstFramePatches(COMPRESSION, 10, rngs=nnx.Rngs(0)))
    pixels = jax.jit(FirstFramePixels(COMPRESSION, 10, rngs=nnx.Rngs(0)))
    clip, image = embed(video()), embed(video()[:, :1])
    assert clip.shape == (2, 3, 2, 3, 10) and image.shape == (2, 1, 2, 3, 10)
    np.testing.assert_allclose(clip[:, :1], image, atol=1e-6)
    assert pixels(clip).shape == video().shape and pixels(clip).dtype == jnp.float32
    np.testing.assert_allclose(pixels(clip)[:, :1], pixels(image), atol=1e-6)


def test_each_latent_sees_exactly_its_frames():
    embed = jax.jit(FirstFramePatches(COMPRESSION, 10, rngs=nnx.Rngs(0)))
    reference = embed(video())
    for frame in range(5):
        changed = embed(video().at[:, frame].multiply(jnp.linspace(0.1, 0.9, 6)[:, None]))
        touched = np.abs(np.asarray(changed - reference)).max(axis=(0, 2, 3, 4)) > 1e-5
        np.testing.assert_array_equal(touched, [frame in COMPRESSION.frames_of_latent(i) for i in range(3)])


def test_each_frame_comes_from_exactly_its_latent():
    pixels = jax.jit(FirstFramePixels(COMPRESSION, 10, rngs=nnx.Rngs(0)))
    latents = jax.random.normal(jax.random.key(1), (1, 3, 2, 3, 10))
    reference = pixels(latents)
    for index in range(3):
        changed = pixels(latents.at[:, index].add(1.0))
        touched = np.abs(np.asarray(changed - reference)).max(axis=(0, 2, 3, 4)) > 1e-5
        np.testing.assert_array_equal(touched, [COMPRESSION.latent_of_frame(f) == index for f in range(5)])


def test_gradient_reaches_every_parameter():
    def loss(state):
        embed, pixels = nnx.merge(graph, state)
        return jnp.sum(jnp.sin(pixels(embed(video()))))

    modules = (
        FirstFramePatches(COMPRESSION, 10, rngs=nnx.Rngs(0)),
        FirstFramePixels(COMPRESSION, 10, rngs=nnx.Rngs(1)),
    )
    graph, state = nnx.split(modules)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(state)):
        assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_bfloat16_latents():
    embed = FirstFramePatches(COMPRESSION, 10, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert embed(video()).dtype == jnp.bfloat16
    assert FirstFramePixels(COMPRESSION, 10, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(embed(video())).dtype == jnp.float32
