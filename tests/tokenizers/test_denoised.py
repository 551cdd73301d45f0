"""Tokenizers that learn from a diffusion transformer which is told their tokens: Divot and DiCoDe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from tests.tokenizers.test_invariants import CONFIGS, NETWORK
from videogen import data, tokenizers
from videogen.errors import UserError
from videogen.nn import MicroBatch, named_key, read_transformer
from videogen.shapes import VideoShape
from videogen.tokenizers import build_normaliser
from videogen.tokenizers.denoised import V
from videogen.tokenizers.divot import Motion
from videogen.tokenizers.normaliser import FixedNormaliser
from videogen.tokenizers.token_conditioned import update

VAE = CONFIGS["cvivit"] | {"quantizer": {"name": "gaussian", "width": 4, "kl_weight": 1e-3}}
VISION = {"name": "shapes_classifier", "classes": 2, "widths": (3, 4, 4, 6), "side": 16}
RESAMPLER = {"name": "perceiver", "width": 8, "depth": 1, "heads": 2, "head_width": 4, "query_scale": 1.0}
DENOISER = {"transformer": NETWORK, "patch": (1, 1, 1)}
DENOISING = {"steps": 2, "guidance_scale": 1.0, "null_share": 0.05}
SHARED = {"clip": (5, 8, 8), "width": 3, "resampler": RESAMPLER, "denoiser": DENOISER, "vision": {}}
DIVOT = {"name": "divot", "frames": 3, "queries": 4, "motion": NETWORK, "pool": (2, 1), "blocks": NETWORK}
DIVOT |= {"expander": RESAMPLER, "denoising": DENOISING | {"drops": ("tokens",)}, **SHARED}
DICODE = {"name": "dicode", "queries": 2, "context_width": 8, "denoising": DENOISING | {"drops": ("head", "tail")}}
DICODE |= SHARED
KINDS = {"divot": DIVOT, "dicode": DICODE}
TIERED = ["divot", pytest.param("dicode", marks=pytest.mark.slow)]
VIDEO = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (2, 5, 8, 8, 3)), jnp.float32)


def build(config: dict, **denoising) -> tokenizers.Denoised:
    """With random parameters, and statistics of latents of deviation 7."""
    config = config | {"denoising": config["denoising"] | denoising}
    whole = {"name": "denoised", "vae": VAE, "vision": VISION, "tokenizer": config}
    model = with_random_parameters(nnx.eval_shape(lambda: tokenizers.build(whole, rngs=nnx.Rngs(0))))
    core = model.tokenizer
    core.statistics.mean.set_value(jnp.full(4, 0.5))
    core.statistics.square.set_value(jnp.full(4, 0.25 + 49.0))
    core.null_known.set_value(jnp.zeros((), jnp.int32))
    return model


@functools.cache
def model_of(name: str) -> tokenizers.Denoised:
    return build(KINDS[name])


@functools.cache
def encoder_of(name: str):
    return jax.jit(model_of(name).encode)


@functools.cache
def decoder_of(name: str):
    graph, state = nnx.split(model_of(name))
    run = jax.jit(
        lambda state, latents, scale: nnx.merge(graph, state).decode(latents, guidance_scale=scale), static_argnums=2
    )
    return lambda latents, scale=1.0, model=None: run(nnx.state(model or model_of(name)), latents, scale)


@pytest.mark.parametrize(("name", "tokens"), [("divot", (4,)), ("dicode", (2, 2))])
def test_tokens_and_clips(name, tokens):
    """What ``detokenize`` gives is what ``decode`` gives of the tokens' values, always the same."""
    model = model_of(name)
    found = model.bottleneck(encoder_of(name)(VIDEO))[1]
    assert found.layout == model.layout(VideoShape(5, 8, 8)) and found.only.values.shape == (2, *tokens, 3)
    assert model.diffuses and not model.vocabulary and model.layout(VideoShape(5, 8, 8)).only.channels == 3
    drawn = decoder_of(name)(found.only.values)
    assert drawn.shape == VIDEO.shape and np.isfinite(drawn).all()
    np.testing.assert_array_equal(drawn, decoder_of(name)(found.only.values))
    # No example depends on the others.
    np.testing.assert_allclose(decoder_of(name)(found.only.values[:1]), drawn[:1], atol=1e-4 * np.abs(drawn).max())
    with pytest.raises(UserError, match="frames of 8×8, got 8×16"):
        model.layout(VideoShape(5, 8, 16))


