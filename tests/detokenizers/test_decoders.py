"""Decoding by diffusion: one step is one prediction, an oracle is found in any steps, chunks are the whole."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from videogen.detokenizers import build
from videogen.detokenizers.decoders import START
from videogen.errors import UserError

PYRAMID = {"widths": (4, 6), "spatial_strides": (2, 1), "temporal_strides": (1, 2), "edge_kernel": (3, 3, 3)}
PYRAMID |= {"kernels": ((3, 3, 3), (3, 1, 1)), "padding": "replicate", "upsampling": "subpixel"}
CONFIG = {"name": "diffusion", "pyramid": PYRAMID, "widths": (4, 6, 6, 8), "deeper_strides": (2,), "context_width": 3}


def make(**changes) -> nnx.Module:
    """A decoder with random parameters; latents are five channels wide."""
    config = CONFIG | changes
    config |= {"noise_steps": 64} if config["name"] == "diffusion" else {}
    abstract = nnx.eval_shape(lambda: build(config, inputs=5, remat="none", dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return with_random_parameters(abstract, seed=0)


@functools.cache
def compiled(name: str) -> tuple[nnx.Module, Callable, Callable]:
    """A decoder of this name, and its ``decode`` and ``decode_chunk``, which all tests share."""
    model = make(name=name)
    return model, jax.jit(model.decode), jax.jit(model.decode_chunk)


LATENTS = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 3, 3, 5)), jnp.float32)
"""Three rows and columns: the stride below them does not divide a side."""


def chunked(decode: Callable, cuts: tuple[int, ...]) -> jax.Array:
    """The clip decoded by ``decode_chunk`` in chunks that end at these latents."""
    cache, videos = None, []
    for start, stop in zip((0, *cuts), cuts, strict=False):
        cache, video = decode(cache, LATENTS[:, start:stop])
        videos.append(video)
    return jnp.concatenate(videos, axis=1)


@pytest.mark.slow
def test_one_step_is_the_prediction_from_reduced_noise():
    model, decode, _ = compiled("diffusion")
    video = decode(LATENTS)
    assert video.shape == (2, 5, 6, 6, 3)

    @jax.jit
    def predict(latents):
        noise = jnp.broadcast_to(0.8 * model.noise(START, 0, video.shape[1:]), video.shape)
        return model.denoiser(noise, jnp.ones(2), model.context(latents))

    np.testing.assert_allclose(video, predict(LATENTS), atol=2e-5)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_an_oracle_is_found_in_any_number_of_steps(monkeypatch, steps, solver):
    model = make(solver={"name": solver})
    truth = np.random.default_rng(3).uniform(-1, 1, (2, 5, 6, 6, 3)).astype(np.float32)
    monkeypatch.setattr(type(model.denoiser), "__call__", lambda self, noisy, time, context, stream: truth)
    np.testing.assert_allclose(model.decode(LATENTS, steps=steps), truth, atol=1e-6)


def test_noise_of_a_frame_depends_on_its_number_alone():
    model, *_ = compiled("diffusion")
    whole = model.noise(START, 0, (5, 2, 2, 3))
    np.testing.assert_array_equal(model.noise(START, 1, (4, 2, 2, 3)), whole[1:])
    assert float(jnp.abs(model.noise(1, 0, (5, 2, 2, 3)) - whole).min()) > 0
    assert len(np.unique(whole)) == whole.size


def test_decoding_is_the_same_for_every_place_in_a_batch_and_every_length():
    _, decode, _ = compiled("diffusion")
    whole = decode(LATENTS)
    np.testing.assert_allclose(decode(LATENTS[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(decode(LATENTS[:, :2]), whole[:, :3], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusion", "regression"])
@pytest.mark.parametrize("cuts", [(1, 2, 3), (2, 3)])
def test_chunks_of_any_size_are_the_whole(name, cuts):
    _, decode, decode_chunk = compiled(name)
    np.testing.assert_allclose(chunked(decode_chunk, cuts), decode(LATENTS), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [{"name": "ddim"}, {"name": "ddim", "eta": 1.0}])
def test_chunks_are_the_whole_in_two_steps_and_need_the_context_of_each(solver):
    model = make(steps=2, solver=solver)
    whole = jax.jit(model.decode)(LATENTS)
    assert float(jnp.abs(whole - compiled("diffusion")[1](LATENTS)).max()) > 1e-2
    decode = jax.jit(model.decode_chunk)
    np.testing.assert_allclose(chunked(decode, (1, 3)), whole, atol=1e-4)
    (begun, features, levels), _ = decode(None, LATENTS[:, :1])
    # What the first step kept is wrong for the second: each sees the frames before at its own noise level.
    mixed = jax.tree.map(lambda kept: kept[::-1], levels)
    _, rest = decode((begun, features, mixed), LATENTS[:, 1:])
    assert float(jnp.abs(rest - whole[:, 1:]).max()) > 1e-2


def test_training_sees_a_noisy_video_and_the_latents():
    model, *_ = compiled("diffusion")
    video = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (2, 5, 6, 6, 3)), jnp.float32)
    denoise = jax.jit(model.denoise)
    first = denoise(LATENTS, video, jax.random.key(0))
    assert first.shape == video.shape
    for other in (
        denoise(LATENTS, video, jax.random.key(1)),
        denoise(LATENTS, -video, jax.random.key(0)),
        denoise(-LATENTS, video, jax.random.key(0)),
    ):
        assert float(jnp.abs(first - other).max()) > 1e-3


def test_regression_sees_no_video():
    model, decode, _ = compiled("regression")
    video = jnp.zeros((2, 5, 6, 6, 3))
    np.testing.assert_array_equal(jax.jit(model.denoise)(LATENTS, video, jax.random.key(0)), decode(LATENTS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps of .* must be a whole number of at least 1, got 0"),
        ({"solver": {"name": "heun"}}, "twice a step"),
        ({"solver": {"name": "dim"}}, "did you mean 'ddim'"),
        ({"time_distribution": {"name": "unifrm"}}, "did you mean 'uniform'"),
        ({"widths": (4, 6)}, "has 4 widths"),
        ({"name": "difusion"}, "did you mean 'diffusion'"),
        ({"step": 2}, "did you mean 'steps'"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        nnx.eval_shape(lambda: build(CONFIG | changes, inputs=5, remat="none", dtype=jnp.float32, rngs=nnx.Rngs(0)))
