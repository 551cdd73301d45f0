"""Signers drawn from maps: what is told, what guidance drops, windows, the codec around it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from videogen import tokenizers
from videogen.errors import UserError
from videogen.shapes import VideoShape

VAE = {"name": "convolutional", "width": 8, "multipliers": (1, 1), "blocks": 1, "spatial_strides": (2,)}
VAE |= {"temporal_strides": (1,), "time_kernel": 1, "norm_groups": 4, "quantizer": {"name": "gaussian", "width": 3}}
NETWORK = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
DRAWING = {"guidance": ((("reference",), 3.0),), "steps": 2, "window": 4, "overlap": 1}
CORE = {"name": "sign_diffusion", "clip": (3, 8, 8), "context_width": 8, "denoising": DRAWING}
CORE |= {"encoder": {"channels": (4, 4), "strides": (1, 2)}, "denoiser": {"transformer": NETWORK, "patch": (1, 2, 2)}}
VIDEO = {"name": "sign_video", "vae": VAE, "tokenizer": CORE}
CODEC = {"name": "feature_codec", "clip": (3, 8, 8), "width": 8, "multipliers": (1, 2), "blocks": 1, "norm_groups": 4}
CODEC |= {"quantizer": {"name": "fsq", "levels": (5, 5, 5, 5), "bound": "symmetric"}}


@pytest.fixture(scope="module")
def model():
    """With random weights in the place of those that begin at 0."""
    model = tokenizers.build(VIDEO, rngs=nnx.Rngs(0))
    core = model.tokenizer

    def shake(path, leaf):
        return leaf + 0.3 * jax.random.normal(jax.random.key(len(jax.tree_util.keystr(path))), leaf.shape)

    nnx.update(core.denoiser, jax.tree_util.tree_map_with_path(shake, nnx.state(core.denoiser, nnx.Param)))
    core.statistics.count.set_value(jnp.array(500))
    return model


@pytest.fixture(scope="module")
def clips():
    return jax.random.uniform(jax.random.key(1), (2, 3, 8, 8, 3), minval=-1.0)


@pytest.fixture(scope="module")
def maps():
    return jax.random.uniform(jax.random.key(2), (2, 3, 8, 8, 6), minval=-1.0)


@pytest.fixture(scope="module")
def decode(model):
    graph, state = nnx.split(model)
    run = jax.jit(
        lambda state, latents, reference, guidance: nnx.merge(graph, state).decode(
            latents, reference=reference, guidance=guidance
        ),
        static_argnums=3,
    )
    return lambda latents, reference, guidance: run(state, latents, reference, guidance)


def test_the_embedding_has_the_places_of_the_latents(model, maps):
    encoded = model.encode(maps)
    assert encoded.values.shape == (2, 3, 4, 4, 8) == (2, *model.layout(VideoShape(3, 8, 8)).only.shape, 8)
    assert model.field == "maps" and model.needs == ("reference",)


def test_a_scale_of_1_is_the_conditional_prediction(model, maps, clips):
    """Property 10: nothing else is computed, so the bits agree."""
    core, embedding = model.tokenizer, model.encode(maps).values
    picture = core.statistics.normalise(model.latents(clips[:, :1]))[:, 0]
    noisy, t = jax.random.normal(jax.random.key(3), (2, 3, 4, 4, 3)), jnp.full(2, 0.5)
    kept = {part: jnp.zeros(2, bool) for part in ("reference", "pose")}
    wanted = core.predict(noisy, t, embedding, picture, kept)
    guided = model.denoiser(embedding, picture, ((("reference",), 1.0), (("pose",), 1.0)))(noisy, t)
    np.testing.assert_array_equal(guided, wanted)


def test_guidances_add_their_differences_in_order(model, maps, clips):
    core, embedding = model.tokenizer, model.encode(maps).values
    picture = core.statistics.normalise(model.latents(clips[:, :1]))[:, 0]
    noisy, t = jax.random.normal(jax.random.key(3), (2, 3, 4, 4, 3)), jnp.full(2, 0.5)

    def predict(**dropped):
        masks = {part: jnp.full(2, part in dropped) for part in ("reference", "pose")}
        return core.predict(noisy, t, embedding, picture, masks)

    told, plain, still = predict(), predict(reference=1), predict(pose=1)
    assert float(jnp.abs(told - plain).max()) > 1e-3 and float(jnp.abs(told - still).max()) > 1e-3
    guided = model.denoiser(embedding, picture, ((("reference",), 3.0), (("pose",), 1.5)))(noisy, t)
    np.testing.assert_allclose(guided, told + 2 * (told - plain) + 0.5 * (told - still), atol=1e-4)


def test_guidance_away_from_a_null_that_is_told_changes_nothing(decode, clips):
    """The embedding of a clip without maps is the null already: scales 1 and 3 give the same."""
    silent = jnp.zeros((2, 3, 4, 4, 8))
    found = [decode(silent, clips[:, 0], ((("pose",), scale),)) for scale in (1.0, 3.0)]
    np.testing.assert_allclose(*found, atol=1e-5)


def test_the_reference_and_the_maps_decide_the_video(model, decode, maps, clips):
    embedding = model.encode(maps).values
    first = decode(embedding, clips[:, 0], ())
    other_maps, other_looks = decode(embedding[::-1], clips[:, 0], ()), decode(embedding, clips[::-1, 0], ())
    assert first.shape == clips.shape
    assert min(float(jnp.abs(first - x).max()) for x in (other_maps, other_looks)) > 1e-3
    # Examples do not see each other.
    np.testing.assert_allclose(decode(embedding[::-1], clips[::-1, 0], ())[::-1], first, atol=1e-4)


def test_clips_longer_than_a_window_are_drawn_in_windows(model, decode, clips):
    """9 frames in windows of 4 that share 1; a constant embedding gives frames that do not depend on the cut."""
    out = decode(jnp.ones((2, 9, 4, 4, 8)), clips[:, 0], ())
    assert out.shape == (2, 9, 8, 8, 3) and bool(jnp.isfinite(out).all())


def test_the_embedding_begins_without_influence():
    """The projection into the tokens is 0, so that a fresh model is the one without maps."""
    model = tokenizers.build(VIDEO, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(model.tokenizer.denoiser.added.kernel[...], 0)


def test_a_gradient_reaches_every_parameter_of_stage_one(model, maps, clips):
    # With shares of 0.5 both the null and the reference occur.
    def loss(core, key):
        whole = tokenizers.SignVideo(model.vae, core)
        encoded = whole.encode(maps)
        ((value, target),) = whole.compare(encoded, encoded.values, clips, key).passes.values()
        return jnp.mean((value - target) ** 2)

    graph, params, rest = nnx.split(model.tokenizer, nnx.Param, ...)
    grad = jax.jit(jax.grad(lambda p, key: loss(nnx.merge(graph, p, rest), key)))
    grads = [grad(params, jax.random.key(i)) for i in range(12)]
    total = jax.tree.map(lambda *g: sum(np.abs(x).max() for x in g), *grads)
    missing = [k for k, v in nnx.to_flat_state(total) if not float(v[...]) > 0]
    assert not missing


def test_pixels_of_a_long_clip_are_those_of_its_frames(model):
    """9 frames are more than a window of 4, so they are decoded one by one; 3 are not."""
    latents = jax.random.normal(jax.random.key(7), (2, 9, 4, 4, 3))
    np.testing.assert_allclose(model.pixels(latents)[:, 3:6], model.pixels(latents[:, 3:6]), atol=1e-5)


def test_the_record_names_the_guidance_and_is_json(model):
    of_config = tokenizers.build(ConfigDict(VIDEO), rngs=nnx.Rngs(0))
    assert json.loads(json.dumps(of_config.drawn_with)) == model.drawn_with
    assert model.drawn_with["solver"] == {"name": "ddim", "eta": 0.0}
    assert model.drawn_with["guidance"] == [{"dropped": ["reference"], "scale": 3.0}]
    assert model.drawn_with["steps"] == 2 and model.drawn_with["window"] == 4


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"denoising": {**DRAWING, "guidance": ((("hands",), 2.0),)}}, "no part 'hands'"),
        ({"denoising": {**DRAWING, "overlap": 4}}, "overlap by 0 to 3"),
        ({"encoder": {"channels": (4,), "strides": (1,)}}, "stride 1 and the VAE 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed, match):
    with pytest.raises(UserError, match=match):
        tokenizers.build({**VIDEO, "tokenizer": {**CORE, **changed}}, rngs=nnx.Rngs(0))


def test_the_codec_around_it_codes_maps_and_draws_videos(model, maps, clips):
    coded = tokenizers.build({"name": "coded_features", "model": VIDEO, "tokenizer": CODEC}, rngs=nnx.Rngs(0))
    layout = coded.layout(VideoShape(3, 8, 8)).only
    assert layout.sides == (("time", 3), ("query", 4)) and layout.vocabulary == (625,)
    tokens = coded.tokenize(maps)
    assert tokens.only.layout == layout and coded.field == "maps"
    assert coded.detokenize(tokens, reference=clips[:, 0], steps=1).shape == clips.shape
    assert coded.drawn_with == model.drawn_with and coded.budgets(coded.layout(VideoShape(3, 8, 8))) == []
