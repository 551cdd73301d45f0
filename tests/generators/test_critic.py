"""The token critic: off it changes nothing, on it leaves the generator alone, learns, and decides what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.generators.clips import codes_of, layout_of
from videogen.conditioning import Conditioning, EncodedText
from videogen.errors import UserError
from videogen.generators import MaskedTransformer, MaskGITSampler
from videogen.generators.critic import TokenCritic
from videogen.generators.maskgit import decode
from videogen.heads.categorical import draw_levels
from videogen.nn import read_transformer
from videogen.shapes import TokenGrid
from videogen.tokens import Tokens

GRID = TokenGrid(2, 2, 2)
VIDEO = layout_of(GRID, (6,))
CRITIC = {"layers": 1, "weight": 0.5}
TRANSFORMER = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
SAMPLER = MaskGITSampler(steps=4, choice_temperature=0.0)


def build(critic=None, vocabulary=(6,), **settings) -> MaskedTransformer:
    settings = {"context_width": 8, **settings}
    return MaskedTransformer(vocabulary, GRID.shape, TRANSFORMER, critic=critic, **settings, rngs=nnx.Rngs(0))


def text(batch: int) -> Conditioning:
    return Conditioning(EncodedText(jax.random.normal(jax.random.key(0), (batch, 3, 8)), jnp.ones((batch, 3), bool)))


def codes(batch: int, vocabulary=(6,), mask=None) -> Tokens:
    levels = [jax.random.randint(jax.random.key(i), (batch, *GRID.shape), 0, n) for i, n in enumerate(vocabulary)]
    return codes_of(jnp.stack(levels, -1), GRID, tuple(vocabulary), exists=mask)


def keys(batch: int):
    return jax.random.split(jax.random.key(5), batch)


@pytest.mark.slow
@pytest.mark.parametrize("off", [None, {"layers": 0, "weight": 1.0}])
def test_without_a_critic_everything_is_as_beside_one(off):
    """Parameters, loss, metrics to the bit: a critic is nothing but an addition."""
    plain, judged = build(off), build(CRITIC)
    assert plain.critic is None
    without, beside = (nnx.to_pure_dict(nnx.state(m)) for m in (plain, judged))
    del beside["critic"]
    jax.tree.map(np.testing.assert_array_equal, without, beside)
    loss, metrics = plain.loss(codes(4), text(4), jax.random.key(1))
    total, more = judged.loss(codes(4), text(4), jax.random.key(1))
    assert loss == metrics["loss"] and {"loss", "accuracy", "mask_ratio"} == metrics.keys()
    assert all(metrics[name] == more[name] for name in metrics)
    assert total == loss + CRITIC["weight"] * more["critic_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [(6,), (4, 5)])
def test_generator_and_critic_learn_from_their_own_losses_alone(vocabulary):
    model = build(CRITIC, vocabulary, classes=3)
    graph, params = nnx.split(model, nnx.Param)

    def losses(params, features) -> tuple:
        conditioning = Conditioning(EncodedText(features, text(8).text.mask), jnp.arange(8) % 3)
        loss, terms = nnx.merge(graph, params).loss(codes(8, vocabulary), conditioning, jax.random.key(0), train=False)
        return loss - terms["loss"], terms["loss"]

    def gradients(which: int) -> tuple[dict, jax.Array]:
        found = jax.jit(jax.grad(lambda *a: losses(*a)[which], argnums=(0, 1)))(params, text(8).text.features)
        norms = jax.tree.map(lambda g: float(jnp.abs(g).max()), nnx.to_pure_dict(found[0]))
        return norms, jnp.abs(found[1]).max()

    by_critic, to_text = gradients(0)
    own = by_critic.pop("critic")
    # Nothing through the draws, and nothing to a text encoder that is trained along.
    assert to_text == 0 and not any(jax.tree.leaves(by_critic))
    silent = [path for path, norm in jax.tree_util.tree_leaves_with_path(own) if not norm]
    assert [path[-1].key for path in silent] == ["null_text"]
    by_generator, to_text = gradients(1)
    assert to_text > 0 and not any(jax.tree.leaves(by_generator["critic"]))


def test_places_that_do_not_exist_neither_count_nor_are_seen():
    model, exists = build(CRITIC), jnp.arange(8)[None] < jnp.array([[4], [4]])
    ids = codes(2).only.values.reshape(2, 8, 1)
    other = ids.at[:, 4:].set(5 - ids[:, 4:])
    judge = jax.jit(lambda ids, exists: model.critic(ids, text(2), exists))
    scores = [judge(x, exists)[:, :4] for x in (ids, other)]
    np.testing.assert_array_equal(*scores)
    np.testing.assert_allclose(judge(ids[:, :4], None), scores[0], atol=1e-5)
    drawn = jnp.zeros((2, 8), bool)
    loss = jax.jit(lambda ids: model.critic.loss(ids, ids, drawn, text(2), exists)[0])
    assert loss(ids) == loss(other)


def test_it_learns_to_tell_drawn_codes_from_true_ones():
    """True clips show one code everywhere, draws are uniform: only a look at all places tells them apart."""
    parts = dict(head=build().head, transformer=read_transformer(TRANSFORMER), context_width=None, classes=None)
    critic = TokenCritic(1, grid=GRID.shape, **parts, remat="none", dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, params = nnx.split(critic)
    optimizer = optax.adam(1e-2)

    def judge(params, key) -> tuple:
        one, two, three = jax.random.split(key, 3)
        ids = jnp.broadcast_to(jax.random.randint(one, (64, 1, 1), 0, 6), (64, 8, 1))
        drawn = jax.random.bernoulli(two, 0.3, (64, 8))
        draws = jax.random.randint(three, ids.shape, 0, 6)
        return nnx.merge(graph, params).loss(ids, draws, drawn, Conditioning())

    @jax.jit
    def step(carry, key):
        gradient = jax.grad(judge, has_aux=True)(carry[0], key)[0]
        updates, state = optimizer.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(0), 300))
    # A sixth of the draws are the true code, so 0.95 is the most; 0.7 takes no look at all.
    assert jax.jit(judge)(params, jax.random.key(1))[1]["critic_accuracy"] > 0.85


def drawing(score, unknown) -> tuple[np.ndarray, list[np.ndarray]]:
    """Ids drawn with a critic's scores, and the places that were unknown in each pass."""
    seen = []

    def draw(ids, unknown, keys, how):
        seen.append(np.asarray(unknown))
        return draw_levels([jnp.zeros((*ids.shape[:2], 6))], [None], keys, how)

    start = jnp.where(unknown[..., None], 6, 1)
    with jax.disable_jit():  # the loop is one in Python, whose passes can be looked at
        drawn = decode(draw, start, unknown, keys(1), SAMPLER, score)
    return np.asarray(drawn), seen


