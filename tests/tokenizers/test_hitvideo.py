"""Properties of HiTVideo's sheet beyond what every tokenizer promises; the numbers are those of the checkable ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, VECTORS, encoder_of, make, model_of, video_of
from videogen.errors import UserError
from videogen.nn import MicroBatch
from videogen.quantizers import evaluated_health
from videogen.shapes import VideoShape
from videogen.tokenizers.hierarchy import Hierarchy, drawn_layers
from videogen.tokenizers.lengths import ASKED
from videogen.tokens import Tokens

NAME = "hitvideo"
NAMES = ("layer_3", "layer_2", "layer_1")
SHAPE = VideoShape(7, 8, 8)
SIZES = {"layer_3": (4, 1, 1), "layer_2": (7, 2, 2), "layer_1": (7, 4, 4)}


@functools.cache
def encoded():
    return encoder_of(NAME)(video_of(NAME))


@functools.cache
def bottleneck():
    """Compiled: latents and tokens of what the encoder gives."""
    return jax.jit(lambda encoded: model_of(NAME).bottleneck(encoded)[:2])


@functools.cache
def tokens() -> Tokens:
    return bottleneck()(encoded())[1]


def tokenize(video: jax.Array) -> Tokens:
    return bottleneck()(encoder_of(NAME)(video))[1]


def first_layers(count: int) -> Tokens:
    return Tokens.of(**{name: tokens()[name] for name in NAMES[:count]})


def ids(tokens: Tokens) -> dict[str, np.ndarray]:
    return {name: np.asarray(segment.values) for name, segment in tokens.items()}


def test_layers_and_their_tokens():
    """3: one segment for each layer, the coarsest first; the count is the sum over layers."""
    layout = model_of(NAME).layout(SHAPE)
    assert {name: segment.shape for name, segment in layout.segments} == SIZES and layout.names == NAMES
    assert layout.tokens == 4 + 28 + 112 and layout.bits == pytest.approx(4 * 6 + 28 * np.log2(40) + 112 * 6)
    assert model_of(NAME).layout(VideoShape(1, 16, 8))["layer_3"].shape == (1, 2, 1)
    for shape, message in (
        (VideoShape(6, 8, 8), r"1 \+ 2·k frames"),
        (VideoShape(7, 8, 12), "multiple of the patch 8"),
    ):
        with pytest.raises(UserError, match=message):
            model_of(NAME).layout(shape)


def test_codes_are_causal_in_steps_of_the_coarsest_layer():
    """1: what follows frame 2·k changes no code of the first 1 + k latents of the coarsest layer, in any layer."""
    model, video = model_of(NAME), video_of(NAME)
    whole = ids(tokens())
    for frames in (1, 3):
        other = video.at[:, frames:].set(-video[:, frames:])
        for found in (ids(tokenize(other)), ids(tokenize(video[:, :frames]))):
            for name, pixels in model.compressions.items():
                count = pixels.latent_frames(frames)
                np.testing.assert_array_equal(found[name][:, :count], whole[name][:, :count])
    assert any((ids(tokenize(other))[name][:, -1] != whole[name][:, -1]).any() for name in NAMES)


def test_codes_of_chunks_are_those_of_the_clip():
    model, video, cache, parts = model_of(NAME), video_of(NAME), None, []
    for start, stop in ((0, 3), (3, 5), (5, 7)):
        cache, part = jax.jit(model.encode_chunk)(cache, video[:, start:stop])
        latents, found = bottleneck()(part)
        np.testing.assert_allclose(model.lookup(found), latents, atol=1e-5)
        parts.append((latents, ids(found)))
    for name, expected in ids(tokens()).items():
        np.testing.assert_array_equal(np.concatenate([part[name] for _, part in parts], axis=1), expected)
    whole = bottleneck()(encoded())[0]
    np.testing.assert_allclose(np.concatenate([latents for latents, _ in parts], axis=1), whole, atol=1e-4)


def test_first_layers_decode_to_a_clip():
    """2 and 9: the first layers alone are those of all with the rest dropped, and give a clip of the full size."""
    model, video = model_of(NAME), video_of(NAME)
    detokenize = jax.jit(model.detokenize)
    clips = []
    for count, asked in ((1, 4), (2, 32), (3, 144)):
        alone = detokenize(first_layers(count))
        kept = bottleneck()(encoded()._replace(extra={ASKED: jnp.asarray([[i < count for i in range(3)]])}))[1]
        assert asked == sum(first_layers(count).layout[name].tokens for name in NAMES[:count])
        assert kept.bits()[0] == pytest.approx(first_layers(count).bits()[0])
        np.testing.assert_allclose(detokenize(kept), alone, atol=1e-5)
        assert alone.shape == video.shape and np.isfinite(alone).all()
        assert {name: segment.kept is None or bool(segment.kept.all()) for name, segment in kept.items()} == {
            name: i < count for i, name in enumerate(NAMES)
        }
        clips.append(alone)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(clips, clips[1:], strict=False))
    np.testing.assert_allclose(clips[2], detokenize(tokens()), atol=1e-6)
    asked = jax.jit(lambda video: model.encode(video, 32).extra)(video)
    assert asked[ASKED].tolist() == [[True, True, False]]


@pytest.mark.uncompiled
def test_other_parts_of_the_layers_are_refused():
    model, video = model_of(NAME), video_of(NAME)
    with pytest.raises(
        UserError, match="first layers of this clip have 4, 32, 144 tokens; ask for one of these, not 33"
    ):
        model.encode(video, 33)
    whole, part = tokens(), tokens()["layer_1"]
    some = jnp.ones(part.values.shape[:-1], bool)

    def keeping(**masks) -> Tokens:
        changed = {name: type(part)(whole[name].values, whole[name].layout, kept=mask) for name, mask in masks.items()}
        return whole.replace(**changed)

    with pytest.raises(UserError, match="layer_1 is there in part"):
        model.detokenize(keeping(layer_1=some.at[0, 0, 0, 0].set(False)))
    gone = jnp.zeros(whole["layer_2"].values.shape[:-1], bool)
    with pytest.raises(UserError, match="the first of layer_3, layer_2, layer_1 decode, and an earlier"):
        model.detokenize(keeping(layer_2=gone))
    with pytest.raises(UserError, match="these are layer_2, layer_1, and what decodes are the first of layer_3"):
        model.detokenize(Tokens.of(layer_2=whole["layer_2"], layer_1=part))


@pytest.mark.parametrize("form", ["residual", "conditioned"])
def test_codes_depend_on_no_layer_below_their_own(form):
    """4: weights of a layer change its own codes and those below it, and no others."""
    model = model_of(NAME) if form == "residual" else make(CONFIGS[NAME] | {"form": form}, seed=2)
    features = encoded().values
    before = model.quantizer(features).indices
    graph, state = nnx.split(model.quantizer)
    for i, name in enumerate(NAMES):
        changed = nnx.merge(graph, jax.tree.map(jnp.array, state))
        kernel = changed.from_code[i].kernel
        kernel.set_value(3 * kernel.get_value())
        after = changed(features).indices
        for j, other in enumerate(NAMES):
            assert (np.asarray(after[other]) != before[other]).any() == (j > i), (name, other)
        after = model.quantizer(features | {name: -features[name]}).indices
        assert [bool((after[other] != before[other]).any()) for other in NAMES[: i + 1]] == [False] * i + [True]


def exact(levels: dict[str, int], form: str = "residual") -> Hierarchy:
    """Layers whose maps are the identity and whose up-sampling repeats: what is coded is the rest itself."""
    configs = {name: {"name": "fsq", "levels": (n, n), "bound": "clamp"} for name, n in levels.items()}
    hierarchy = Hierarchy(configs, [(2, 2, 2), (1, 2, 2)], 2, form, rngs=nnx.Rngs(0))
    for linear in (*hierarchy.to_code, *hierarchy.from_code):
        linear.kernel.set_value(jnp.eye(2))
    for up in hierarchy.ups:
        kernel = jnp.zeros(up.convolution.kernel.shape)
        places = int(np.prod(up.stride))
        up.convolution.kernel.set_value(kernel.at[0, 1, 1].set(jnp.tile(jnp.eye(2), places)))
    return hierarchy


def pyramid(seed: int = 0) -> dict[str, jax.Array]:
    """A clip of 3 × 8 × 8 numbers in (-1/4, 1/4), and its means over the cells of coarser layers."""
    finest = np.random.default_rng(seed).uniform(-0.25, 0.25, (2, 3, 8, 8, 2)).astype(np.float32)
    finest += 0.5 * np.sign(finest.mean((1, 2, 3), keepdims=True))
    middle = finest.reshape(2, 3, 4, 2, 4, 2, 2).mean((3, 5))
    coarse = middle.reshape(2, 3, 2, 2, 2, 2, 2).mean((3, 5))
    coarse = np.stack([coarse[:, 0], coarse[:, 1:].mean(1)], axis=1)
    return {"layer_3": jnp.asarray(coarse), "layer_2": jnp.asarray(middle), "layer_1": jnp.asarray(finest)}


def test_the_error_falls_with_every_layer():
    """2: with exact up-sampling the sum of all layers is the features but for half a step of the last quantizer."""
    hierarchy, features = exact(dict.fromkeys(NAMES, 201)), pyramid()
    found = hierarchy(features)
    errors = []
    for count in (1, 2, 3):
        kept = jnp.broadcast_to(jnp.arange(3) < count, (2, 3))
        total = hierarchy.lookup(found.indices, kept)
        errors.append(float(jnp.abs(total - features["layer_1"]).mean()))
    assert errors[0] > 1.1 * errors[1] > 10 * errors[2] and errors[2] < 0.5 * 2 / 200
    assert float(jnp.abs(found.latents - features["layer_1"]).max()) <= 1.001 / 200


def test_replaced_inputs_of_a_residual_tokenizer_get_new_labels():
    """Users' case 7: inputs above and the label of a layer still sum to its features; without noise nothing changes."""
    hierarchy, features = exact(dict.fromkeys(NAMES, 201)), pyramid()
    clean = hierarchy(features).indices
    moved = {}

    def disturb(name: str, ids: jax.Array) -> jax.Array:
        moved[name] = ids.at[:, 0].add(-20) if name == "layer_3" else ids
        return moved[name]

    labels = hierarchy(features, disturb=disturb).indices
    np.testing.assert_array_equal(labels["layer_3"], clean["layer_3"])
    assert (np.asarray(labels["layer_2"])[:, 0] != clean["layer_2"][:, 0]).all()
    np.testing.assert_array_equal(labels["layer_2"][:, 1:], clean["layer_2"][:, 1:])
    total = hierarchy.lookup({"layer_3": moved["layer_3"], "layer_2": labels["layer_2"]}, jnp.ones((2, 3), bool))
    above = np.repeat(np.repeat(features["layer_2"], 2, axis=2), 2, axis=3)
    np.testing.assert_allclose(total, above, atol=1.001 / 200)


