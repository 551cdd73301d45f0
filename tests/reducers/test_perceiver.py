"""The resampler: any grid to a fixed number, no order of the tokens, padding that is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from videogen import reducers
from videogen.errors import UserError
from videogen.reducers import TokenSet

CONFIG = {"name": "perceiver", "width": 24, "depth": 1, "heads": 2, "head_width": 12, "qk_norm": True, "outputs": 5}
QUERIES = (2, 1, 3)


def make(**changes) -> reducers.Perceiver:
    settings = {**CONFIG, "queries": QUERIES, "rotary": "both", **changes}
    return with_random_parameters(nnx.eval_shape(lambda: reducers.build(settings, inputs=7, rngs=nnx.Rngs(0))))


def call(model: reducers.Perceiver):
    """The model, compiled."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x, mask, position: nnx.merge(graph, state)(x, mask, position))
    return lambda x, mask=None, position=None: run(state, x, mask, position)


def grid(*sides: int) -> TokenSet:
    x = np.random.default_rng(0).normal(size=(2, int(np.prod(sides)), 7)).astype(np.float32)
    position = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
    return TokenSet(jnp.asarray(x), position=jnp.asarray(position))


@pytest.mark.parametrize("sides", [(1, 1, 1), (3, 2, 5), (13, 3, 4)])
def test_any_grid_becomes_as_many_tokens(sides):
    tokens, report = jax.eval_shape(make().reduce, grid(*sides))
    assert tokens.x.shape == (2, 6, 5) and tokens.x.dtype == jnp.float32 and tokens.position.shape == (2, 6, 3)
    assert set(report) == {"tokens", "asked", "kept", "share", "lost"}


def test_queries_lie_in_the_middle_of_what_they_share_out():
    """Four places of time by two queries: 0.5 and 2.5; six columns by three: 0.5, 2.5 and 4.5."""
    position = make().places(grid(4, 1, 6).position, None)
    np.testing.assert_allclose(position[:, 0], [0.5] * 3 + [2.5] * 3)
    np.testing.assert_allclose(position[:3, 2], [0.5, 2.5, 4.5])


@pytest.mark.parametrize("rotary", ["none", "keys", "both"])
def test_the_order_of_the_tokens_does_not_matter(rotary):
    """TokensGen, property 1."""
    model, tokens = call(make(rotary=rotary)), grid(3, 2, 5)
    order = np.random.default_rng(1).permutation(30)
    found = model(tokens.x, position=tokens.position)
    again = model(tokens.x[:, order], position=tokens.position[order])
    np.testing.assert_allclose(again, found, atol=1e-5 * np.abs(found).max())
    wrong = model(tokens.x[:, order], position=tokens.position)
    assert (np.abs(wrong - found).max() > 0.01) == (rotary != "none")


def test_padding_is_not_there_and_moving_all_places_changes_nothing():
    whole, tokens = make(), grid(3, 2, 5)
    model = call(whole)
    found = model(tokens.x, position=tokens.position)
    longer = jnp.concatenate([tokens.x, jnp.full((2, 4, 7), 1e3)], axis=1)
    places = jnp.concatenate([tokens.position, jnp.full((4, 3), 99.0)])
    mask = jnp.broadcast_to(jnp.arange(34) < 30, (2, 34))
    np.testing.assert_allclose(model(longer, mask, places), found, atol=1e-5)
    np.testing.assert_allclose(model(tokens.x, position=tokens.position + 7), found, atol=1e-4)
    reduced, report = whole.reduce(TokenSet(longer, mask, places))
    np.testing.assert_allclose(reduced.x, found, atol=1e-5)
    assert (float(report["tokens"]), float(report["kept"])) == (30, 6)


def test_permuted_queries_give_permuted_tokens():
    """Divot, property 4, for the resampler: queries see one another and have no order of their own."""
    model, tokens = make(queries=(6,), rotary="keys"), grid(2, 2, 2)
    found, order = call(model)(tokens.x, position=tokens.position), np.array([3, 0, 5, 1, 2, 4])
    model.queries.set_value(model.queries.get_value()[order])
    np.testing.assert_allclose(call(model)(tokens.x, position=tokens.position), found[:, order], atol=1e-5)


def test_every_parameter_learns():
    model, tokens = make(), grid(2, 2, 2)
    graph, state = nnx.split(model)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 5)))
    loss = jax.jit(lambda s: jnp.sum(weight * nnx.merge(graph, s)(tokens.x, position=tokens.position)))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(loss)(state)))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"queries = \(time, height, width\)"):
        make(queries=(6,))
    with pytest.raises(UserError, match="needs the positions of its tokens"):
        make()(jnp.zeros((1, 2, 7)))
    with pytest.raises(UserError, match="unknown rotary of reducer 'perceiver' 'key'"):
        make(rotary="key")
