"""Properties of the LARP sheet beyond what every tokenizer promises; those of its quantizer and prior are with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, make, model_of, video_of
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers import build

CONFIG = CONFIGS["larp"]


@functools.cache
def influence_of_frames_on_latents() -> np.ndarray:
    """``[queries, frames]``"""
    latents = jax.jit(jax.jacrev(lambda v: jnp.sum(jnp.sin(model_of("larp").encode(v).values), -1)[0]))
    return np.asarray(jnp.abs(latents(video_of("larp"))).max((1, 3, 4, 5)))


@pytest.mark.parametrize("queries", [1, 5, 256])
def test_the_number_of_codes_is_free(queries):
    model = nnx.eval_shape(lambda: build(CONFIG | {"queries": queries}, rngs=nnx.Rngs(0)))
    video = jax.ShapeDtypeStruct((2, *CONFIG["clip"], 3), jnp.float32)
    graph, state = nnx.split(model)
    codes = jax.eval_shape(lambda s, v: nnx.merge(graph, s).tokenize(v), state, video)
    assert codes.only.values.shape == (2, queries, 1) and codes.layout.only.sides == (("query", queries),)
    assert model.layout(VideoShape(*CONFIG["clip"])) == codes.layout
    assert jax.eval_shape(lambda s, c: nnx.merge(graph, s).detokenize(c), state, codes).shape == video.shape


def test_a_fresh_decoder_gives_zeros():
    model = build(CONFIG, rngs=nnx.Rngs(0))
    latents = jax.random.normal(jax.random.key(0), (2, CONFIG["queries"], model.quantizer.width))
    np.testing.assert_array_equal(jax.jit(model.decode)(latents), np.zeros((2, *CONFIG["clip"], 3)))


def test_every_code_may_depend_on_every_frame():
    """Documents the difference to the causal family: the last frame alters all codes."""
    assert (influence_of_frames_on_latents() > 1e-6).all()


def test_every_pixel_may_depend_on_every_code():
    model = model_of("larp")
    latents = jax.random.normal(jax.random.key(0), (1, CONFIG["queries"], model.quantizer.width))
    patches = jax.jit(jax.jacrev(lambda x: jnp.sum(jnp.sin(model.decode(x)), (0, 4))))(latents)
    assert np.abs(patches).max((3, 5)).min() > 0


def test_codes_have_an_order_and_patches_have_places():
    """The decoder tells codes apart by their positions, and the encoder patches by theirs."""
    model = model_of("larp")
    latents = jax.random.normal(jax.random.key(0), (1, CONFIG["queries"], model.quantizer.width))
    decode, encode = jax.jit(model.decode), jax.jit(lambda v: model.encode(v).values)
    assert np.abs(decode(latents) - decode(latents[:, ::-1])).max() > 1e-3
    video = video_of("larp")
    # Whole patches change places.
    swapped = jnp.roll(video, CONFIG["patch"][2], axis=3)
    assert np.abs(encode(video) - encode(swapped)).max() > 1e-3


def test_draws_differ_in_training_only():
    model = make(CONFIG, quantizer={"name": "stochastic", "size": 32, "width": 6, "temperature": 0.5})
    latents = jax.jit(model.encode)(video_of("larp"))

    def ids(seed, train):
        return model.bottleneck(latents, key=jax.random.key(seed), train=train)[1].only.values

    assert (ids(0, True) != ids(1, True)).any()
    np.testing.assert_array_equal(ids(0, False), ids(1, False))


def test_other_clips_are_refused_with_the_remedy():
    frames, height, width = CONFIG["clip"]
    for clip in ((2 * frames, height, width), (1, height, width), (frames, height, 2 * width)):
        with pytest.raises(UserError, match="clips of 4×8×8 as a whole, got .*; set data.clip"):
            model_of("larp").encode(jnp.zeros((1, *clip, 3)))


def test_a_patch_that_does_not_divide_the_clip_is_named():
    with pytest.raises(UserError, match=r"3·k frames, got 4"):
        make(CONFIG, patch=(3, 4, 4))
