"""A tokenizer of a frozen VAE's latents: shapes, both ways, where gradients go, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CLAMPED, CONFIGS, NETWORK, make
from videogen.errors import UserError
from videogen.shapes import Compression, VideoShape
from videogen.tokenizers.one_d_flow import EARLY, VELOCITY
from videogen.tokenizers.over_latents import LATENTS, of_latents

VAE = CONFIGS["cvivit"] | {"quantizer": {"name": "gaussian", "width": 4, "kl_weight": 1e-3}}
FLOW = {"name": "one_d_flow", "clip": (5, 8, 8), "patch": (1, 1, 1), "queries": 3, "encoder": NETWORK}
FLOW |= {"decoder": NETWORK, "quantizer": CLAMPED, "flow": {"steps": 1, "guidance_scale": 1.0}}
PLAIN = {key: value for key, value in FLOW.items() if key != "flow"} | {"name": "one_d"}
CONFIG = {"name": "over_latents", "vae": VAE, "tokenizer": FLOW}
VIDEO = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (1, 5, 8, 8, 3)), jnp.float32)


def positive(model: nnx.Module) -> nnx.Module:
    """Statistics of a deviation, not at random."""
    statistics = model.tokenizer.statistics
    statistics.mean.set_value(jnp.full(4, 0.5))
    statistics.square.set_value(jnp.full(4, 0.25 + 9.0))
    return model


@functools.cache
def model_of(name: str = "one_d_flow") -> nnx.Module:
    return positive(make(CONFIG | {"tokenizer": FLOW if name == "one_d_flow" else PLAIN}))


def test_shapes_follow_from_the_vae():
    model = model_of()
    assert (model.tokenizer.clip, model.tokenizer.channels) == (VideoShape(3, 2, 2), 4)
    assert model.clip == VideoShape(5, 8, 8) and model.compression == Compression(5, 8, 8, first_alone=False)
    assert model.layout(model.clip).only.sides == (("query", 3),) and model.diffuses and model.drops
    # The decoder's patches are latents, of which the first stands for one frame.
    assert model.feature_compression == Compression(2, 4, 4) and model.features[EARLY] == NETWORK["width"]
    tokens = jax.eval_shape(model.tokenize, VIDEO)
    assert tokens.layout == model.layout(model.clip) and tokens.only.values.shape == (1, 3, 1)
    assert jax.eval_shape(model.detokenize, tokens).shape == VIDEO.shape
    with pytest.raises(UserError, match="codes clips of 5×8×8 as a whole, got 3×8×8; set data.clip"):
        model.encode(VIDEO[:, :3])
    for call in (model.encode_chunk, model.decode_chunk):
        with pytest.raises(UserError, match="as a whole"):
            call(None, VIDEO)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_d_flow", "one_d"])
def test_codes_say_all_that_the_decoder_gets(name):
    model = model_of(name)
    encoded = jax.jit(model.encode)(VIDEO)
    latents, tokens, *_ = model.bottleneck(encoded)
    shown = jax.jit(model.decode)(latents)
    assert shown.shape == VIDEO.shape
    np.testing.assert_allclose(jax.jit(model.detokenize)(tokens), jnp.clip(shown, -1, 1), atol=1e-4)
    # The codes are of what the VAE gives, normalised, and pixels are the VAE's of what is drawn, restored.
    raw = model.vae.tokenize(VIDEO).only.values
    np.testing.assert_allclose(encoded.extra[LATENTS], raw, atol=1e-5)
    inner = model.tokenizer
    np.testing.assert_allclose(encoded.values, inner.encode(raw).values, atol=1e-4)
    np.testing.assert_allclose(inner.normalised_input(raw), (raw - 0.5) / 3, atol=1e-5)
    np.testing.assert_allclose(inner.restored(inner.normalised_input(raw)), raw, atol=1e-5)
    np.testing.assert_allclose(model.vae.decode(inner.decode(latents)), shown, atol=1e-4)
    np.testing.assert_array_equal(model.bottleneck(model.encode(VIDEO, 2))[1].only.kept, [[True, True, False]])


@pytest.mark.slow
def test_velocities_are_of_latents_and_no_gradient_passes_the_encoder_of_the_vae():
    graph, params, rest = nnx.split(model_of(), nnx.Param, ...)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params):
        model = nnx.merge(graph, params, rest)
        encoded = model.encode(VIDEO)
        latents = model.bottleneck(encoded)[0]
        found = model.compare(encoded, latents, VIDEO, jax.random.key(0))
        value, target = found.passes[VELOCITY]
        seen = model.denoise(latents, VIDEO, jax.random.key(0))
        return jnp.mean((value - target) ** 2) + jnp.mean(found.video**2), (found, encoded.extra[LATENTS], seen)

    gradient, (found, raw, seen) = run(params)
    np.testing.assert_allclose(seen, found.video, atol=1e-4 * np.abs(seen).max())
    value, target = found.passes[VELOCITY]
    assert value.shape == target.shape == raw.shape == (1, 3, 2, 2, 4) and found.video.shape == VIDEO.shape
    assert found.features[EARLY].shape == (1, 3, 2, 2, NETWORK["width"])
    np.testing.assert_allclose(found.sums["mean"], raw.sum((0, 1, 2, 3)), rtol=1e-4, atol=1e-4)
    paths = {path: bool(jnp.any(g.get_value())) for path, g in nnx.to_flat_state(gradient)}
    moved = {path[1] for path, moves in paths.items() if path[0] == "vae" and moves}
    assert moved and not moved & {"encoder", "encoder_norm", "patches", "to_code"}
    assert all(moves for path, moves in paths.items() if path[0] == "tokenizer" and path[1] not in ("null", "no_code"))


def test_a_vae_that_is_normalised_needs_no_statistics():
    normalised = {"name": "normalised", "tokenizer": VAE, "normaliser": {"name": "mean"}}
    assert make(CONFIG | {"vae": normalised}).tokenizer.statistics is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": CONFIGS["cvivit"]}, "gives codes, and continuous latents are needed"),
        ({"vae": CONFIGS["one_d"]}, "have no place in the picture"),
        ({"tokenizer": FLOW | {"clip": (5, 8)}}, "clip of the tokenizer must have 3 entries"),
        ({"tokenizer": VAE}, "'cvivit' has no setting 'clip'"),
        ({"tokenizer": FLOW | {"patch": (3, 1, 1)}}, "make patches of one latent frame"),
        ({"tokenizer": FLOW | {"clip": (4, 8, 8)}}, r"1 \+ 2·k frames, got 4"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(CONFIG | changes)


def test_the_config_of_latents_keeps_the_rest():
    vae = model_of().vae
    found = of_latents(FLOW, vae)
    assert found == FLOW | {"clip": (3, 2, 2), "channels": 4, "normalise": True}
