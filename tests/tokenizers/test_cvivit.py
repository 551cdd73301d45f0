"""The Phenaki sheet's invariants 1-5 of C-ViViT, and that every parameter learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers import build
from videogen.tokens import Tokens

CONFIG = {
    "name": "cvivit",
    "patch": (2, 4, 4),
    "width": 32,
    "heads": 2,
    "mlp_width": 64,
    "encoder_layers": (2, 2),
    "decoder_layers": (2, 2),
    "quantizer": {"name": "vq", "size": 64, "width": 8},
}
FRAMES = 9


def make(**changes):
    model = build(CONFIG | changes, rngs=nnx.Rngs(0))
    # Away from the zero-ish initialisation, so that every path matters to the tests.
    state = nnx.state(model, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(state))))
    nnx.update(model, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), state))
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def video():
    return jax.random.uniform(jax.random.key(2), (2, FRAMES, 16, 16, 3), minval=-1.0)


def test_latents_depend_on_no_later_frame(model, video):
    encode = jax.jit(lambda v: model.encode(v).values)
    latents = encode(video)
    for frame in range(FRAMES):
        changed = encode(video.at[:, frame].set(-video[:, frame]))
        first = model.compression.latent_of_frame(frame)
        np.testing.assert_array_equal(latents[:, :first], changed[:, :first])
        assert np.abs(latents[:, first] - changed[:, first]).max() > 1e-3


def test_frames_depend_on_no_later_latent(model):
    decode = jax.jit(model.decode)
    latents = jax.random.normal(jax.random.key(3), (1, 5, 4, 4, model.quantizer.width))
    video = decode(latents)
    for latent in range(5):
        changed = decode(latents.at[:, latent].add(1.0))
        first = model.compression.frames_of_latent(latent).start
        np.testing.assert_array_equal(video[:, :first], changed[:, :first])
        assert np.abs(video[:, first] - changed[:, first]).max() > 1e-3


def test_every_frame_depends_on_every_earlier_frame(model, video):
    """Causality alone would hold for a model that ignores time."""

    def last_latent(pixels):
        return jnp.sum(model.encode(pixels).values[:, -1] ** 2)

    influence = jnp.abs(jax.jit(jax.grad(last_latent))(video)).sum((0, 2, 3, 4))
    assert (influence > 1e-6).all()


@pytest.mark.parametrize("frames", [1, 3, 5, 7])
def test_codes_of_a_prefix_are_a_prefix_of_the_codes(model, video, frames):
    tokenize = jax.jit(model.tokenize)
    whole, part = tokenize(video), tokenize(video[:, :frames])
    np.testing.assert_array_equal(whole.only.values[:, : part.only.values.shape[1]], part.only.values)
    assert part.layout == model.layout(VideoShape(frames, 16, 16))


@pytest.mark.slow
def test_an_image_is_a_one_frame_video(model, video):
    image = model.tokenize(video[:, :1])
    assert image.layout.only.shape == (1, 4, 4)
    np.testing.assert_array_equal(image.only.values, model.tokenize(video).only.values[:, :1])
    assert model.detokenize(image).shape == (2, 1, 16, 16, 3)


@pytest.mark.parametrize("frames", [2, 4, 10])
def test_frame_counts_off_the_grid_are_refused(model, frames):
    with pytest.raises(UserError, match=r"1 \+ 2·k frames"):
        model.encode(jnp.zeros((1, frames, 16, 16, 3)))


def test_codes_are_unit_vectors_and_cosine_agrees_with_euclid(model, video):
    z = model.encode(video).values
    codes = model.quantizer.lookup(jnp.arange(64)[:, None])
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1.0, atol=1e-5)
    unit = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    distance = jnp.linalg.norm(unit[..., None, :] - codes, axis=-1)
    np.testing.assert_array_equal(distance.argmin(-1), model.tokenize(video).only.values[..., 0])


def test_first_frame_and_tubelets_have_weights_of_their_own(model, video):
    """Gradients of the first latent reach only the first-frame projection."""
    graph, state = nnx.split(model)

    def first_latent(state):
        return jnp.sum(nnx.merge(graph, state).encode(video).values[:, 0] ** 2)

    grads = nnx.to_pure_dict(jax.jit(jax.grad(first_latent, allow_int=True))(state))["patches"]
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads["first"]))
    assert all(jnp.abs(g).max() == 0 for g in jax.tree.leaves(grads["rest"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizer",
    [
        # That of a codebook is learned in test_invariants.py.
        {"name": "fsq", "levels": [8, 5, 5]},
        {"name": "lfq", "bits": 6},
    ],
)
def test_gradient_reaches_every_parameter(video, quantizer):
    graph, params, rest = nnx.split(make(quantizer=quantizer), nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, rest)
        latents, _, losses, _ = model.bottleneck(model.encode(video))
        return jnp.mean((model.decode(latents) - video) ** 2) + sum(losses.values())

    grads = jax.jit(jax.grad(loss))(params)
    silent = [path for path, g in nnx.to_flat_state(grads) if not jnp.abs(g.get_value()).max() > 0]
    assert not silent


def test_detokenize_inverts_tokenize_up_to_the_codes(model, video):
    """Codes -> pixels -> the same decoder input: lookup equals what the bottleneck emitted."""
    latents, codes, _, _ = jax.jit(lambda video: model.bottleneck(model.encode(video)))(video)
    pixels, decoded = jax.jit(model.detokenize)(codes), jax.jit(model.decode)(latents)
    np.testing.assert_allclose(pixels, jnp.clip(decoded, -1, 1), atol=1e-4)
    assert isinstance(codes, Tokens) and codes.only.values.shape == (2, 5, 4, 4, 1)
    assert codes.only.values.min() >= 0 and codes.only.values.max() < model.vocabulary[0]
