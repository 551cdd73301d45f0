"""Properties of KARL's sheet beyond what every tokenizer promises; the numbers are those of the checkable ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, make, video_of
from videogen.errors import UserError
from videogen.nn import attend
from videogen.shapes import VideoShape
from videogen.tokenizers import Encoded, Request, build
from videogen.tokenizers.karl import APART
from videogen.tokenizers.lengths import ASKED, HALTING, first
from videogen.tokenizers.one_d import OneD
from videogen.tokenizers.requests import BINS, bin_of

CONFIG = CONFIGS["karl"]
QUERIES, LONGEST = CONFIG["queries"], CONFIG["longest"]
MODEL = functools.cache(lambda: make(CONFIG))


def video(count: int = 2) -> jax.Array:
    return jnp.concatenate([video_of("karl") * scale for scale in np.linspace(1, 0.2, count)])


def latents_of(count: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (count, QUERIES, MODEL().quantizer.width))


def halting(logits: list[list[float]], model: nnx.Module) -> nnx.Module:
    """The model, which halts by these logits whatever it sees."""
    graph, state = nnx.split(model)
    model = nnx.merge(graph, state)
    read = model.read
    model.read = lambda *arguments: read(*arguments)._replace(extra={HALTING: jnp.asarray(logits)})
    return model


def test_what_is_kept_is_no_prefix_and_may_be_nothing():
    """1, and users' case 2: a token goes where its probability is above 0.75, wherever it stands."""
    logits = [[-3.0, 2.0, 0.0, 1.09, 1.11], [9.0] * QUERIES]
    model = halting(logits, MODEL())
    tokens = jax.jit(lambda video: model.tokenize(video, Request(0.1)))(video())
    # sigmoid(1.0986) is 0.75.
    assert tokens.only.kept.tolist() == [[True, False, True, True, False], [False] * QUERIES]
    assert np.isfinite(jax.jit(model.detokenize)(tokens)).all()
    assert tokens.bits().tolist() == [3 * 6.0, 0.0]
    assert model.lengths.bits(tokens.only.layout) == QUERIES


def test_the_set_costs_a_bit_a_token():
    """Users' case 2: 150 of 256 tokens at 12 bits are 1,800 bits, and 256 more say which."""
    config = CONFIG | {"queries": 256, "longest": 0, "quantizer": {"name": "vq", "size": 4096, "width": 4}}
    model = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    layout = model.layout(VideoShape(*CONFIG["clip"])).only
    assert 150 * layout.bits + model.lengths.bits(layout) == 1800 + 256


def test_fresh_weights_keep_every_token():
    model = build(CONFIG, rngs=nnx.Rngs(0))
    assert jax.jit(lambda video: model.tokenize(video))(video()).only.kept.all()


def test_tokens_that_are_dropped_are_not_seen():
    """2: whatever they hold; and where all are kept there is no mask."""
    model, latents = MODEL(), latents_of()
    kept = jnp.asarray([[True, False, True, False, True], [False] * 5])
    decode = jax.jit(model.decode)
    shown = decode(latents, kept)
    np.testing.assert_array_equal(decode(jnp.where(kept[..., None], latents, 7.0), kept), shown)
    changed = decode(latents.at[0, 2].add(1.0), kept)
    assert np.abs(changed[0] - shown[0]).max() > 1e-3 and (changed[1] == shown[1]).all()
    whole = decode(latents)
    np.testing.assert_allclose(decode(latents, jnp.ones((2, 5), bool)), whole, atol=1e-5 * np.abs(whole).max())


def test_a_dropped_token_sees_itself_alone():
    """3: no row of scores is empty, and rows and columns of what is dropped are empty but for the diagonal."""
    told = MODEL()._hiding(jnp.asarray([[True, False, True, False]]))
    mask = np.asarray(told["mask"].allowed(None, None, {APART: (told["tags"][APART][..., None], told["tags"][APART])}))
    seen = np.asarray([1, 0, 1, 0], bool)
    np.testing.assert_array_equal(mask[0], seen[:, None] & seen | np.eye(4, dtype=bool))
    x = jax.random.normal(jax.random.key(0), (1, 4, 1, 8))
    found = attend(x, x, x, mask=told["mask"], tags=told["tags"], key_tags=told["tags"])
    np.testing.assert_allclose(found[0, [1, 3]], x[0, [1, 3]], rtol=1e-6)


def test_a_condition_begins_as_the_error_of_its_bin():
    """9"""
    model = build(CONFIG, rngs=nnx.Rngs(0))
    table = np.asarray(model.conditions.get_value())
    np.testing.assert_array_equal(table, np.repeat(np.asarray(BINS, np.float32)[:, None], 12, axis=1))


