"""Networks over clips and words: padding, what is masked, who sees whom, and the attention that patches get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.language.fused import Joint, Shared
from videogen.language.fused_heads import VideoText, WordHead
from videogen.shapes import VideoShape

CLIP, VOCABULARY, LENGTH = VideoShape(3, 8, 8), 20, 5
SIZES = {"width": 8, "layers": 2, "heads": 2, "mlp_width": 16}
VIDEO = jax.random.uniform(jax.random.key(0), (2, 3, 8, 8, 3), minval=-1)
SECONDS = jnp.broadcast_to(jnp.arange(3) / 8, (2, 3))
IDS = jnp.array([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0]])
MASK = jnp.array([[True] * 5, [True, True, False, False, False]])


def joint(layers: int = 2) -> Joint:
    encoder = {"name": "patches", "patch": 4, "transformer": {**SIZES, "layers": 1}}
    bert = {"width": 8, "layers": layers, "heads": 2, "hidden": 16}
    return Joint(CLIP, VOCABULARY, LENGTH, encoder=encoder, bert=bert, rngs=nnx.Rngs(0))


def shared(fold: int = 4) -> Shared:
    return Shared(CLIP, VOCABULARY, LENGTH, patch=4, transformer=SIZES, fold=fold, rngs=nnx.Rngs(0))


NETWORKS = {"joint": joint, "shared": shared}


def fused(network, ids=IDS, mask=MASK, video=VIDEO, **settings):
    return jax.jit(lambda: network.fuse(network.see(video, SECONDS), ids, mask, **settings))()


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_nothing_and_shapes_are_those_of_the_grid(name):
    network = NETWORKS[name]()
    found, other = fused(network), fused(network, ids=jnp.where(MASK, IDS, 11))
    assert network.grid == (3, 2, 2) and found.patches.shape == (2, 3, 2, 2, 8)
    assert found.words.shape == (2, 5, 8) and found.first.shape == (2, 8)
    for ours, theirs in ((found.patches, other.patches), (found.first, other.first)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(found.words[1, :2], other.words[1, :2], atol=1e-6)
    changed = fused(network, ids=IDS.at[1, 1].set(11))
    assert float(jnp.abs(changed.first - found.first)[1].max()) > 1e-3
    np.testing.assert_array_equal(changed.first[0], found.first[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_masked_word_is_a_vector_of_its_own(name):
    network = NETWORKS[name]()
    network.masked_word.set_value(network.vectors.table.get_value()[13])
    hidden, thirteen = (fused(network, ids=IDS.at[:, 0].set(number)) for number in (VOCABULARY, 13))
    np.testing.assert_allclose(hidden.first, thirteen.first, atol=1e-6)
    network.masked_word.set_value(jnp.ones(8))
    assert float(jnp.abs(fused(network, ids=IDS.at[:, 0].set(VOCABULARY)).first - thirteen.first).max()) > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_texts_and_clips_by_themselves(name):
    """A text alone is no clip's, and of a clip without words no id counts."""
    network = NETWORKS[name]()
    nothing = jnp.zeros_like(MASK)
    np.testing.assert_allclose(fused(network, mask=nothing).first, fused(network, IDS + 1, nothing).first, atol=1e-6)
    text = network.read(IDS, MASK)
    np.testing.assert_allclose(text, network.read(jnp.where(MASK, IDS, 11), MASK), atol=1e-6)
    assert float(jnp.abs(text - network.read(IDS.at[:, 1].set(11), MASK)).min(1).max()) > 0


