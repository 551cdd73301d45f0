"""The language model over streams: who influences what, cached decoding, guidance, what may be drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.language.worlds import (
    CHANNELS,
    KINDS,
    PER_FRAME,
    TEXT,
    TOKENS,
    VOCABULARY,
    layouts,
    small,
    table,
    tokens,
)
from videogen.language import Decoding, Filled, LanguageSampler, build_stream
from videogen.language.tables import drawable

SAMPLES = 3


@functools.cache
def model(decoder: bool = False):
    return nnx.split(small(64, decoder=decoder))


@functools.cache
def _run(name: str, decoder: bool = False, packed: int = 1):
    """Compiled ``(state, ids, exists, floats) -> (stream, features, losses)``."""

    @jax.jit
    def run(state, ids, exists, floats):
        live, choice = nnx.merge(model(decoder)[0], state), jnp.zeros(len(floats), int)
        stream, _ = build_stream(table(name), choice, KINDS, VOCABULARY, ids, exists, packed=packed)
        values = {"video": floats.reshape(len(stream.ids), -1, CHANNELS)}
        return stream, live.features(stream, values), live.losses(stream, values)

    return run


def run(name: str, ids, exists, floats, decoder: bool = False, packed: int = 1, state=None):
    return _run(name, decoder, packed)(model(decoder)[1] if state is None else state, ids, exists, floats)


@functools.cache
def _draw(name: str, sampler: LanguageSampler, decoder: bool = False):
    """Compiled ``(state, keys, given) -> drawn``."""

    @jax.jit
    def draw(state, keys, given):
        return Decoding(nnx.merge(model(decoder)[0], state), layouts(name)[0], keys, sampler).sample(given)

    return draw


def draw(name: str, given, sampler=LanguageSampler(), *, samples=SAMPLES, decoder=False, seed=0, state=None):
    keys = jax.random.split(jax.random.key(seed), samples)
    return _draw(name, sampler, decoder)(model(decoder)[1] if state is None else state, keys, given)


def text_of(ids, exists, clip: int = 0) -> Filled:
    at = slice(clip * TEXT, (clip + 1) * TEXT)
    return Filled(ids["text"][:, at], exists["text"][:, at])


def test_a_vector_changes_no_prediction_up_to_its_own():
    """DiCoDe, 10.3: of floats one after another, and of the ids and floats before them."""
    ids, exists, floats = tokens(SAMPLES)
    stream, x, _ = run("next", ids, exists, floats)
    _, other, _ = run("next", ids, exists, floats.at[:, 3].add(1.0))
    for row in range(SAMPLES):
        (first,) = np.flatnonzero((np.asarray(stream.source[row]) == 1) & (np.asarray(stream.place[row]) == 3))
        np.testing.assert_array_equal(x[row, :first], other[row, :first])
        assert jnp.abs(x[row, first] - other[row, first]).max() > 1e-3


def test_queries_see_the_text_and_each_other_and_no_text_sees_them():
    """Divot, 11.4 and 11.5."""
    ids, exists, floats = tokens(SAMPLES)
    exists = {"text": exists["text"].at[0].set(True)}
    stream, x, _ = run("draw", ids, exists, floats)
    state = model()[1]
    moved = jax.tree.map(lambda a: a, state)
    queries = moved["floats"]["video"]["queries"]
    queries.set_value(queries.get_value().at[-1].add(1.0))
    _, other, _ = run("draw", ids, exists, floats, state=moved)
    asked = np.asarray(stream.query)
    assert (np.abs(np.asarray(x - other)[asked]).max(-1) > 1e-4).all()
    np.testing.assert_array_equal(
        np.asarray(x)[~asked & np.asarray(stream.exists)], np.asarray(other)[~asked & np.asarray(stream.exists)]
    )
    _, later, _ = run(
        "draw", {**ids, "text": ids["text"].at[0, TEXT - 1].set((ids["text"][0, TEXT - 1] + 1) % 9)}, exists, floats
    )
    changed = np.abs(np.asarray(x - later)[0]).max(-1) > 1e-5
    assert changed[asked[0]].all() and not changed[:TEXT].any()


@pytest.mark.slow
def test_permuted_queries_give_permuted_features():
    """Divot, 11.4: the block is equivariant where positions move along."""
    ids, exists, floats = tokens(1)
    live = nnx.merge(*model())
    stream, _ = build_stream(table("draw"), jnp.zeros(1, int), KINDS, VOCABULARY, ids, exists)
    first, order = int(np.argmax(stream.query[0])), np.random.default_rng(0).permutation(TOKENS)
    slots = np.arange(stream.ids.shape[1])
    slots[first : first + TOKENS] = first + order
    permuted, values = jax.tree.map(lambda x: x[:, slots], stream), {"video": floats}
    both = jax.jit(lambda stream: live.features(stream, values))
    np.testing.assert_allclose(both(permuted), both(stream)[:, slots], atol=2e-6)


@pytest.mark.parametrize("name", ["draw", pytest.param("story", marks=pytest.mark.slow)])
def test_packed_samples_are_as_alone(name):
    clips = layouts(name)[0].clips
    ids, exists, floats = tokens(4, clips)
    alone, packed = (run(name, ids, exists, floats, packed=count)[2] for count in (1, 4))
    assert set(alone) == {"words", "accuracy", "video"}
    for kind in alone:
        (a, counted), (b, also) = alone[kind], packed[kind]
        np.testing.assert_allclose(b[also], a[counted], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("draw", False),
        *[pytest.param(name, True, marks=pytest.mark.slow) for name in ("next", "draw", "story")],
        *[pytest.param(name, False, marks=pytest.mark.slow) for name in ("next", "story")],
    ],
)
def test_cached_decoding_is_the_whole_pass(name, decoder):
    """DiCoDe, 10.4: what is drawn without variance are means that the whole pass predicts from what was drawn."""
    clips = layouts(name)[0].clips
    ids, exists, _ = tokens(SAMPLES, clips)
    exists = {"text": exists["text"].at[0, :TEXT].set(False)}  # an empty text among them
    given = {("text", 0): text_of(ids, exists)}
    drawn = draw(name, given, LanguageSampler(variance_scale=0.0, temperature=2.0), decoder=decoder)
    floats = jnp.concatenate([drawn["video", clip].values for clip in range(clips)], axis=1)
    texts = [given["text", 0]] + [drawn["text", clip] for clip in range(1, clips)]
    ids = {**ids, "text": jnp.concatenate([text.values for text in texts], axis=1)}
    exists = {"text": jnp.concatenate([text.exists for text in texts], axis=1)}
    stream, x, _ = run(name, ids, exists, floats, decoder=decoder)
    live = nnx.merge(*model(decoder))
    features, found = live.predicting(stream, x, "video", clips * TOKENS)
    assert found.all()
    means = live.floats["video"].head.mixture(features).means
    gap = jnp.abs(means - floats[:, :, None]).max(-1).min(-1)
    assert gap.max() < 1e-4 * float(jnp.abs(means).max())
    if clips > 1:
        # Of the drawn text: the likeliest continuations under both, by greedy decoding.
        greedy = draw(name, given, LanguageSampler(variance_scale=0.0, temperature=0.0), decoder=decoder)["text", 1]
        assert greedy.values.shape == (SAMPLES, TEXT)


@pytest.mark.slow
def test_greedy_text_is_what_the_whole_pass_finds_likeliest():
    ids, exists, floats = tokens(SAMPLES)
    found = draw("caption", {("video", 0): Filled(floats)}, LanguageSampler(temperature=0.0))["text", 0]
    stream, x, _ = run("caption", {**ids, "text": found.values}, {"text": found.exists}, floats)
    live = nnx.merge(*model())
    logits = live.words.logits(live.backbone, x)
    allowed = drawable(layouts("caption")[0], 3, KINDS, VOCABULARY)
    likeliest = jnp.where(allowed, logits, -jnp.inf).argmax(-1)
    lengths = found.exists.sum(1)
    for row in range(SAMPLES):
        at = np.flatnonzero(np.asarray(stream.predicts[row]) == 0)
        at = at if lengths[row] < TEXT else at[:-1]  # behind the longest text the marker is not drawn
        np.testing.assert_array_equal(likeliest[row, at], stream.target[row, at])


@pytest.mark.slow
def test_prefixes_are_read_both_ways_and_cached_as_such():
    """VideoPoet, 11.4; and 11.10: at places of codes only those of the level are drawn."""
    ids, exists, floats = tokens(SAMPLES)
    given = {("text", 0): text_of(ids, exists), ("video", 0): Filled(floats)}
    found = draw("codes", given, LanguageSampler(temperature=0.0))["codes", 0].values
    stream, x, _ = run("codes", {**ids, "codes": found}, exists, floats)
    live = nnx.merge(*model())
    logits = live.words.logits(live.backbone, x)
    for row in range(SAMPLES):
        at = np.flatnonzero(np.asarray(stream.predicts[row]) == 0)
        masks = np.repeat([VOCABULARY.mask("codes", 0), VOCABULARY.mask("codes", 1)], 2, axis=0)
        likeliest = jnp.where(masks, logits[row, at], -jnp.inf).argmax(-1)
        np.testing.assert_array_equal(likeliest, stream.target[row, at])
    _, other, _ = run("codes", {**ids, "codes": found}, exists, floats.at[:, -1].add(1.0))
    assert (jnp.abs(x - other)[:, 0].max(-1) > 1e-5).all()


def test_hot_draws_obey_the_layout():
    """Random weights at temperature 5: 10,000 ids, of texts and of codes of two levels."""
    samples = 1250
    _, _, floats = tokens(samples)
    text = draw("caption", {("video", 0): Filled(floats)}, LanguageSampler(temperature=5.0), samples=samples)["text", 0]
    assert text.values.min() >= 0 and text.values.max() < 9
    lengths = np.asarray(text.exists.sum(1))
    np.testing.assert_array_equal(text.exists, np.arange(TEXT) < lengths[:, None])
    assert set(lengths) == set(range(TEXT + 1)) and set(np.unique(text.values)) == set(range(9))
    ids, exists, _ = tokens(samples)
    given = {("text", 0): text_of(ids, exists), ("video", 0): Filled(floats)}
    codes = np.asarray(draw("codes", given, LanguageSampler(temperature=5.0), samples=samples)["codes", 0].values)
    assert text.values.size + codes.size == 10_000
    assert set(np.unique(codes[:, :2])) == set(range(5)) and set(np.unique(codes[:, 2:])) == set(range(4))


@pytest.mark.slow
def test_guided_vectors_are_those_of_both_branches_and_scale_one_is_none():
    """DiCoDe, 10.5: u + s(c - u), vector after vector, from branches that read the same vectors."""
    ids, exists, _ = tokens(SAMPLES)
    given = {("text", 0): text_of(ids, exists)}
    live, scale = nnx.merge(*model()), 2.5
    sampler = LanguageSampler(variance_scale=0.0, guidance_scale=scale)
    drawn = draw("next", given, sampler)["video", 0].values
    said, silent = (run("next", ids, {"text": e}, drawn) for e in (exists["text"], jnp.zeros_like(exists["text"])))
    means = [
        live.floats["video"].head.mixture(live.predicting(stream, x, "video", TOKENS)[0]).means
        for stream, x, _ in (said, silent)
    ]
    # Each branch has drawn one of its two components.
    every = scale * means[0][:, :, :, None] + (1 - scale) * means[1][:, :, None, :]
    gap = jnp.abs(every - drawn[:, :, None, None]).max(-1).min((-1, -2))
    assert gap.max() < 1e-4 * float(jnp.abs(every).max())
    plain = draw("next", given, LanguageSampler(variance_scale=0.0))["video", 0].values
    one = LanguageSampler(variance_scale=0.0, guidance_scale=1 + 1e-9)
    np.testing.assert_allclose(draw("next", given, one)["video", 0].values, plain, atol=1e-5)
    assert jnp.abs(drawn - plain).max() > 1e-2


@pytest.mark.slow
def test_another_prompt_changes_later_clips_only():
    """A story whose second text is given: what comes before it stays as it is, to the bit."""
    told = layouts("story")[0]
    items = tuple(
        dataclasses.replace(item, output=False) if getattr(item, "segment", "") == "text" else item
        for item in told.items
    )
    told = dataclasses.replace(told, items=items)
    graph, state = model()
    keys = jax.random.split(jax.random.key(1), SAMPLES)
    tell = jax.jit(lambda given: Decoding(nnx.merge(graph, state), told, keys, LanguageSampler()).sample(given))
    ids, exists, _ = tokens(SAMPLES, 2)
    exists = {"text": exists["text"].at[:, TEXT].set(True)}
    given = {("text", clip): text_of(ids, exists, clip) for clip in (0, 1)}
    first = tell(given)
    other = given["text", 1]._replace(values=(given["text", 1].values + 1) % 9)
    second = tell(given | {("text", 1): other})
    np.testing.assert_array_equal(first["video", 0].values, second["video", 0].values)
    assert (jnp.abs(first["video", 1].values - second["video", 1].values).max((1, 2)) > 1e-3).all()


@pytest.mark.slow
def test_a_draw_does_not_depend_on_its_neighbours():
    ids, exists, _ = tokens(SAMPLES)
    given = {("text", 0): text_of(ids, exists)}
    whole = draw("draw", given)["video", 0].values
    keys = jax.random.split(jax.random.key(0), SAMPLES)
    live = nnx.merge(*model())
    part = Decoding(live, layouts("draw")[0], keys[1:2], LanguageSampler()).sample(
        jax.tree.map(lambda x: x[1:2], given)
    )
    np.testing.assert_allclose(part["video", 0].values, whole[1:2], atol=1e-5)


@pytest.mark.slow
def test_the_positions_of_a_vector_are_those_of_its_frame_and_of_its_place_there():
    """DiCoDe, 10.8: two frames exchanged change the vectors by the difference of their frames alone."""
    part = nnx.merge(*model()).floats["video"]
    values = tokens(1)[2]
    exchanged = jnp.concatenate([values[:, PER_FRAME:], values[:, :PER_FRAME]], axis=1)
    token = jnp.arange(TOKENS)
    here, there = part.embed(values, token), part.embed(exchanged, token)
    frames = part.of_frame.get_value()
    np.testing.assert_allclose(
        there[:, PER_FRAME:] - here[:, :PER_FRAME],
        jnp.broadcast_to(frames[1] - frames[0], (1, PER_FRAME, 16)),
        atol=1e-5,
    )


@pytest.mark.slow
def test_a_published_model_without_updates_has_its_own_scores_of_text():
    """The first range is its own; LoRA begins as nothing; ids behind it have vectors of ours."""
    live = nnx.merge(*model(decoder=True))
    decoder = live.backbone.decoder
    for block in (decoder.transformer.stack.layers.attention, decoder.transformer.stack.layers.mlp):
        for _, part in nnx.iter_modules(block):
            if isinstance(part, nnx.Module) and type(part).__name__ == "LowRank":
                part.up.set_value(jnp.zeros_like(part.up.get_value()))
    ids = jnp.array([[1, 5, 8, 0]])
    x = live.words.embed(live.backbone, ids)
    exists = jnp.ones(ids.shape, bool)
    scores = live.words.logits(live.backbone, live.backbone(x, exists))
    assert scores.shape == (1, 4, VOCABULARY.size)
    expected = decoder(ids)
    np.testing.assert_allclose(scores[..., :9], expected, atol=1e-5)
    np.testing.assert_array_equal(
        live.words.embed(live.backbone, jnp.array([[18]]))[0, 0], live.words.head.embed(jnp.array([[[9]]]))[0, 0]
    )