def test_labels_of_undisturbed_tokens_are_the_tokens_to_the_bit():
    """Users' case 7, and 1: an identity in the place of noise."""
    model = model_of(NAME)
    for name in NAMES[1:]:
        found = model.relabel(encoded(), tokens(), name)
        np.testing.assert_array_equal(found.values, tokens()[name].values)
    wrong = dataclasses.replace(tokens()["layer_3"], values=(tokens()["layer_3"].values + 7) % 40)
    found = model.relabel(encoded(), Tokens.of(layer_3=wrong), "layer_2")
    assert (found.values != tokens()["layer_2"].values).any()
    # What it codes: features less what the wrong ids stand for.
    quantizer = model.quantizer
    above = quantizer.ups[0](quantizer.from_code[0](quantizer.layers[0].lookup(wrong.values)), SIZES["layer_2"][0])
    left = encoded().values["layer_2"] - above
    np.testing.assert_array_equal(found.values, quantizer.layers[1](quantizer.to_code[1](left)).indices)


def test_streams_of_all_layers_come_apart_again():
    """5: flat and back is the identity, and no two layers share an id of the joint vocabulary."""
    whole = tokens()
    again = Tokens.from_flat(whole.flat, whole.layout)
    jax.tree.map(np.testing.assert_array_equal, ids(again), ids(whole))
    assert whole.flat.shape == (1, 144, 1) and whole.layout.offsets == {"layer_3": 0, "layer_2": 64, "layer_1": 104}
    ranges = [
        range(whole.layout.offsets[n], whole.layout.offsets[n] + s.vocabulary[0]) for n, s in whole.layout.segments
    ]
    assert sorted(i for one in ranges for i in one) == list(range(64 + 40 + 64))


