"""The OmniTokenizer sheet's properties beyond what every tokenizer promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, make
from videogen.errors import UserError
from videogen.nn import Attention, Causal, FactorisedStack
from videogen.shapes import VideoShape
from videogen.tokenizers import build
from videogen.tokenizers.base import Encoded

CONFIG = CONFIGS["omnitokenizer"]
PAPER = CONFIG | {"patch": (4, 8, 8), "window": 8}
GAUSSIAN = {"name": "gaussian", "width": 6}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("side", [128, 192, 256, 320, 384])
def test_the_same_weights_take_every_resolution(side):
    model = make(PAPER)
    grid = model.grid(VideoShape(17, side, side))
    assert grid.shape == (5, side // 8, side // 8)
    codes = jax.eval_shape(model.tokenize, jax.ShapeDtypeStruct((1, 17, side, side, 3), jnp.float32))
    assert codes.layout.only.grid == grid
    assert jax.eval_shape(model.detokenize, codes).shape == (1, 17, side, side, 3)


def test_frames_that_windows_do_not_tile_are_refused():
    model = nnx.eval_shape(lambda: build(PAPER, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="17×16 latents are no multiple of the window 8"):
        model.grid(VideoShape(17, 136, 128))
    whole = nnx.eval_shape(lambda: build(PAPER | {"encoder_spatial": "t", "decoder_spatial": "t"}, rngs=nnx.Rngs(0)))
    assert whole.grid(VideoShape(17, 136, 128)).shape == (5, 17, 16)


@pytest.mark.parametrize("positions", ["bias", "rotary"])
def test_windows_see_the_same_at_every_resolution(positions):
    """A crop of whole windows has the crop of the latents, as long as no other layer looks around."""
    model = make(CONFIG, spatial_positions=positions, encoder_spatial="ww", encoder_temporal=0)
    video = jnp.asarray(random(1, 3, 16, 24, 3))
    encode = jax.jit(lambda v: model.encode(v).values)
    np.testing.assert_allclose(encode(video[:, :, 4:12, 8:16]), encode(video)[:, :, 2:6, 4:8], atol=1e-5)


def influence_of_window(positions: str, pattern: str) -> np.ndarray:
    """How much a token of the upper left corner depends on each of a frame of 4 × 6."""
    stack = FactorisedStack(8, 2, 16, pattern, 0, window=2, spatial_positions=positions, rngs=nnx.Rngs(0))
    jacobian = jax.jit(jax.jacrev(lambda x: stack.space(x)[0, 1, 0, 1]))(jnp.asarray(random(1, 2, 4, 6, 8)))
    return np.abs(jacobian).max((0, 1, -1))


@pytest.mark.parametrize("positions", ["bias", "rotary"])
def test_tokens_of_different_windows_do_not_interact_in_window_layers(positions):
    seen = influence_of_window(positions, "ww")
    assert (seen[1, :2, :2] > 0).all()
    seen[1, :2, :2] = 0
    assert (seen == 0).all()
    mixed = influence_of_window(positions, "wt")
    assert (mixed[1] > 0).all() and (mixed[0] == 0).all()


@pytest.mark.parametrize("positions", ["bias", "rotary"])
def test_a_window_as_large_as_the_frame_is_plain_attention(positions):
    def outputs(pattern: str) -> jax.Array:
        stack = FactorisedStack(8, 2, 16, pattern, 0, window=4, spatial_positions=positions, rngs=nnx.Rngs(0))
        return jax.jit(stack.space)(random(2, 3, 4, 4, 8))

    np.testing.assert_array_equal(outputs("ww"), outputs("tt"))


def test_a_pattern_applies_its_layers_in_order():
    """Runs of equal letters are slices of one stack: together they are all of its layers, once each."""
    stack = FactorisedStack(8, 2, 16, "twwt", 0, window=4, spatial_positions="rotary", rngs=nnx.Rngs(0))
    plain = FactorisedStack(8, 2, 16, "tttt", 0, spatial_positions="rotary", rngs=nnx.Rngs(0))
    x = jnp.asarray(random(1, 1, 4, 4, 8))
    np.testing.assert_allclose(jax.jit(stack.space)(x), jax.jit(plain.space)(x), atol=1e-6)


def test_temporal_attention_over_one_frame_is_the_value_itself():
    attention = Attention(8, 2, rngs=nnx.Rngs(0))
    x = jnp.asarray(random(3, 1, 8))
    value = jnp.split(attention.query_key_value(x), 3, axis=-1)[2]
    np.testing.assert_allclose(attention(x, mask=Causal()), attention.out(value), atol=1e-6)


def gradients(model: nnx.Module, video: jax.Array) -> dict:
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, rest)
        latents, _, losses, _ = model.bottleneck(model.encode(video), key=jax.random.key(0), train=True)
        return jnp.mean((model.decode(latents) - video) ** 2) + sum(losses.values())

    return nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))


@pytest.mark.slow
def test_image_steps_never_touch_the_tubelet_projections_and_video_steps_touch_both():
    model = make(CONFIG)
    image, video = (gradients(model, jnp.asarray(random(1, frames, 8, 8, 3))) for frames in (1, 3))

    def sizes(grads: dict, path: str) -> list[float]:
        return [float(jnp.abs(g).max()) for name in ("patches", "pixels") for g in jax.tree.leaves(grads[name][path])]

    assert min(sizes(image, "first")) > 0 and max(sizes(image, "rest")) == 0
    assert min(sizes(video, "first")) > 0 and min(sizes(video, "rest")) > 0


@pytest.mark.slow
def test_the_gaussian_head_is_deterministic_without_training_and_has_no_codes():
    model = make(CONFIG, quantizer=GAUSSIAN)
    latents = jax.jit(lambda v: model.encode(v).values)(random(1, 3, 8, 8, 3))
    mean, codes, losses, _ = model.bottleneck(Encoded(latents), key=jax.random.key(0))
    np.testing.assert_array_equal(mean, model.bottleneck(Encoded(latents))[0])
    np.testing.assert_allclose(mean, jnp.split(latents, 2, axis=-1)[0], atol=1e-6)
    sampled = model.bottleneck(Encoded(latents), key=jax.random.key(0), train=True)[0]
    assert np.abs(sampled - mean).max() > 1e-3 and set(losses) == {"kl"}
    assert model.vocabulary == () and codes.only.values.shape == mean.shape
    np.testing.assert_allclose(model.detokenize(codes), jnp.clip(model.decode(mean), -1, 1), atol=1e-6)


def test_the_gaussian_head_lets_every_parameter_learn():
    grads = gradients(make(CONFIG, quantizer=GAUSSIAN), jnp.asarray(random(1, 3, 8, 8, 3)))
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    assert not [jax.tree_util.keystr(path) for path, g in leaves if not jnp.abs(g).max() > 0]


def test_only_the_quantizer_head_differs_between_codes_and_a_gaussian():
    def shapes(quantizer: dict) -> dict:
        state = nnx.state(nnx.eval_shape(lambda: build(CONFIG | {"quantizer": quantizer}, rngs=nnx.Rngs(0))))
        return {path: v.get_value().shape for path, v in nnx.to_flat_state(state)}

    codes, gaussian = shapes(CONFIG["quantizer"]), shapes(GAUSSIAN)
    assert {path[0] for path in codes.keys() ^ gaussian.keys()} == {"quantizer"}
    assert {path[0] for path in codes.keys() & gaussian.keys() if codes[path] != gaussian[path]} == {"to_code"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cvivit", {}),
        pytest.param("omnitokenizer", {"encoder_temporal": 2}, marks=pytest.mark.slow),
        ("omnitokenizer", {"encoder_temporal": 3, "position_generator": False}),
    ],
)
def test_with_a_temporal_window_chunks_equal_the_whole_in_constant_memory(name, changes):
    model = make(CONFIGS[name], temporal_window=2, **changes)
    video = jnp.asarray(random(1, 1 + 2 * 11, 8, 8, 3))
    latents = jax.jit(lambda v: model.encode(v).values)(video)
    quantized = model.bottleneck(Encoded(latents))[0]
    encode, decode = jax.jit(model.encode_chunk), jax.jit(model.decode_chunk)
    encoder_cache = decoder_cache = None
    parts, frames, lengths = [], [], []
    for first in range(0, 12, 3):
        start, stop = model.compression.frames_of_latent(first).start, model.compression.frames(first + 3)
        encoder_cache, part = encode(encoder_cache, video[:, start:stop])
        decoder_cache, pixels = decode(decoder_cache, quantized[:, first : first + 3])
        parts.append(part.values)
        frames.append(pixels)
        lengths.append((encoder_cache.shape[1], decoder_cache.shape[1]))
    np.testing.assert_allclose(jnp.concatenate(parts, 1), latents, atol=1e-4)
    np.testing.assert_allclose(jnp.concatenate(frames, 1), jax.jit(model.decode)(quantized), atol=1e-4)
    assert lengths[1:] == [(model.encoder.reach, model.decoder.reach)] * 3 and max(lengths[-1]) <= 6


def test_a_temporal_window_bounds_what_a_latent_depends_on():
    stack = FactorisedStack(8, 2, 16, "", 2, temporal_window=3, position_generator=False, rngs=nnx.Rngs(0))
    jacobian = jax.jit(jax.jacrev(lambda x: stack.time(x)[0, :, 0, 0].sum(-1)))(jnp.asarray(random(1, 8, 1, 1, 8)))
    seen = np.abs(jacobian).max((1, 3, 4, 5)) > 0
    distance = np.arange(8)[:, None] - np.arange(8)[None, :]
    np.testing.assert_array_equal(seen, (distance >= 0) & (distance <= stack.reach))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_spatial": "tx"}, "unknown spatial layer 'x'.*w \\(windows\\)"),
        ({"window": 0}, "window of tokenizer .* at least 1"),
        ({"temporal_window": -1}, "temporal_window of tokenizer .* at least 0"),
        ({"spatial_positions": "rope"}, "unknown spatial positions 'rope'"),
        ({"quantizer": {"name": "gausian", "width": 4}}, "did you mean 'gaussian'"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        make(CONFIG, **changes)


def test_without_temporal_layers_nothing_is_cached():
    model = make(CONFIG, encoder_temporal=0)
    cache, _ = model.encode_chunk(None, jnp.asarray(random(1, 3, 8, 8, 3)))
    assert cache.shape[1] == 0
