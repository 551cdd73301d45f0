"""Scores by name, and the choice that is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import reducers
from videogen.errors import UserError
from videogen.reducers import TokenSet, of_grid
from videogen.reducers.learned_selection import LearnedSelection, followed
from videogen.reducers.scorers import SCORERS

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 3, 2, 2, 4)), jnp.float32)


def test_scores_are_what_their_names_say():
    clip, flat = of_grid(X), np.asarray(X).reshape(2, 12, 4)
    lengths = np.linalg.norm(flat, axis=-1)
    np.testing.assert_allclose(SCORERS["norm"].score(clip, {}), lengths, rtol=1e-6)
    question = RNG.normal(size=(2, 4))
    cosine = np.einsum("bnd,bd->bn", flat, question) / lengths / np.linalg.norm(question, axis=-1)[:, None]
    given = {"joint": clip.x, "question": jnp.asarray(question), "indicator": jnp.asarray(question)}
    for name in ("question", "indicator"):
        np.testing.assert_allclose(SCORERS[name].score(clip, given), cosine, atol=1e-6)
    still = of_grid(jnp.repeat(X[:, :1], 3, axis=1))
    np.testing.assert_allclose(SCORERS["change"].score(still, {}), [[2.0] * 4 + [0.0] * 8] * 2, atol=1e-6)
    weights = jnp.array([[0.1, 0.9, 0.4], [1.0, 0.0, 0.5]])
    np.testing.assert_array_equal(SCORERS["frames"].score(clip, {"weights": weights}), np.repeat(weights, 4, axis=1))
    with pytest.raises(UserError, match="whole grid"):
        SCORERS["change"].score(TokenSet(clip.x), {})


def test_the_highest_scores_stay_whatever_is_added_to_all():
    clip = of_grid(X)
    score = jnp.asarray(RNG.permutation(24).reshape(2, 12), jnp.float32)
    for name, key in (("score", "score"), ("attention", "mass"), ("pixel_change", "difference")):
        chain = reducers.build({"name": "tokens", "budget": 5, "rule": name})
        found, _ = chain.reduce(clip, {key: score})
        assert [sorted(np.argsort(-row)[:5]) for row in np.asarray(score)] == [
            np.flatnonzero(row >= 0).tolist() for row in np.asarray(found.source)
        ]
        np.testing.assert_array_equal(chain.reduce(clip, {key: score + 100})[0].source, found.source)
    with pytest.raises(UserError, match="TokenSelection needs 'mass'"):
        reducers.build({"name": "tokens", "budget": 5, "rule": "attention"}).reduce(clip)


def reduced(model, clip, given):
    graph, state = nnx.split(model)
    return jax.jit(lambda clip, given: nnx.merge(graph, state).reduce(clip, given))(clip, given)


def selector(budget=4):
    return LearnedSelection(4, budget, hidden=6, rngs=nnx.Rngs(0))


def test_the_highest_logits_stay_in_order_and_as_they_are():
    clip, model = of_grid(X), selector()
    teacher = jnp.asarray(RNG.normal(size=(2, 12, 4)), jnp.float32)
    found, said = reduced(model, clip, {"teacher": teacher})
    best = np.sort(np.argsort(-np.asarray(model.scores(teacher)), axis=1)[:, :4], axis=1)
    np.testing.assert_array_equal(found.x, np.take_along_axis(np.asarray(clip.x), best[..., None], 1))
    assert float(said["asked"]) == 4
    # With noise the choice differs, and more probable tokens are chosen more often.
    keys = jax.random.split(jax.random.key(0), 400)
    one = TokenSet(jnp.broadcast_to(clip.x[:1], (400, 12, 4)))
    drawn, _ = reduced(model, one, {"teacher": jnp.broadcast_to(teacher[:1], (400, 12, 4)), "key": keys})
    often = (np.asarray(drawn.source) >= 0).mean(0)
    assert often.min() > 0 and np.corrcoef(often, np.asarray(model.scores(teacher)[0]))[0, 1] > 0.9


def test_the_scorer_learns_straight_through_and_the_teacher_does_not():
    clip, model = of_grid(X), selector()
    teacher = jnp.asarray(RNG.normal(size=(2, 12, 4)), jnp.float32)
    graph, state = nnx.split(model)

    def loss(state, teacher):
        return nnx.merge(graph, state).reduce(clip, {"teacher": teacher})[0].x.sum()

    ours, theirs = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, teacher)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(ours)) and not theirs.any()
    # The gradient is that of the chance to stay: here of the last bias, by hand.
    found, _ = reduced(model, clip, {"teacher": teacher})
    chance = jax.nn.sigmoid(model.scores(teacher))
    stays = np.asarray(found.source) >= 0
    expected = (np.asarray(clip.x).sum(-1) * np.asarray(chance * (1 - chance)))[stays].sum()
    assert float(ours["outer"]["bias"].get_value()[0]) == pytest.approx(expected, rel=1e-4)


def test_a_momentum_copy_stays_or_follows():
    teacher, student = {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, -2.0])}
    assert followed(teacher, student, 1.0)["a"].tolist() == [1.0, 2.0]
    assert followed(teacher, student, 0.0)["a"].tolist() == [3.0, -2.0]
    np.testing.assert_allclose(followed(teacher, student, 0.75)["a"], [1.5, 1.0])