def test_a_fresh_motion_predictor_changes_nothing():
    """Divot, property 2: its output begins at zero, and moves as soon as that has learned."""
    section = read_transformer(NETWORK, norm="layer")
    fresh = Motion(6, 12, section, 3, remat="none", dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 2, 6))
    np.testing.assert_array_equal(fresh(x), fresh.still(x))
    fresh.outer.kernel.set_value(jax.random.normal(jax.random.key(2), (12, 12)))
    fresh.order.set_value(jax.random.normal(jax.random.key(1), (3, 12)))
    moved, order = fresh(x) - fresh.still(x), jnp.array([2, 0, 1])
    turned = fresh(x[:, order]) - fresh.still(x[:, order])
    assert np.abs(moved).max() > 0.01 and np.abs(moved[:, order] - turned).max() > 0.01


def test_divot_sees_frames_equally_spaced_and_dicode_both_ends():
    shown = [model_of(name).tokenizer.shown(VIDEO) for name in ("divot", "dicode")]
    np.testing.assert_array_equal(shown[0], VIDEO[:, [0, 2, 4]])
    np.testing.assert_array_equal(shown[1], VIDEO[:, [0, 4]])


@functools.cache
def compared(name: str):
    graph, params, rest = nnx.split(model_of(name), nnx.Param, ...)

    def run(params, rest, video, key):
        model = nnx.merge(graph, params, rest)
        encoded = model.encode(video)
        found = model.compare(encoded, encoded.values, video, key)
        value, target = found.passes[V]
        return jnp.mean((value - target) ** 2), found

    return jax.jit(jax.grad(run, has_aux=True)), params, rest


@pytest.mark.parametrize("name", TIERED)
def test_nothing_frozen_learns_and_all_else_does(name):
    """Divot, property 3. The loss is of normalised latents (DiCoDe, property 7): with latents of deviation 7 an order
    of scale and noise that is wrong would show."""
    run, params, rest = compared(name)
    gradient, found = run(params, rest, VIDEO, jax.random.key(1))
    reached = {".".join(map(str, p[:2])): bool(np.any(g.get_value())) for p, g in nnx.to_flat_state(gradient)}
    assert not any(moves for path, moves in reached.items() if not path.startswith("tokenizer"))
    every = {path: bool(np.any(g.get_value())) for path, g in nnx.to_flat_state(gradient) if path[0] == "tokenizer"}
    assert [path for path, moves in every.items() if not moves] == []
    model = model_of(name)
    raw = model.latents(VIDEO)
    np.testing.assert_allclose(found.features["normalised"], (raw - 0.5) / 7, atol=1e-5)
    np.testing.assert_allclose(found.sums["mean"], raw.sum((0, 1, 2, 3)), rtol=1e-4, atol=1e-3)


def test_a_clip_follows_from_the_true_prediction():
    """Property 10 of Divot: with the target as prediction the clip is the VAE's of its own latents, at every time."""
    process = model_of("divot").tokenizer.process
    clean, noise = (jax.random.normal(jax.random.key(i), (4, 3)) for i in range(2))
    t = jnp.array([0.0, 0.3, 0.999, 1.0])
    assert float(process.scales(jnp.ones(()))[0]) == 0.0
    np.testing.assert_array_equal(process.target(clean, noise, t)[-1], -clean[-1])
    noisy = process.add_noise(clean, noise, t)
    np.testing.assert_allclose(process.data(process.target(clean, noise, t), noisy, t), clean, atol=1e-5)


# The null ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIERED)
def test_the_null_is_what_the_tokenizer_makes_of_the_zero_video(name):
    """Divot, property 9; it comes out of the resampler and is not zeros, and once it is known it is not made again."""
    model = build(KINDS[name])
    own = model.encode(jnp.zeros((1, 5, 8, 8, 3))).values
    assert np.abs(own).max() > 0.05
    np.testing.assert_allclose(model.null_tokens(), own, atol=1e-5)
    run, params, rest = compared(name)
    sums = run(params, rest, VIDEO, jax.random.key(0))[1].sums
    np.testing.assert_allclose(sums["null"], own[0], atol=1e-5)
    # Two micro-batches: sums are added up.
    update(model.tokenizer, jax.tree.map(lambda x: 2 * x, sums))
    np.testing.assert_allclose(model.tokenizer.null.get_value(), own[0], atol=1e-5)
    model.tokenizer.null.set_value(jnp.full_like(own[0], 3.0))
    np.testing.assert_array_equal(model.null_tokens(), jnp.full_like(own, 3.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_guidance_against_the_null(name):
    """Users, case 12: scale 1 is the conditional prediction; where the tokens are the null, all scales agree."""
    model = model_of(name)
    null = jnp.broadcast_to(model.null_tokens(), (2, *model.null_tokens().shape[1:]))
    tokens = encoder_of(name)(VIDEO).values
    size = np.abs(decoder_of(name)(tokens)).max()
    np.testing.assert_allclose(decoder_of(name)(null, 3.0), decoder_of(name)(null, 1.0), atol=1e-3 * size)
    assert np.abs(decoder_of(name)(tokens, 3.0) - decoder_of(name)(tokens, 1.0)).max() > 1e-3 * size
    core = model.tokenizer
    (parts,), (nulls,) = core.conditions(tokens), core.conditions(null)
    noisy, t = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 4)), jnp.array([0.4, 1.0])
    guided = model.denoiser(parts, nulls, 3.0)
    both = guided.pair(noisy, t)
    np.testing.assert_allclose(both[0], model.denoiser(parts)(noisy, t), atol=1e-5)
    np.testing.assert_allclose(both[1], model.denoiser(nulls)(noisy, t), atol=1e-5)


