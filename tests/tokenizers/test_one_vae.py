"""Properties of OneVAE's sheet beyond what every tokenizer promises; the numbers are those of the checkable ones."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, encoder_of, make, model_of, video_of
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers.one_vae import OneVae

NAME = "one_vae"
CONFIG = CONFIGS[NAME]


def count(model: nnx.Module) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@functools.cache
def found():
    """Latents and tokens of a clip of 7 frames: 1 + 3 latent frames, the first of 4 × 4 and the others of 2 × 2."""
    return jax.jit(lambda encoded: model_of(NAME).bottleneck(encoded)[:2])(encoder_of(NAME)(video_of(NAME)))


@functools.cache
def decode():
    return jax.jit(model_of(NAME).decode)


def test_segments_of_a_clip_and_of_an_image():
    """1 and 3: the first frame on a finer grid, then the others; an image has the first only."""
    model, tokens = model_of(NAME), found()[1]
    assert {name: segment.shape for name, segment in tokens.layout.segments} == {"first": (1, 4, 4), "rest": (3, 2, 2)}
    assert tokens["first"].layout.vocabulary == (40, 40)
    assert model.layout(VideoShape(1, 8, 16)).names == ("first",)
    assert model.layout(VideoShape(1, 8, 16))["first"].shape == (1, 4, 8)
    image = jax.jit(model.tokenize)(video_of(NAME)[:, :1])
    assert image.names == ("first",)
    np.testing.assert_array_equal(image["first"].values, tokens["first"].values)
    clip = jax.jit(model.detokenize)(image)
    assert clip.shape == (1, 1, 8, 8, 3)
    np.testing.assert_allclose(clip, jnp.clip(decode()(found()[0])[:, :1], -1, 1), atol=1e-5)
    with pytest.raises(UserError, match=r"1 \+ 2·k frames"):
        model.layout(VideoShape(4, 8, 8))


def test_a_fine_first_frame_shares_all_layers_but_two():
    """8: the strided layer of the latents, 3 × 3, and the linear map of the features."""
    fine, plain = model_of(NAME), make(CONFIG | {"first_frame": "plain"})
    code, deep = 6, 8
    assert count(fine) - count(plain) == 9 * code * code + code + deep * deep + deep
    names = [{path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))} for model in (fine, plain)]
    assert {path[0] for path in names[0] - names[1]} == {"shrink", "adapter"} and not names[1] - names[0]


def test_the_fine_latents_are_those_of_the_encoder_without_its_last_step():
    model, video = model_of(NAME), video_of(NAME)
    encoded = encoder_of(NAME)(video).values
    encoder = model.encoder

    def by_hand(video):
        x = encoder.levels[1](encoder.downs[0](encoder.levels[0](encoder.input(video[:, :1]))))
        return encoder.latents(encoder.middle(encoder.levels[2](x))), encoder(video)[:, 1:]

    for part, expected in zip(("first", "rest"), jax.jit(by_hand)(video), strict=True):
        np.testing.assert_allclose(encoded[part], expected, atol=1e-4)


def test_the_first_frame_is_drawn_from_its_own_latents_alone():
    """9: every one of them counts for frame 0; later latents do not; and later frames know of it as well."""
    latents = found()[0]
    clip = decode()(latents)
    for place in np.ndindex(4, 4):
        changed = latents | {"first": latents["first"].at[(0, 0, *place)].add(1.0)}
        difference = np.abs(decode()(changed) - clip).max((0, 2, 3, 4))
        assert difference[0] > 1e-3 and difference[1:].max() > 1e-4
    later = np.abs(decode()(latents | {"rest": -latents["rest"]}) - clip).max((0, 2, 3, 4))
    assert later[0] == 0 and later[1:].min() > 1e-3
    with pytest.raises(UserError, match="no first frame"):
        model_of(NAME).decode({"rest": latents["rest"]})


def test_the_first_frame_is_overwritten_behind_the_first_up_sampling():
    """2.2 (c): of the plain way through the first layers its features reach frame 0 by no other path."""
    latents, fine = found()[0]["first"], model_of(NAME)
    graph, state = nnx.split(fine)
    silent = nnx.merge(graph, jax.tree.map(jnp.array, state))
    silent.adapter.kernel.set_value(jnp.zeros_like(silent.adapter.kernel.get_value()))
    clips = [jax.jit(silent.decode)({"first": x, "rest": found()[0]["rest"]}) for x in (latents, -latents)]
    np.testing.assert_array_equal(clips[0][:, 0], clips[1][:, 0])
    assert float(jnp.abs(clips[0] - clips[1])[:, 1:].max()) > 1e-3


def test_a_mode_is_the_other_use_of_the_same_weights():
    """6: both modes give clips, which are not the same; nothing is copied or moved."""
    discrete, video = model_of(NAME), video_of(NAME)
    continuous = discrete.in_mode("continuous")
    assert isinstance(continuous, OneVae) and discrete.quantizer.mode == "discrete" and not continuous.variants
    jax.tree.map(np.testing.assert_array_equal, nnx.state(discrete), nnx.state(continuous))
    tokens = jax.jit(continuous.tokenize)(video)
    assert tokens.layout == continuous.layout(VideoShape(*video.shape[1:4])) and tokens["rest"].layout.channels == 6
    encoded = encoder_of(NAME)(video).values
    for name, segment in tokens.items():
        np.testing.assert_allclose(segment.values, encoded[name][..., :6], atol=1e-4)
    clips = [jax.jit(lambda v, m=model: m.detokenize(m.tokenize(v)))(video) for model in (discrete, continuous)]
    assert clips[0].shape == clips[1].shape == video.shape and float(jnp.abs(clips[0] - clips[1]).max()) > 1e-2
    assert list(discrete.variants) == ["continuous"]


def test_a_step_of_training_takes_one_path_for_all_of_a_clip():
    """Both segments of an example are codes, or neither is."""
    model, videos = model_of(NAME), jnp.concatenate([video_of(NAME) * s for s in np.linspace(1, 0.3, 8)])
    encoded = jax.jit(model.encode)(videos)
    code = jax.jit(lambda encoded, key: model.bottleneck(encoded, key=key, train=True))
    latents, tokens, losses, measured = code(encoded, jax.random.key(0))
    coded = jax.jit(lambda encoded: model.bottleneck(encoded)[0])(encoded)
    same = {name: np.isclose(x, coded[name], atol=1e-5).all((1, 2, 3, 4)) for name, x in latents.items()}
    np.testing.assert_array_equal(same["first"], same["rest"])
    assert 0 < same["first"].sum() < 8 and set(losses) == {"kl"} and tokens["first"].values.shape == (8, 1, 4, 4, 2)
    assert float(measured["counts"].sum()) == 8 * 2 * (16 + 12)


@jax.jit
def both(model: OneVae, video: jax.Array) -> list[jax.Array]:
    """What is left of a clip through codes, and through latents."""
    return [m.decode(m.bottleneck(m.encode(video))[0]) for m in (model, *model.variants.values())]


@pytest.mark.slow
def test_codes_tend_to_the_continuous_clip():
    """7: with weights of a continuous VAE and fresh codes the discrete clip goes to the continuous one."""
    quantizer = {"name": "two_paths", "width": 6, "reach": 6.0}
    errors = []
    for levels in (41, 401, 4001):
        codes = {"name": "product", "groups": 6, "base": {"name": "fsq", "levels": (levels,), "bound": "clamp"}}
        model = OneVae(**_settings(quantizer | {"codes": codes}), rngs=nnx.Rngs(0))
        discrete, continuous = both(model, video_of(NAME))
        errors.append(float(jnp.abs(discrete - continuous).max() / jnp.abs(continuous).max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 0.01


def _settings(quantizer: dict) -> dict:
    return {name: value for name, value in CONFIG.items() if name != "name"} | {"quantizer": quantizer}


def test_places_of_both_segments():
    centres = model_of(NAME).centres(VideoShape(5, 8, 8))
    assert centres["first"].shape == (1, 4, 4, 3) and centres["rest"].shape == (2, 2, 2, 3)
    assert centres["first"][0, 1, 3].tolist() == [0, 2.5, 6.5] and centres["rest"][1, 0, 1].tolist() == [3.5, 1.5, 5.5]


def test_a_plain_first_frame_is_the_convolutional_contract():
    model = make(CONFIG | {"first_frame": "plain"})
    assert model.layout(VideoShape(5, 8, 8)).only.shape == (3, 2, 2) and model.begins == {}
    tokens = jax.jit(model.tokenize)(video_of(NAME))
    assert tokens.only.values.shape == (1, 4, 2, 2, 2)
    assert jax.eval_shape(model.detokenize, tokens).shape == video_of(NAME).shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_frame": "finer"}, "did you mean 'fine'"),
        ({"spatial_strides": (2, 1)}, "must be above 1"),
        ({"padding": "same"}, "unknown padding"),
        ({"norm_groups": 3}, "3 groups"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        make(CONFIG, **changes)
