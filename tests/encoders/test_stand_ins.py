"""Stand-ins: their files, what the shipped classifier knows, and how its Fréchet distance answers to damage."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage

from videogen import encoders
from videogen.data import Clip
from videogen.data.shapes_source import ShapesSource
from videogen.data.text import ByteTokenizer, train_bpe
from videogen.encoders.stand_ins import TEXT, ShapesCaptions, ShapesClassifier
from videogen.errors import UserError
from videogen.evaluation import stand_in
from videogen.metrics.distributions import Moments, frechet_distance

CLASSIFIER = {"classes": 5, "widths": (4, 6, 8, 10), "features": 7, "side": 16}
LANGUAGE = {"vocabulary_size": 300, "width": 16, "layers": 2, "heads": 2, "hidden": 24, "key_value_heads": 1}
LANGUAGE |= {"head_width": 8, "tied": True}


def parameters(network):
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(network)))


@pytest.mark.parametrize(("kind", "settings"), [(ShapesClassifier, CLASSIFIER), (ShapesCaptions, LANGUAGE)])
def test_what_is_saved_is_read_as_any_published_network(tmp_path, kind, settings):
    network = kind(**settings, rngs=nnx.Rngs(3))
    network.save(tmp_path, settings, {"command": "x", "seed": 3})
    ByteTokenizer(24).save(tmp_path / TEXT)
    name = next(name for name, known in encoders.ENCODERS.items() if known is kind)
    loaded = encoders.load(name, tmp_path)
    for ours, read in zip(parameters(network), parameters(loaded), strict=True):
        np.testing.assert_array_equal(np.asarray(ours, np.float16), read)
    assert len(loaded.hash) == 64
    assert json.loads((tmp_path / "config.json").read_text())["made"] == {"command": "x", "seed": 3}
    section = json.loads(json.dumps(encoders.describe(name, tmp_path)))
    assert [p.shape for p in parameters(encoders.described(section))] == [p.shape for p in parameters(network)]
    (tmp_path / "config.json").write_text('{"network": {"classes": 5, "depth": 3}}')
    with pytest.raises(UserError, match="config.json has a setting of another kind"):
        encoders.load(name, tmp_path)


def test_clips_of_any_size_and_length_have_features_and_an_encoder_owns_its_preprocessing():
    network = ShapesClassifier(**CLASSIFIER, rngs=nnx.Rngs(0))
    encode = jax.jit(network)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 24, 3), np.uint8)
    features = encode(pixels)
    assert features.shape == (2, network.width) == (2, 7)
    np.testing.assert_allclose(encode(pixels / np.float32(127.5) - 1), features, rtol=1e-4, atol=1e-5)
    assert encode(pixels[:1, :2, :16, :16]).shape == (1, 7) and network.logits(features).shape == (2, 5)
    with pytest.raises(UserError, match="takes clips"):
        network(pixels[:, 0])
    with pytest.raises(UserError, match="must be in"):
        network(pixels.astype(np.float32))


def test_the_likelihood_of_a_caption_is_that_of_its_tokens_and_its_end():
    network, text = ShapesCaptions(**LANGUAGE, rngs=nnx.Rngs(0)), ByteTokenizer(6)
    ids, mask = map(jnp.asarray, text.encode(["ab", "abcdefgh", ""]))
    found = jax.jit(network.log_likelihood)(ids, mask)
    scores = jax.jit(lambda ids, mask: jax.nn.log_softmax(network(ids, mask)))
    said = [[98, 99, 0], [98, 99, 100, 101, 102, 103], [0]]  # a is 98, and 0 ends; a caption that is cut has no end
    for value, tokens in zip(found, said, strict=True):
        expected = 0.0
        for i, token in enumerate(tokens):
            before = np.zeros((1, 7), np.int32)
            before[0, 1 : i + 1] = tokens[:i]
            expected += float(scores(before, np.arange(7)[None] <= i)[0, i, token])
        assert float(value) == pytest.approx(expected, rel=1e-4)


def test_texts_are_scored_with_the_tokenizer_of_the_folder(tmp_path):
    captions = ["a small red circle", "a large blue square moves"]
    network, text = ShapesCaptions(**LANGUAGE, rngs=nnx.Rngs(0)), train_bpe(captions, 290, 12)
    with pytest.raises(UserError, match="has no text tokenizer"):
        network.score(captions)
    network.save(tmp_path, LANGUAGE, {})
    text.save(tmp_path / TEXT)
    loaded = encoders.load("shapes_captions", tmp_path)
    ids, mask = loaded.text.encode(captions)
    np.testing.assert_array_equal(ids, text.encode(captions)[0])
    loaded.log_likelihood = lambda ids, mask: ids.sum(1) - mask.sum(1)
    np.testing.assert_array_equal(loaded.score(captions), ids.sum(1) - mask.sum(1))


# What the shipped weights know.

CLIP = Clip(5, 24, 24)


def shipped():
    return encoders.load("shapes_classifier", encoders.SHIPPED / "shapes_classifier")


def rendered(seed, clip=CLIP, count=160):
    """Held-out clips of a seed that no training has, and their labels."""
    source = ShapesSource(clip=clip, seed=seed, split="eval", directions=True)
    samples = [source[i] for i in range(count)]
    return np.stack([s["video"] for s in samples]), np.array([s["label"] for s in samples])


@pytest.fixture(scope="module")
def sets():
    """Two sets of clips."""
    return [rendered(seed)[0] for seed in (101, 102)]


@pytest.fixture(scope="module")
def from_first(sets):
    """The distance of clips from the first set."""
    real = Moments.of(stand_in.features(sets[0]))
    return lambda clips: frechet_distance(real, Moments.of(stand_in.features(clips)))


@pytest.mark.parametrize("size", [(5, 24, 24), (9, 64, 64), (16, 64, 64)])
def test_the_shipped_classifier_knows_held_out_clips(size):
    videos, labels = rendered(103, Clip(*size), count=48)
    network = shipped()
    found = jax.jit(lambda videos: network.logits(network(videos)))(videos)
    assert np.mean(np.argmax(found, -1) == labels) >= 0.95
    made = json.loads((encoders.SHIPPED / "shapes_classifier" / "config.json").read_text())["made"]
    assert made["command"].startswith("python -m videogen.stand_in --kind=classifier") and len(made["commit"]) == 40


def test_two_sets_of_one_kind_are_near_and_sets_of_different_kinds_far(sets, from_first):
    forms, labels = stand_in.features(sets[0]), rendered(101)[1] // 24
    of_form = [Moments.of(forms[labels == form]) for form in range(4)]
    apart = [frechet_distance(of_form[0], other) for other in of_form[1:]]
    assert from_first(sets[0]) == 0.0 < from_first(sets[1]) < 0.1 * min(apart)


def noisy(clips, level):
    noise = np.random.default_rng(0).normal(0, level, clips.shape)
    return np.clip(clips + noise, 0, 255).round().astype(np.uint8)


def blurred(clips, pixels):
    return ndimage.gaussian_filter(clips, (0, 0, pixels, pixels, 0))


def dropped(clips, kept_for):
    return clips[:, np.arange(clips.shape[1]) // kept_for * kept_for]


def shuffled(clips, share):
    order, out = np.random.default_rng(0), clips.copy()
    for clip in out[: round(share * len(out))]:
        clip[:] = clip[order.permutation(len(clip))]
    return out


@pytest.mark.parametrize(
    ("damage", "levels"),
    [(noisy, (0, 10, 30, 90)), (blurred, (0, 1, 2, 4)), (dropped, (1, 3, 5)), (shuffled, (0, 0.3, 0.6, 1.0))],
)
def test_the_distance_rises_with_damage(sets, from_first, damage, levels):
    found = [from_first(damage(sets[1], level)) for level in levels]
    assert found == sorted(found) and found[-1] > 1.3 * found[0]


def test_the_distance_is_that_of_the_features_of_all_clips(sets):
    """Batches of 32 are filled up, and what fills them does not count."""
    network, few = shipped(), [clips[:40] for clips in sets]
    encode = jax.jit(network)
    expected = frechet_distance(*(Moments.of(encode(clips)) for clips in few))
    assert stand_in.distance(*few) == {stand_in.PRESET: pytest.approx(expected, rel=1e-3)}
    assert stand_in.distance(few[0], few[1][:1]) == {} == stand_in.distance(few[0][:, :1], few[1][:, :1])
    record = stand_in.protocol(few[0], few[1][:30], "x and y")
    assert record["counts"] == {"real": 40, "generated": 30} and record["clip"] == [5, 24, 24]
    assert record["network_hash"] == network.hash and "not FVD" in record["words"]