def test_the_attention_that_patches_get_is_that_of_the_layers():
    """One layer: softmax of the queries of [CLS] and the words, by hand; padded words ask as [CLS] does."""
    network = joint(layers=1)
    found = fused(network, probed=True)
    plain = fused(network)
    np.testing.assert_allclose(found.first, plain.first, atol=1e-6)
    attention = network.bert.transformer.stack.layer(0).attention
    clip = network.see(VIDEO, SECONDS).reshape(2, 15, 8)
    words = network.bert.embedded(network.vectors(IDS))
    first = jnp.broadcast_to(network.first_word.get_value(), (2, 1, 8))
    q, k, _ = attention.project(jnp.concatenate([clip, first, words], axis=1), None)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
    there = np.pad(np.asarray(MASK), ((0, 0), (16, 0)), constant_values=True)
    scores = np.where(there[:, None, None], scores, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    asked = [[15, 16, 17, 18, 19, 20], [15, 16, 17, 15, 15, 15]]
    mass = np.stack([weights[b][:, asked[b]].sum(1).mean(0) for b in range(2)])
    # Without [CLS] of the three frames.
    np.testing.assert_allclose(found.mass, mass[:, :15].reshape(2, 3, 5)[:, :, 1:].reshape(2, 12), rtol=1e-4)


def test_layers_add_up_and_even_attention_is_even():
    network = joint()
    layers = network.bert.transformer.stack.layers.attention
    kernel = layers.query_key_value.kernel
    kernel.set_value(kernel.get_value().at[:, :, :16].set(0.0))
    found = fused(network, probed=True).mass
    # Two layers, six queries each: 21 keys, and 18 of the shorter text.
    np.testing.assert_allclose(found[0], 12 / 21, rtol=1e-5)
    np.testing.assert_allclose(found[1], 12 / 18, rtol=1e-5)


def test_frames_know_of_each_other_by_rolling_alone():
    other = VIDEO.at[:, 1].set(0.0)
    # A fourth of four patches: one from the frame before, one from the one behind; with 1/8 of four none moves.
    for fold, reaches in ((8, False), (4, True)):
        network = shared(fold)
        found, changed = fused(network), fused(network, video=other)
        difference = jnp.abs(found.patches - changed.patches).max((0, 2, 3, 4))
        assert float(difference[1]) > 1e-3 and bool(difference[0] > 1e-5) == reaches


def test_words_and_class_tokens_are_means_over_frames():
    network = shared(fold=8)
    single = [jnp.broadcast_to(VIDEO[:, t : t + 1], VIDEO.shape) for t in range(3)]
    network.times.table.set_value(jnp.zeros((3, 8)))
    whole, parts = fused(network), [fused(network, video=video) for video in single]
    np.testing.assert_allclose(whole.first, sum(p.first for p in parts) / 3, atol=1e-5)
    np.testing.assert_allclose(whole.words, sum(p.words for p in parts) / 3, atol=1e-5)


def test_what_cannot_be_is_one_line():
    with pytest.raises(UserError, match="tells no attention: set masking.blocks=1.0"):
        fused(shared(), probed=True)
    encoder, bert = {"name": "patches", "patch": 4, "transformer": SIZES}, {"width": 8, "layers": 1, "heads": 2}
    for name, value in (("vocabulary_size", 19), ("length", 4)):
        with pytest.raises(UserError, match=f"the text tokenizer has {name} {value + 1}"):
            sizes = {**bert, "hidden": 8, name: value}
            Joint(CLIP, VOCABULARY, LENGTH, encoder=encoder, bert=sizes, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="clip height 8 is no multiple of the patch 3"):
        Shared(CLIP, VOCABULARY, LENGTH, patch=3, transformer=SIZES, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="learned positions, and no dropout"):
        Shared(CLIP, VOCABULARY, LENGTH, patch=4, transformer={**SIZES, "dropout": 0.1}, rngs=nnx.Rngs(0))


def test_scores_of_words_are_products_with_their_vectors():
    head = WordHead(8, VOCABULARY, dtype=jnp.float32, rngs=nnx.Rngs(0))
    head.bias.set_value(jnp.arange(20.0))
    x, table = jax.random.normal(jax.random.key(1), (3, 8)), jax.random.normal(jax.random.key(2), (VOCABULARY, 8))
    y = jax.nn.gelu(x @ head.dense.kernel.get_value(), approximate=False)
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True))
    np.testing.assert_allclose(head(x, table), y @ table.T + jnp.arange(20.0), rtol=1e-4, atol=1e-4)


def model(scores: int) -> VideoText:
    settings = dict(visual={}, words=False, classes=0, embed=0, scale=None)
    return VideoText(joint(1), scores=scores, **settings, dtype=jnp.float32, rngs=nnx.Rngs(1))


def test_a_match_is_the_score_or_the_log_odds_of_yes():
    for count in (1, 2):
        found = model(count)
        seen = found.network.see(VIDEO, SECONDS)
        scores = np.asarray(found.matched(seen, IDS, MASK))
        expected = scores[:, 0] if count == 1 else np.diff(scores, axis=1)[:, 0]
        np.testing.assert_allclose(found.match(seen, IDS, MASK), expected, rtol=1e-5)
