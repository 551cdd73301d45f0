"""The tokenizer of clips of any size: the same tokens for all, decoded to all; its places, its resizing, its bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from tests.tokenizers.test_invariants import CONFIGS
from videogen.configs import instella
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers import build
from videogen.tokenizers.one_d_any_size import ResidualDown, ResidualUp, joint_places

CONFIG = CONFIGS["one_d_any_size"] | {"clip": (1, 8, 8), "quantizer": {"name": "bernoulli", "bits": 6}}


@functools.cache
def model():
    return with_random_parameters(nnx.eval_shape(lambda: build(CONFIG, rngs=nnx.Rngs(0))))


def picture(height: int, width: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 1, height, width, 3)), jnp.float32)


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_pictures_of_every_published_size_have_128_tokens_of_64_bits(side):
    published = nnx.eval_shape(lambda: build(instella.autoencoder("paper"), rngs=nnx.Rngs(0)))
    assert published.layout(VideoShape(1, side, side)).bits == 8192
    graph, state = nnx.split(published)

    def run(state, video):
        model = nnx.merge(graph, state)
        tokens = model.tokenize(video)
        return tokens, model.detokenize(tokens, size=(side, 2 * side))

    tokens, decoded = jax.eval_shape(run, state, jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.float32))
    assert tokens.only.values.shape == (1, 128, 64) and tokens.only.layout.vocabulary == (2,) * 64
    assert decoded.shape == (1, 1, side, 2 * side, 3)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (12, 20)])
def test_the_same_tokens_decode_at_every_size(height, width):
    tokens = jax.jit(model().tokenize)(picture(height, width))
    assert tokens.only.values.shape == (2, 5, 6) and set(np.unique(tokens.only.values)) == {0, 1}
    latents = model().lookup(tokens)
    np.testing.assert_array_equal(latents, tokens.only.values)
    for size in ((height, width), (4, 16)):
        video = model().detokenize(tokens, size=size)
        assert video.shape == (2, 1, *size, 3) and jnp.isfinite(video).all()
    assert model().detokenize(tokens).shape == (2, 1, 8, 8, 3)
    # What training compares and what tokens decode to are of the size of the clip, and one.
    clip = VideoShape(1, height, width)
    compared = model().denoise(latents, picture(height, width), jax.random.key(0))
    np.testing.assert_allclose(
        jnp.clip(compared, -1, 1), model().detokenize(tokens, **model().sized(clip)), rtol=1e-5, atol=1e-6
    )


def test_clips_that_cannot_be_halved_are_named():
    for shape in ((1, 6, 8), (1, 8, 2), (2, 8, 8)):
        with pytest.raises(UserError, match="clips of 1 frames as a whole, whose height and width are multiples of 4"):
            model().layout(VideoShape(*shape))
    with pytest.raises(UserError, match="got 1×8×6"):
        model().decode(jnp.zeros((1, 5, 6)), size=(8, 6))
    for settings, message in (
        ({"clip": (1, 6, 8)}, "multiples of 4 and 4"),
        ({"resized_after": (1, 3)}, "beyond the 2 layers"),
        ({"rotary_channels": (2, 2, 2)}, "add up to the 8 channels of a head"),
    ):
        with pytest.raises(UserError, match=message):
            build(CONFIG | settings, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("grid", [(1, 4, 4), (1, 64, 32), (1, 1, 3), (1, 1, 1)])
def test_corners_are_at_the_ends_of_the_range_whatever_the_size(grid):
    places = joint_places(3, grid, 17.0)
    np.testing.assert_array_equal(places[:3], [[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    last = [0.0, *(16.0 if n > 1 else 0.0 for n in grid[1:])]
    np.testing.assert_array_equal(places[3], [0, 0, 0])
    np.testing.assert_array_equal(places[-1], last)
    assert np.isfinite(places).all() and len(places) == 3 + np.prod(grid)
    if grid[2] > 1:
        np.testing.assert_allclose(places[4], [0, 0, 16 / (grid[2] - 1)], rtol=1e-6)


def test_frames_of_a_video_follow_the_queries():
    places = joint_places(3, (3, 1, 1), 4.0)
    np.testing.assert_array_equal(places[:, 0], [0, 1, 2, 0, 3, 4])


@pytest.mark.parametrize("kernels", [(3, 3), (2, 1)])
def test_resizing_halves_and_doubles_and_its_shortcut_keeps_constants(kernels):
    common = dict(dtype=jnp.float32, rngs=nnx.Rngs(0))
    down, up = ResidualDown(6, kernels[0], **common), ResidualUp(6, kernels[1], **common)
    x = jax.random.normal(jax.random.key(0), (2, 1, 4, 6, 6))
    assert down(x).shape == (2, 1, 2, 3, 6) and up(down(x)).shape == x.shape
    for module in (down, up):
        _, params = nnx.split(module)
        nnx.update(module, jax.tree.map(jnp.zeros_like, params))
    constant = jnp.broadcast_to(jnp.arange(6.0), x.shape)
    np.testing.assert_array_equal(down(constant), constant[:, :, :2, :3])
    np.testing.assert_array_equal(up(constant), jnp.broadcast_to(jnp.arange(6.0), (2, 1, 8, 12, 6)))
    # The mean of four places, and each place four times.
    np.testing.assert_allclose(down(x)[0, 0, 0, 0], x[0, 0, :2, :2].mean((0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(down(up(x)), x, rtol=1e-5, atol=1e-6)


def test_the_embedding_of_bits_is_the_sum_of_their_rows():
    embed, bits = model().embed, jnp.array([[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1]], jnp.float32)
    first, second = embed(bits)
    np.testing.assert_allclose(embed(bits.sum(0)[None])[0], first + second, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(embed(jnp.zeros((1, 6))), 0)


def test_tokens_are_not_mixed_on_their_way_to_the_quantizer():
    x = jax.random.normal(jax.random.key(1), (1, 5, 16))
    jacobian = jax.jacrev(lambda x: model().to_code(model().encoder_norm(x)).sum(-1)[0])(x)[:, 0]
    assert (np.abs(jacobian).max(-1) > 0).tolist() == np.eye(5, dtype=bool).tolist()


def test_codes_that_are_dropped_are_not_seen():
    latents = jax.random.normal(jax.random.key(0), (2, 5, 6))
    kept = jnp.arange(5)[None] < jnp.array([[2], [4]])
    other = jnp.where(kept[..., None], latents, 9.0)
    np.testing.assert_allclose(model().decode(latents, kept), model().decode(other, kept), atol=1e-5)
    assert jnp.abs(model().decode(latents) - model().decode(latents, kept)).max() > 1e-3


def test_what_a_place_becomes_depends_on_all_codes_and_its_place():
    """By gradients: every pixel on every code; two places of the grid differ though they begin as one vector."""
    latents = jax.random.normal(jax.random.key(0), (1, 5, 6))
    video = model().decode(latents)
    patches = video.reshape(4, 2, 4, 2, 3).swapaxes(1, 2).reshape(16, -1)
    assert np.abs(patches[:, None] - patches[None]).max(-1)[~np.eye(16, dtype=bool)].min() > 1e-4
    slope = jax.jit(jax.jacrev(lambda z: model().decode(z)[0, 0, ::7, ::7].sum(-1)))(latents)
    assert (np.abs(slope[:, :, 0]).max(-1) > 0).all()