def test_parts_off_the_list_are_the_same_in_both_branches():
    model = build(DICODE, drops=("tail",))
    parts, null = ({name: jnp.full((2, 2, 3), value) for name in ("head", "tail")} for value in (1.0, 5.0))
    found = model.tokenizer.with_null(parts, null)
    np.testing.assert_array_equal(found["head"], parts["head"])
    np.testing.assert_array_equal(found["tail"], null["tail"])
    some = model.tokenizer.with_null(parts, null, jnp.array([True, False]))["tail"]
    np.testing.assert_array_equal(some, jnp.stack([null["tail"][0], parts["tail"][1]]))
    with pytest.raises(UserError, match="no part 'text', only head, tail"):
        build(DICODE, drops=("text",))


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_a_share_of_the_examples_is_told_the_null(share):
    """Divot, property 12: none in stage 1, 5 % in stage 2; the bound is four deviations of 4000 draws."""
    draws = [
        MicroBatch().draw(jax.random.uniform, named_key(jax.random.key(i), "null"), (1000,)) < share for i in range(4)
    ]
    found = float(np.mean(draws))
    assert abs(found - share) <= 4 * (share * (1 - share) / 4000) ** 0.5


@pytest.mark.slow
def test_an_example_that_is_dropped_is_told_nothing_of_its_tokens():
    model = build(DIVOT, null_share=1.0)
    run = jax.jit(lambda tokens: model.compare(None, tokens, VIDEO, jax.random.key(0)).passes[V][0])
    np.testing.assert_array_equal(run(jnp.zeros((2, 4, 3))), run(jnp.ones((2, 4, 3))))


# Clip after clip -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clips", [0, 1, 3])
def test_clips_share_their_key_frames(clips):
    """DiCoDe, properties 1 and 11: n clips of f frames are n + 1 key frames and (f - 1)·n + 1 frames."""
    model = model_of("dicode")
    frames = 4 * clips + 1
    layout = model.layout(VideoShape(frames, 8, 8)).only
    assert layout.sides == (("time", clips + 1), ("query", 2))
    tokens = jax.ShapeDtypeStruct((1, clips + 1, 2, 3), jnp.float32)
    assert jax.eval_shape(model.decode, tokens).shape == (1, frames, 8, 8, 3)
    with pytest.raises(UserError, match=r"1 \+ 4·k frames"):
        model.layout(VideoShape(frames + 1, 8, 8))


def test_frames_of_a_video_are_those_of_its_clips_without_the_shared_ones():
    core = model_of("dicode").tokenizer
    clips = [jnp.arange(5.0)[None, :, None, None, None] + 100 * i for i in range(3)]
    found = core.joined(clips, 4)[0, :, 0, 0, 0]
    np.testing.assert_array_equal(found, [*range(5), *range(101, 105), *range(201, 205)])
    np.testing.assert_array_equal(core.joined(clips[:1], 1), clips[0][:, :1])


@pytest.mark.slow
def test_a_video_decodes_clip_after_clip():
    """Its first clip is the clip of its first two key frames, and a key frame does not see the others."""
    long = jnp.concatenate([VIDEO, VIDEO[:, 1:] * 0.5], axis=1)
    tokens = encoder_of("dicode")(long).values
    np.testing.assert_allclose(tokens[:, :2], encoder_of("dicode")(VIDEO).values, atol=1e-5)
    np.testing.assert_allclose(tokens[:, :1], encoder_of("dicode")(VIDEO[:, :1]).values, atol=1e-5)
    whole, first = decoder_of("dicode")(tokens), decoder_of("dicode")(tokens[:, :2])
    assert whole.shape[1] == 9
    np.testing.assert_allclose(whole[:, :5], first, atol=1e-4 * np.abs(whole).max())


