"""Generators of bits: a flow over flips, next tokens of 64 bits, and the text that every layer sees by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import generators
from videogen.conditioning import Conditioning, EncodedText
from videogen.errors import UserError
from videogen.generators import BlockSampler, FlowSampler, FlowTransformer
from videogen.generators.bit_values import BitsOfIds
from videogen.tokens import Layout, SegmentLayout, Tokens

TOKENS, WIDTH, LAYERS, TEXT = 6, 16, 4, 3
NETWORK = {"width": WIDTH, "layers": LAYERS, "heads": 2, "mlp_width": 32}
NOISE = {"process": {"name": "bernoulli", "threshold": True, "anew": True}, "prediction": "flip"}
FLOW = {"name": "flow", "patch": (1, 1, 1), "transformer": NETWORK, "noise": NOISE}
NEXT = {"name": "next_block", "block": (1, 1, 1), "transformer": NETWORK, "head": {"name": "bernoulli"}}
KEYS = jax.random.split(jax.random.key(5), 2)


def layout(vocabulary: tuple[int, ...]) -> Layout:
    return Layout.of(video=SegmentLayout((("query", TOKENS),), vocabulary))


def make(config: dict, vocabulary: tuple[int, ...], **settings) -> nnx.Module:
    """With random numbers in place of the zeros of a fresh model."""
    shared = dict(grid=(1, 1, TOKENS), context_width=8, classes=None, remat="none", dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(generators.build(config | settings, vocabulary=vocabulary, **shared))
    random = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda x: x + 0.2 * random.normal(size=x.shape).astype(x.dtype), state))


@functools.cache
def flow(vocabulary: tuple[int, ...] = (2,) * 5, text: str = "cross") -> FlowTransformer:
    return make(FLOW, vocabulary, text=text)


@functools.cache
def next_token(text: str = "deep"):
    return make(NEXT, (2,) * 64, text=text)


def ids(vocabulary: tuple[int, ...], seed: int = 3) -> Tokens:
    values = jax.random.randint(jax.random.key(seed), (2, TOKENS, len(vocabulary)), 0, jnp.array(vocabulary))
    return Tokens.single(values, layout(vocabulary))


def told(states: int | None = None, seed: int = 0) -> Conditioning:
    """Texts of 3 and 2 tokens, with a vector for each or one of each layer of a language model."""
    shape = (2, TEXT, 8) if states is None else (2, TEXT, states, 8)
    mask = jnp.arange(TEXT)[None] < jnp.array([[3], [2]])
    return Conditioning(EncodedText(jax.random.normal(jax.random.key(seed), shape), mask))


def forced(monkeypatch, output) -> None:
    """Every prediction is ``output(bits, t)``; bits are what the network sees of them."""

    def predict(self, noisy, t, prepared, *, key=None):
        return output(noisy, t)

    monkeypatch.setattr(FlowTransformer, "predict", predict)


# Bits under a flow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [(2,) * 5, (16,), (8, 4)])
def test_flips_that_are_known_give_the_tokens_back(monkeypatch, vocabulary):
    """In one step and in many, by both samplers, from ids of any number of bits."""
    clean = ids(vocabulary)
    for anew in (True, False) if len(vocabulary) == 5 else (True,):
        noise = NOISE | {"process": {"name": "bernoulli", "threshold": True, "anew": anew}}
        model = make(FLOW, vocabulary, noise=noise)
        bits = model.statistics.normalise(clean.only.values).reshape(2, 1, 1, TOKENS, -1)
        forced(monkeypatch, lambda noisy, t, bits=bits: jnp.where(noisy != bits, 50.0, -50.0))
        for steps in (1, 4) if anew else (3,):
            sampler = FlowSampler(steps=steps, guidance_scale=1.0)
            drawn = jax.jit(lambda s=sampler, m=model: m.sample(layout(vocabulary), told(), KEYS, s))()
            np.testing.assert_array_equal(drawn.only.values, clean.only.values)
            assert drawn.only.values.dtype == jnp.int32
        loss, _ = model.loss(clean, told(), jax.random.key(0), train=False)
        np.testing.assert_allclose(loss, 0.0, atol=1e-6)


def test_nothing_known_is_one_bit_of_loss_for_each_bit(monkeypatch):
    forced(monkeypatch, lambda noisy, t: jnp.zeros(noisy.shape))
    np.testing.assert_allclose(flow().loss(ids((2,) * 5), told(), jax.random.key(0))[0], np.log(2), rtol=1e-5)


def test_the_network_sees_bits_as_minus_one_and_one_and_predicts_at_every_place():
    """The gradient of a flip with respect to every bit."""
    model, bits = flow(), flow().statistics.normalise(ids((2,) * 5).only.values).reshape(2, 1, 1, TOKENS, 5)
    prepared, t = model.prepare(told()), jnp.array([0.3, 0.9])
    assert model.predict(bits, t, prepared).shape == bits.shape
    slope = jax.jit(jax.jacobian(lambda x: model.predict(x, t, prepared)[0, 0, 0, :, 0]))(bits.astype(jnp.float32))
    assert (jnp.abs(slope[:, 0]) > 0).all()


def test_guidance_temperature_and_neighbours():
    model, vocabulary = flow(), (2,) * 5

    def draw(sampler, conditioning=told(), keys=KEYS):
        return jax.jit(lambda: model.sample(layout(vocabulary), conditioning, keys, sampler))().only.values

    plain = draw(FlowSampler(steps=3, guidance_scale=1.0))
    assert set(np.unique(plain)) <= {0, 1}
    one = jax.tree.map(lambda x: x[1:], told())
    np.testing.assert_array_equal(draw(FlowSampler(steps=3, guidance_scale=1.0), one, KEYS[1:]), plain[1:])
    assert (draw(FlowSampler(steps=3, guidance_scale=9.0)) != plain).any()
    denoise = model.denoiser(told(), FlowSampler(guidance_scale=1.0, temperature=2.0))
    bits, t = jnp.ones((2, 1, 1, TOKENS, 5), jnp.int32), jnp.full(2, 0.5)
    expected = model.predict(bits, t, model.prepare(told())) / 2
    np.testing.assert_allclose(denoise(bits, t), expected, atol=1e-6 * np.abs(expected).max())


def test_lopsided_ids_and_their_bits_are_a_bijection():
    """The highest bit of a level comes first: 1 and 131,072 of 18 bits."""
    values = BitsOfIds((2**18, 4))
    found = values.normalise(jnp.array([[1, 2], [131_072, 1]]))
    np.testing.assert_array_equal(found[0], [*[0] * 17, 1, 1, 0])
    np.testing.assert_array_equal(found[1], [1, *[0] * 17, 0, 1])
    np.testing.assert_array_equal(values.restore(found), [[1, 2], [131_072, 1]])
    assert values.channels == 20


@pytest.mark.parametrize(
    ("vocabulary", "changes", "message"),
    [
        ((2, 2), {"noise": {}}, r"noise on the bits of codes \(config.model.noise.process.name = bernoulli\)"),
        ((), {}, "this noise is on bits, and the tokenizer makes continuous latents"),
        ((3, 2), {}, "a vocabulary of 3 has no whole number of bits"),
        ((2, 2), {"noise": NOISE | {"weighting": "x0"}}, "leave model.noise.weighting empty"),
        (
            (2, 2),
            {"noise": NOISE | {"prediction": "velocity"}},
            "unknown prediction of Bernoulli .velocity.; known: flip, x0",
        ),
    ],
)
def test_tokens_and_noise_must_fit(vocabulary, changes, message):
    with pytest.raises(UserError, match=message):
        make(FLOW | changes, vocabulary)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": {"name": "heun"}}, "leave sampler.solver empty"),
        ({"grid": {"name": "karras"}}, "no signal-to-noise ratio"),
        ({"extension": "queue"}, "a queue of frames is of latents"),
    ],
)
def test_samplers_of_latents_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        generators.check_sampler(flow(), FlowSampler(**settings))


def test_latents_have_no_temperature():
    model = generators.build(
        {"name": "flow", "patch": (1, 1, 1), "transformer": NETWORK}, channels=2, grid=(1, 1, 4), rngs=nnx.Rngs(0)
    )
    generators.check_sampler(model, FlowSampler())
    with pytest.raises(UserError, match="leave sampler.temperature at 1"):
        generators.check_sampler(model, FlowSampler(temperature=0.5))


def test_latents_of_queries_flow_as_well():
    """A segment without places is a row along the width."""
    model = generators.build(
        {"name": "flow", "patch": (1, 1, 1), "transformer": NETWORK}, channels=2, grid=(1, 1, TOKENS), rngs=nnx.Rngs(0)
    )
    queries = Layout.of(video=SegmentLayout((("query", TOKENS),), channels=2))
    tokens = Tokens.single(jax.random.normal(jax.random.key(0), (2, TOKENS, 2)), queries)
    assert jnp.isfinite(model.loss(tokens, Conditioning(), jax.random.key(0))[0])
    drawn = model.sample(queries, Conditioning(), KEYS, FlowSampler(steps=2))
    assert drawn.layout == queries and jnp.isfinite(drawn.only.values).all()


# Next tokens of bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["deep", "cross"])
def test_next_tokens_of_64_bits_are_what_the_full_forward_says(text):
    """At temperature 0 every token is the threshold of the guided logits that the tokens before it give."""
    model, conditioning = next_token(text), told(LAYERS)
    sampler = BlockSampler(temperature=0.0, guidance_scale=3.0)
    generators.check_sampler(model, sampler)
    drawn = jax.jit(lambda: model.sample(layout((2,) * 64), conditioning, KEYS, sampler))().only.values
    assert drawn.shape == (2, TOKENS, 64) and drawn.dtype == jnp.int32
    with_text, without = (
        model.head.logits(model.features(drawn, said, model.grid)) for said in (conditioning, conditioning.null())
    )
    np.testing.assert_array_equal(drawn, without + 3 * (with_text - without) > 0)
    assert model.passes(model.grid) == TOKENS


def test_a_token_sees_the_tokens_before_it_and_the_text_that_exists():
    model, bits = next_token(), ids((2,) * 64).only.values

    def features(x, said):
        return model.features(x, said, model.grid)

    base = features(bits, told(LAYERS))
    for place in range(TOKENS):
        changed = np.abs(features(bits.at[:, place].set(1 - bits[:, place]), told(LAYERS)) - base).max((0, 2)) > 1e-6
        np.testing.assert_array_equal(changed, np.arange(TOKENS) > place)
    text = told(LAYERS).text
    hidden = Conditioning(EncodedText(text.features.at[1, 2].add(5.0), text.mask))
    np.testing.assert_allclose(features(bits, hidden), base, atol=1e-6)
    other = Conditioning(EncodedText(text.features.at[1, 1].add(5.0), text.mask))
    assert (np.abs(features(bits, other) - base).max((1, 2)) > 1e-4).tolist() == [False, True]


def test_another_text_in_the_middle_is_read_from_there_on():
    """A step with another conditioning goes on with the caches, but for the text in them."""
    grid = Layout.of(video=SegmentLayout((("time", 2), ("height", 1), ("width", 2)), (2,) * 8))
    shared = dict(vocabulary=(2,) * 8, grid=(2, 1, 2), context_width=8, rngs=nnx.Rngs(0))
    model = generators.build(NEXT | {"text": "deep", "block": (1, 1, 2)}, **shared)
    sampler = BlockSampler(temperature=0.0)
    advance = jax.jit(model.advance)
    state, _ = advance(model.begin(grid, told(), KEYS, sampler), None, 0)
    (same, _), (again, _) = advance(state, told(), 1), advance(state, None, 1)
    for a, b in zip(jax.tree.leaves(same.memory), jax.tree.leaves(again.memory), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    other, _ = advance(state, told(seed=9), 1)
    cached, fresh = other.memory[1][0], model.stepper(grid, told(seed=9), KEYS, sampler).empty_caches()[0]
    np.testing.assert_allclose(cached.key[..., :TEXT], fresh.key[..., :TEXT], atol=1e-6)
    np.testing.assert_allclose(
        cached.key[..., TEXT : TEXT + 2], again.memory[1][0].key[..., TEXT : TEXT + 2], atol=1e-6
    )


# Deep fusion ----------------------------------------------------------------------------------------------------------


def behind_layers(model, conditioning: Conditioning, count: int) -> jax.Array:
    """Tokens behind the first ``count`` layers of a generator."""
    features, mask = model.context(conditioning)
    keys = model.deep_text(features, mask, model.stack)
    x = jax.random.normal(jax.random.key(4), (2, TOKENS, WIDTH))
    return model.stack(x, layers=slice(count), per_layer={"extra_kv": keys})


@functools.cache
def seen_by(count: int):
    model = next_token()
    return jax.jit(lambda conditioning: behind_layers(model, conditioning, count))


@pytest.mark.parametrize("states", [LAYERS, 2])
def test_layer_l_reads_the_hidden_state_of_layer_l_and_of_no_other(states):
    """With half as many states two neighbours share one."""
    text = told(states).text
    share = LAYERS // states
    for state in range(states):
        changed = Conditioning(EncodedText(text.features.at[:, :, state].add(3.0), text.mask))
        for count in range(1, LAYERS + 1):
            moved = np.abs(seen_by(count)(changed) - seen_by(count)(told(states))).max() > 1e-5
            assert moved == (count > state * share), (state, count)


def test_states_that_layers_cannot_share_are_refused():
    for model in (next_token(), flow(text="deep")):
        with pytest.raises(UserError, match="set model.transformer.layers to a multiple of 3"):
            model.loss(ids(tuple([2] * (64 if model is next_token() else 5))), told(3), jax.random.key(0))


def test_a_cross_attention_reads_the_last_layer_and_deep_fusion_takes_any_encoder():
    text = told(LAYERS).text
    last = Conditioning(EncodedText(text.features[:, :, -1], text.mask))
    for model in (flow(), next_token("cross")):
        tokens = ids((2,) * (5 if model is flow() else 64))
        losses = [model.loss(tokens, c, jax.random.key(0), train=False)[0] for c in (Conditioning(text), last)]
        np.testing.assert_allclose(*losses, rtol=1e-6)
    every = Conditioning(EncodedText(jnp.stack([text.features[:, :, 0]] * LAYERS, axis=2), text.mask))
    one = Conditioning(EncodedText(text.features[:, :, 0], text.mask))
    losses = [flow(text="deep").loss(ids((2,) * 5), c, jax.random.key(0), train=False)[0] for c in (every, one)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_without_text_the_null_vector_is_all_that_is_seen():
    model = flow(text="deep")
    bits, t = jnp.ones((2, 1, 1, TOKENS, 5), jnp.int32), jnp.full(2, 0.5)
    null, other = (model.predict(bits, t, model.prepare(told(LAYERS, seed).null())) for seed in (0, 1))
    np.testing.assert_allclose(null, other, atol=1e-6)
    assert jnp.abs(model.predict(bits, t, model.prepare(told(LAYERS))) - null).max() > 1e-4