def test_tokens_of_all_layers_lie_in_common_units():
    """7: a token's coordinates are the mean of the frames, rows and columns that it stands for."""
    model, shape = model_of(NAME), VideoShape(7, 16, 24)
    centres = model.centres(shape)
    assert {name: places.shape[:3] for name, places in centres.items()} == {
        "layer_3": (4, 2, 3), "layer_2": (7, 4, 6), "layer_1": (7, 8, 12)
    }  # fmt: skip
    for name, pixels in model.compressions.items():
        for place in np.ndindex(*centres[name].shape[:3]):
            frames = [f for f in range(7) if pixels.latent_of_frame(f) == place[0]]
            rows = [y for y in range(16) if y // pixels.height == place[1]]
            columns = [x for x in range(24) if x // pixels.width == place[2]]
            assert centres[name][place].tolist() == [np.mean(frames), np.mean(rows), np.mean(columns)]
    # The middle of a coarse cell is the middle of the finer ones that it covers.
    fine = centres["layer_1"][1:3, 4:8, 8:12].reshape(-1, 3).mean(0)
    np.testing.assert_allclose(fine, centres["layer_3"][1, 1, 2])


def test_layers_are_dropped_as_often_as_is_said():
    """9: the last with p, the last two with p², the first never."""
    kept = np.asarray(drawn_layers(jax.random.uniform(jax.random.key(0), (20_000,)), 0.4, 3))
    assert kept[:, 0].all() and kept.mean(0) == pytest.approx([1, 1 - 0.16, 1 - 0.4], abs=0.01)
    assert (np.diff(kept.astype(int), axis=1) <= 0).all()


def test_drops_belong_to_their_example_and_leave_losses_alone():
    model = make(CONFIGS[NAME] | {"layer_drop": 0.6}, seed=3)
    video = jnp.concatenate([video_of(NAME) * scale for scale in np.linspace(1, 0.2, 6)])
    found, key = jax.jit(model.encode)(video), jax.random.key(1)
    code = jax.jit(lambda found, key: model.bottleneck(found, key=key, train=True))
    latents, whole, losses, measured = code(found, key)
    kept = np.stack([np.asarray(whole[name].kept)[:, 0, 0, 0] for name in NAMES[1:]], axis=1)
    assert whole["layer_3"].kept is None and 0 < kept.mean() < 1 and len(set(map(tuple, kept))) == 3
    np.testing.assert_allclose(jax.jit(model.lookup)(whole), latents, atol=1e-5)
    part = jax.tree.map(lambda x: x[1::3], found)
    some = code(part, MicroBatch(1, 3).keys(key, 2))
    np.testing.assert_allclose(some[0], latents[1::3], atol=1e-5)
    for name in NAMES[1:]:
        np.testing.assert_array_equal(some[1][name].kept, whole[name].kept[1::3])
    # In evaluation all are kept; what the quantizers lose and count is the same.
    _, every, all_losses, all_measured = jax.jit(model.bottleneck)(found)
    assert all(segment.kept is None for _, segment in every.items())
    np.testing.assert_array_equal(measured["counts"], all_measured["counts"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), losses, all_losses)


def test_every_layer_is_counted_under_its_name():
    """Users' case 6."""
    model = model_of(NAME)
    assert model.quantizer.counted == {"layer_3": 64, "layer_2": 40, "layer_1": 64} and model.vocabulary == (64, 40, 64)
    counts = np.asarray(model.bottleneck(encoded())[3]["counts"])
    expected = [np.bincount(ids(tokens())[name].ravel(), minlength=n) for name, n in model.quantizer.counted.items()]
    np.testing.assert_array_equal(counts, np.concatenate(expected))
    health = evaluated_health(counts, model.quantizer.counted)
    assert health["codebook_usage_layer_2"] == pytest.approx((expected[1] > 0).mean())
    assert health["codebook_expected_usage_layer_3"] == pytest.approx(1 - (1 - 1 / 64) ** 4)


def test_in_a_step_exactly_the_codes_in_use_move():
    """Users' case 6: the gradient of a layer's table is zero but for the codes that the layer used."""
    vectors = VECTORS | {"cosine": False}
    model = make(CONFIGS[NAME] | {"quantizers": dict.fromkeys(NAMES, vectors)}, seed=4)
    features = encoded().values
    graph, params, rest = nnx.split(model.quantizer, nnx.Param, ...)

    def loss(params):
        quantized = nnx.merge(graph, params, rest)(features)
        return jnp.sum(quantized.latents**2) + sum(quantized.losses.values()), quantized.indices

    gradient, found = jax.grad(loss, has_aux=True)(params)
    for i, name in enumerate(NAMES):
        moved = np.asarray(jnp.abs(gradient["layers"][i]["codebook"].get_value()).max(-1) > 0)
        np.testing.assert_array_equal(np.flatnonzero(moved), np.unique(found[name]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizers": {"layer_1": VECTORS}}, "need quantizers for layer_3, layer_2, layer_1; got layer_1"),
        ({"quantizers": dict.fromkeys(NAMES, {"name": "gaussian", "width": 2})}, "must have ids"),
        ({"form": "residuals"}, "did you mean 'residual'"),
        ({"padding": "same"}, "unknown padding"),
        ({"layer_drop": 1.5}, "at most 1"),
        ({"layer_strides": ((1, 2), (2, 2, 2))}, "must have 3 entries"),
        ({"layer_strides": ((4, 2, 2), (2, 2, 2))}, "stride of 4 frames"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        make(CONFIGS[NAME], **changes)
