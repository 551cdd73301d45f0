"""The MAGVIT sheet's properties 3, 5, 9, 10 (COMMIT, its decoding) and MAGVIT-v2's factors and levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import codes_of, layout_of
from videogen.conditioning import Conditioning, Given
from videogen.errors import UserError
from videogen.generators import MaskedTransformer, MaskGITSampler
from videogen.generators.masked import LOSS_PLACES
from videogen.generators.maskgit import decode
from videogen.heads import Categorical
from videogen.heads.categorical import draw_levels
from videogen.shapes import TokenGrid
from videogen.tokens import Layout, Tokens

GRID = TokenGrid(3, 2, 2)
NOTHING = Conditioning()


TRANSFORMER = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 64}


def video_of(model) -> Layout:
    return layout_of(GRID, model.head.vocabulary)


def build(vocabulary=(16,), **settings) -> MaskedTransformer:
    settings = {"tasks": 10, "training_schedule": "cosine", **settings}
    return MaskedTransformer(vocabulary, GRID.shape, TRANSFORMER, **settings, rngs=nnx.Rngs(0))


def codes(batch: int, vocabulary=(16,), seed: int = 7) -> Tokens:
    levels = [
        jax.random.randint(jax.random.key(seed + i), (batch, *GRID.shape), 0, n) for i, n in enumerate(vocabulary)
    ]
    return codes_of(jnp.stack(levels, axis=-1), GRID, tuple(vocabulary))


def given(batch: int, vocabulary=(16,)) -> Given:
    """Codes unlike the targets, at the first two thirds of the places."""
    region = jnp.broadcast_to(jnp.arange(GRID.tokens) < 8, (batch, GRID.tokens))
    return Given(codes(batch, vocabulary, seed=99).only.values, region, jnp.arange(batch) % 10)


def logits_of(model: MaskedTransformer, ids, **call):
    return model.head.logits(model.features(ids, NOTHING, **call))[0]


def drawing(network, sampler):
    """How ``decode`` draws when a network gives the logits of the levels, side by side."""

    def draw(values, unknown, keys, how):
        levels = list(network(values, unknown))
        return draw_levels(levels, [None] * len(levels), keys, how)

    return draw


def keys(batch: int):
    return jax.random.split(jax.random.key(5), batch)


def seen_by_the_network(model, monkeypatch, key) -> tuple[np.ndarray, np.ndarray]:
    """The ids that the loss shows to the network, 16 where it shows none, and the corrupted places."""
    seen, original, embed = {}, MaskedTransformer.features, Categorical.embed

    def record(self, ids, conditioning, **call):
        seen.update(corrupted=call["corrupted"])
        return original(self, ids, conditioning, **call)

    def record_embedded(self, ids, hidden):
        seen.update(ids=jnp.where(hidden, 16, ids).reshape(len(ids), -1, 1))
        return embed(self, ids, hidden)

    monkeypatch.setattr(MaskedTransformer, "features", record)
    monkeypatch.setattr(Categorical, "embed", record_embedded)
    model.loss(codes(8), NOTHING, key, given=given(8))
    monkeypatch.undo()
    return np.asarray(seen["ids"])[..., 0], np.asarray(seen["corrupted"])


def test_every_place_shows_the_target_or_the_condition_or_mask(monkeypatch):
    ids, corrupted = seen_by_the_network(build(), monkeypatch, jax.random.key(0))
    target, shown = (np.asarray(x).reshape(8, -1) for x in (codes(8).only.values, given(8).indices))
    region = np.asarray(given(8).region)
    np.testing.assert_array_equal(ids, np.where(~corrupted, target, np.where(region, shown, 16)))
    for case in (~corrupted, corrupted & region, corrupted & ~region):
        assert case.any()


def test_the_segment_marks_condition_codes_and_nothing_else():
    """The vector matters exactly where a place is both corrupted and given."""
    model, ids = build(), codes(2).only.values.reshape(2, -1, 1)
    corrupted = jnp.broadcast_to(jnp.arange(GRID.tokens) % 2 == 0, (2, GRID.tokens))

    def logits(corrupted, value):
        model.segment.set_value(jnp.full(32, value))
        return logits_of(model, ids, given=given(2), corrupted=corrupted)

    assert np.abs(logits(corrupted, 0.0) - logits(corrupted, 1.0)).max() > 1e-3
    outside = corrupted & ~given(2).region
    np.testing.assert_array_equal(logits(outside, 0.0), logits(outside, 1.0))


def test_the_task_matters():
    model, ids = build(), codes(1).only.values.reshape(1, -1, 1)
    one, other = (Given(codes(1).only.values, jnp.zeros((1, 12), bool), jnp.array([task])) for task in (0, 6))
    none = jnp.zeros((1, 12), bool)
    one, other = (logits_of(model, ids, given=g, corrupted=none) for g in (one, other))
    assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize("loss_on", LOSS_PLACES)
def test_loss_is_where_the_setting_says(loss_on, monkeypatch):
    model, original = build(loss_on=loss_on), Categorical.logits
    _, corrupted = seen_by_the_network(model, monkeypatch, jax.random.key(0))

    def loss(noise):
        monkeypatch.setattr(Categorical, "logits", lambda self, *a: [original(self, *a)[0] + noise])
        return model.loss(codes(8), NOTHING, jax.random.key(0), given=given(8))[0]

    grads = np.abs(jax.grad(loss)(jnp.zeros((8, *GRID.shape, 16)))).sum(-1).reshape(8, -1)
    region = np.asarray(given(8).region)
    expected = {"masked": corrupted & ~region, "corrupted": corrupted, "all": np.ones_like(corrupted)}
    np.testing.assert_array_equal(grads > 0, expected[loss_on])


def test_an_unknown_place_of_the_loss_is_named():
    with pytest.raises(UserError, match="unknown loss_on 'al'.*all"):
        build(loss_on="al")


@pytest.mark.parametrize("steps", [1, 4, 12])
@pytest.mark.parametrize("vocabulary", [(16,), (5, 7)])
def test_an_oracle_decodes_to_the_target_in_any_number_of_steps(steps, vocabulary):
    target = codes(3, vocabulary).only.values.reshape(3, -1, len(vocabulary))
    sure, sampler = (
        [100 * jax.nn.one_hot(target[..., i], n) for i, n in enumerate(vocabulary)],
        MaskGITSampler(steps=steps),
    )
    start = given(3, vocabulary).indices.reshape(target.shape)
    drawn = decode(drawing(lambda *_: sure, sampler), start, jnp.ones((3, 12), bool), keys(3), sampler)
    np.testing.assert_array_equal(drawn, target)


def test_known_places_stay_and_unknown_ones_show_their_start():
    """What the denoiser sees, pass after pass: a known code never changes, an unknown place shows its start."""
    start, trace = given(2).indices.reshape(2, -1, 1), []

    def logits(ids, unknown):
        jax.debug.callback(lambda *x: trace.append([np.asarray(v) for v in x]), ids[..., 0], unknown, ordered=True)
        return [jax.random.normal(jax.random.key(0), (2, 12, 16))]

    sampler = MaskGITSampler(steps=6)
    final = decode(drawing(logits, sampler), start, jnp.ones((2, 12), bool), keys(2), sampler)
    final = np.asarray(final)[..., 0]
    jax.effects_barrier()
    assert len(trace) == 6
    counts = [unknown.sum(-1) for _, unknown in trace] + [np.zeros(2)]
    assert all((b < a).all() for a, b in zip(counts, counts[1:], strict=False))
    for ids, unknown in trace:
        np.testing.assert_array_equal(ids, np.where(unknown, np.asarray(start)[..., 0], final))


def test_without_confidence_noise_the_order_is_that_of_the_probabilities():
    """tau = 0: what is drawn decides what is kept, so equal draws give equal results."""
    model, sampler = build(), MaskGITSampler(steps=4, choice_temperature=0.0, temperature=1e-6, final_temperature=1e-6)
    one, other = (
        model.sample(
            video_of(model),
            NOTHING,
            jax.random.split(jax.random.key(s), 2),
            sampler,
            given=given(2),
        )
        for s in (0, 1)
    )
    np.testing.assert_array_equal(one.only.values, other.only.values)


def test_guided_samples_complete_given_pixels():
    model = build(context_width=8, classes=3)
    conditioning = Conditioning(label=jnp.array([0, 1]))
    drawn = [
        model.sample(
            video_of(model),
            conditioning,
            keys(2),
            MaskGITSampler(steps=3, guidance_scale=g),
            given=given(2),
        ).only.values
        for g in (1.0, 3000.0)
    ]
    assert all(((x >= 0) & (x < 16)).all() for x in drawn) and (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(("vocabulary", "factors", "expected"), [((2**18,), 2, (512, 512)), ((9, 4), 1, (9, 4))])
def test_levels_and_factors(vocabulary, factors, expected):
    model = build(vocabulary, head={"name": "categorical", "bias": True, "factors": factors})
    assert model.head.sizes == expected and model.head.logits_of.kernel.shape == (32, sum(expected))
    ids = model.values(codes(2, vocabulary).only.values)
    np.testing.assert_array_equal(ids, model.corrupt(ids, jnp.zeros((2, 12), bool), given(2, vocabulary)))
    loss, metrics = model.loss(codes(4, vocabulary), NOTHING, jax.random.key(0), given=given(4, vocabulary))
    # An untrained network is nearly uniform: the mean over levels of log(codes).
    assert loss == pytest.approx(np.mean(np.log(expected)), rel=0.1) and 0 <= metrics["accuracy"] <= 1
    drawn = model.sample(
        video_of(model), NOTHING, keys(2), MaskGITSampler(steps=3), given=given(2, vocabulary)
    ).only.values
    assert drawn.shape == (2, *GRID.shape, len(vocabulary))
    assert (drawn >= 0).all() and (drawn < np.array(vocabulary)).all()


def test_a_prefix_of_factored_codes_is_kept():
    model = build((64,), head={"name": "categorical", "factors": 2})
    prefix = codes_of(codes(2, (64,)).only.values[:, :1], GRID.with_time(1))
    drawn = model.sample(video_of(model), NOTHING, keys(2), MaskGITSampler(steps=3), prefix)
    np.testing.assert_array_equal(drawn.only.values[:, :1], prefix.only.values)


def test_gradient_reaches_every_parameter():
    graph, params = nnx.split(build())

    def loss(params):
        return nnx.merge(graph, params).loss(codes(16), NOTHING, jax.random.key(0), given=given(16))[0]

    grads = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    assert all(jnp.abs(g.get_value()).max() > 0 for _, g in grads)