def test_places_are_kept_in_the_order_of_the_scores():
    order = np.array([3, 7, 0, 5, 1, 6, 2, 4])
    rank = jnp.asarray(np.argsort(order), jnp.float32)  # the first of ``order`` is the least true
    drawn, seen = drawing(lambda ids: rank[None], jnp.ones((1, 8), bool))
    assert (drawn < 6).all() and seen[0].all() and [int(u.sum()) for u in seen] == [8, 7, 5, 3]
    for unknown in seen[1:]:
        assert set(np.flatnonzero(unknown[0])) == set(order[: unknown.sum()])


def test_a_kept_code_is_drawn_again_when_it_no_longer_looks_true_but_a_given_one_never_is():
    given = jnp.arange(8)[None] < 2

    def score(ids):
        # Given places look least true of all; of the others, now the first and now the last half of them.
        half = jnp.where(jnp.sum(ids) % 2 == 0, jnp.arange(8.0), -jnp.arange(8.0))
        return jnp.where(given, -99.0, half)

    for seed in range(3):
        drawn, seen = drawing(lambda ids, seed=seed: score(ids + seed), ~given)
        assert (drawn[given] == 1).all() and (drawn[~given] < 6).all()
        assert not any((u & np.asarray(given)).any() for u in seen)
        counts = [int(u.sum()) for u in seen]
        assert counts == sorted(counts, reverse=True) and len(set(counts)) == 4
        if any((later & ~earlier).any() for earlier, later in zip(seen[:-1], seen[1:], strict=True)):
            return
    pytest.fail("no place was drawn again")


def test_sampling_asks_the_critic(monkeypatch):
    model = build(CRITIC)
    plain = build()
    unasked = plain.sample(VIDEO, text(3), keys(3), SAMPLER)
    drawn = jax.jit(lambda: model.sample(VIDEO, text(3), keys(3), SAMPLER))()
    assert drawn.only.values.shape == unasked.only.values.shape and (drawn.only.values < 6).all()
    prefix = codes(3).only.values[:, :1]
    kept = model.sample(VIDEO, text(3), keys(3), SAMPLER, codes_of(prefix, GRID.with_time(1)))
    np.testing.assert_array_equal(kept.only.values[:, :1], prefix)
    # A critic of which every place is as true leaves the choice to the places alone.
    monkeypatch.setattr(TokenCritic, "__call__", lambda self, ids, *_: jnp.zeros(ids.shape[:2]))
    flat = model.sample(VIDEO, text(3), keys(3), SAMPLER)
    assert (flat.only.values != unasked.only.values).any()


@pytest.mark.parametrize(
    ("critic", "message"),
    [({"layers": 1, "weight": 0.0}, "positive"), ({"layers": 1, "wieght": 1.0}, "'weight'")],
)
def test_settings_that_cannot_be_are_refused(critic, message):
    with pytest.raises(UserError, match=message):
        build(critic)