@pytest.mark.parametrize("budget", [3, pytest.param(QUERIES, marks=pytest.mark.slow)])
def test_a_budget_is_as_if_there_were_no_more_queries(budget):
    """10: a mask with a static shape equals slicing, in the encoder and in the decoder."""
    model, bins = MODEL(), jnp.asarray([3, 7])
    read = jax.jit(lambda video, budget: model.read(video, bins, budget, LONGEST))
    masked = read(video(), jnp.asarray(budget))
    sliced = jax.jit(lambda video: model.read(video, bins, None, budget))(video())
    assert masked.exists.tolist() == [[i < budget for i in range(LONGEST)]] * 2 and sliced.exists is None
    for a, b in ((masked.values, sliced.values), (masked.extra[HALTING], sliced.extra[HALTING])):
        np.testing.assert_allclose(a[:, :budget], b, atol=1e-5 * np.abs(b).max())
    shown = jax.jit(model.decode)(masked.values, masked.exists)
    expected = jax.jit(model.decode)(sliced.values)
    np.testing.assert_allclose(shown, expected, atol=1e-5 * np.abs(expected).max())


def test_the_error_that_is_asked_for_is_read():
    model = MODEL()
    encode = jax.jit(lambda error: model.encode(video(), Request(error)))
    small, large = encode(jnp.asarray([0.01, 0.01])), encode(jnp.asarray([0.01, 0.2]))
    np.testing.assert_allclose(small.values[0], large.values[0], rtol=1e-6)
    assert np.abs(small.extra[HALTING][1] - large.extra[HALTING][1]).max() > 1e-4
    # What lies in one bin is one request; the published 0.05 is what is asked for otherwise.
    np.testing.assert_array_equal(encode(jnp.full(2, 0.041)).values, encode(jnp.full(2, 0.05)).values)
    np.testing.assert_allclose(model.encode(video()).values, encode(jnp.full(2, 0.05)).values, atol=1e-6)


def test_requests_that_cannot_be_are_refused():
    model = MODEL()
    for error in (0, -0.1, float("nan")):
        with pytest.raises(UserError, match="asked for must be above 0"):
            model.encode(video(), Request(error))
    for request in (0, QUERIES + 1, Request(0.1, 0), Request(0.1, QUERIES + 1)):
        with pytest.raises(UserError, match=f"has 1 … {QUERIES} tokens for a clip"):
            model.encode(video(), request)
    with pytest.raises(UserError, match=f"at least the {QUERIES} queries"):
        make(CONFIG, longest=QUERIES - 1)


def test_as_many_tokens_as_are_asked_for_without_a_search_or_a_decoder(monkeypatch):
    """Users' case 2: the first K, whatever the logits say, in one run of the encoder."""
    runs = []
    encoder = OneD._patches
    monkeypatch.setattr(OneD, "_patches", lambda self, video: runs.append(1) or encoder(self, video))
    monkeypatch.setattr(OneD, "decode", None)
    model = halting([[9.0] * QUERIES] * 2, MODEL())
    tokens = model.tokenize(video(), 3)
    assert tokens.only.seen.tolist() == [[True, True, True, False, False]] * 2 and len(runs) == 1
    # The most tokens of an error are another thing: of those the rule keeps none here.
    within = model.tokenize(video(), Request(0.1, 3))
    assert within.only.exists.tolist() == first(jnp.full(2, 3), (2, QUERIES)).tolist()
    assert not within.only.seen.any() and len(runs) == 2


def test_codes_of_a_clip_decode_to_its_reconstruction():
    """Users' case 1: the decoder sees what the quantizer says of the tokens that are kept, and nothing else."""
    model = MODEL()
    encoded = model.encode(video(), Request(0.1))
    latents, tokens, *_ = model.bottleneck(encoded)
    whole = jnp.clip(model.decode(latents, tokens.only.seen), -1, 1)
    np.testing.assert_allclose(model.detokenize(tokens), whole, atol=1e-5)
    assert ASKED not in encoded.extra


def test_tokens_are_not_mixed_on_their_way_to_the_quantizer_and_to_their_logit():
    """Users' case 1: code and logit i are functions of register i alone once the encoder is done."""
    model = MODEL()
    x = jax.random.normal(jax.random.key(1), (1, QUERIES, 12))

    def logits(x: jax.Array) -> jax.Array:
        return model.halting(jnp.tanh(model.halting_hidden(model.halting_norm(x))))[..., 0]

    for function in (lambda x: model.to_code(model.encoder_norm(x)).sum(-1), logits):
        jacobian = jax.jit(jax.jacrev(lambda x, f=function: f(x)[0]))(x)[:, 0]
        assert (np.abs(jacobian).max(-1) > 0).tolist() == np.eye(QUERIES, dtype=bool).tolist()


def test_tokens_beyond_the_budget_are_padding_to_the_quantizer():
    """Users' case 3: they are in no count, and dropped ones are."""
    model = MODEL()
    encoded = jax.jit(lambda video: model.read(video, bin_of(0.02), jnp.asarray(3), LONGEST))(video())

    def counts(model: nnx.Module, encoded: Encoded) -> jax.Array:
        return jax.jit(lambda encoded: model.bottleneck(encoded, train=True)[3]["counts"])(encoded)

    assert counts(model, encoded).sum() == 2 * 3
    everything = halting([[9.0] * QUERIES] * 2, model)
    assert counts(everything, everything.encode(video())).sum() == 2 * QUERIES