def test_tokens_with_a_normaliser_come_back():
    """DiCoDe, property 7: the constants of its tokens are a normaliser, there and back."""
    model, normaliser = model_of("dicode"), build_normaliser({"name": "mean"}, 3)
    normaliser.mean.set_value(jnp.full((1, 3), 0.5))
    normaliser.deviation.set_value(jnp.full((1, 3), 7.0))
    encoded = encoder_of("dicode")(VIDEO)
    whole = tokenizers.Normalised(model, normaliser)
    latents, tokens, *_ = whole.bottleneck(encoded)
    np.testing.assert_allclose(tokens.only.values, (encoded.values - 0.5) / 7, atol=1e-6)
    np.testing.assert_allclose(whole.lookup(tokens), encoded.values, atol=1e-5)
    np.testing.assert_array_equal(latents, encoded.values)
    assert tokens.layout == whole.layout(VideoShape(5, 8, 8)) and whole.coder is whole


# Shift and scale -----------------------------------------------------------------------------------------------------


def test_shift_before_scale():
    """Users, case 11: FLUX's constants, and there and back with a factor far from 1."""
    flux = FixedNormaliser(1, shift=0.1159, scale=0.3611)
    one = jnp.ones((1, 1, 1))
    assert float(flux.normalise(one)[0, 0, 0]) == pytest.approx(0.3192, abs=1e-4)
    assert float(flux.restore(flux.normalise(one))[0, 0, 0]) == pytest.approx(1.0, abs=1e-6)
    seven = FixedNormaliser(1, shift=2.0, scale=7.0)
    assert float(seven.normalise(3 * one)[0, 0, 0]) == 7.0 and float(seven.restore(7 * one)[0, 0, 0]) == 3.0
    with pytest.raises(UserError, match="is not fitted"):
        flux.fit([])


def test_a_vae_with_constants_of_its_own_needs_no_statistics():
    normalised = {"name": "normalised", "tokenizer": VAE, "normaliser": {"name": "fixed", "scale": 7.0}}
    whole = {"name": "denoised", "vae": normalised, "vision": VISION, "tokenizer": DIVOT}
    model = with_random_parameters(nnx.eval_shape(lambda: tokenizers.build(whole, rngs=nnx.Rngs(0))))
    assert not model.tokenizer.measures and model.tokenizer.statistics.sums(VIDEO) == {}
    plain = model.vae.tokenizer
    np.testing.assert_allclose(model.latents(VIDEO), 7 * plain.tokenize(VIDEO).only.values, rtol=1e-5)
    np.testing.assert_allclose(
        model.pixels(model.latents(VIDEO)), plain.decode(plain.tokenize(VIDEO).only.values), atol=1e-4
    )


# Information ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_tokens_tell_the_denoiser_what_a_clip_shows(name):
    """Divot, property 11: of 32 clips the loss with their own tokens is clearly below that with one another's."""
    source = data.build({"name": "shapes"}, clip=data.Clip(5, 8, 8, 8.0), seed=0, split="train")
    clips = jnp.asarray(np.stack([source[i]["video"] for i in range(32)]), jnp.float32) / 127.5 - 1
    network = {"width": 48, "layers": 2, "heads": 4, "mlp_width": 96}
    wider = RESAMPLER | {"width": 48, "heads": 4, "head_width": 12}
    config = KINDS[name] | {"denoiser": DENOISER | {"transformer": network}, "resampler": wider, "width": 8}
    model = build(config | ({"expander": wider} if name == "divot" else {}), null_share=0.0, shift=8.0)
    # A fresh denoiser and latents of deviation 1.
    latents = model.latents(clips)
    core = model.tokenizer
    core.statistics.mean.set_value(latents.mean((0, 1, 2, 3)))
    core.statistics.square.set_value((latents**2).mean((0, 1, 2, 3)))
    graph, params, frozen, rest = nnx.split(model, nnx.All(nnx.Param, nnx.PathContains("tokenizer")), nnx.Param, ...)

    def loss(params, key, turn):
        model = nnx.merge(graph, params, frozen, rest)
        encoded = model.encode(clips)
        found = model.compare(encoded, jnp.roll(encoded.values, turn, axis=0), clips, key)
        return jnp.mean((found.passes[V][0] - found.passes[V][1]) ** 2)

    optimizer = optax.adam(optax.linear_schedule(3e-3, 3e-4, 400))

    @jax.jit
    def run(params, state):
        def step(carry, key):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, key, 0)
            update, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, update), state), value

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(0), 400))

    (params, _), values = run(params, optimizer.init(params))
    keys = jax.random.split(jax.random.key(1), 8)
    own, others = (float(jnp.mean(jax.jit(jax.vmap(lambda k, t=turn: loss(params, k, t)))(keys))) for turn in (0, 1))
    assert own < 0.7 * others, (own, others, values[::50])
