"""The hourglass: equal to its stack where nothing is reduced; what comes back, and how."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import reducers
from videogen.errors import UserError
from videogen.nn import Causal, read_transformer, rotary_angles, split_keys
from videogen.reducers import TokenSet, of_grid
from videogen.reducers.hourglass import Hourglass, attended_pairs, interpolated
from videogen.reducers.memory import Recovery
from videogen.reducers.tokens import first_originals, mean_of_originals

WIDTH, LAYERS, TIME = 8, 4, 6
CONFIG = {"width": WIDTH, "layers": LAYERS, "heads": 2, "mlp_width": 12}
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, TIME, WIDTH)), jnp.float32)
ROTARY = rotary_angles([TIME], WIDTH // 2)


def made(reducer, **settings):
    section = {"start": 1, "stop": 3, "reducer": reducer, **settings}
    return reducers.build_hourglass(section, CONFIG, TIME, rngs=nnx.Rngs(0))


def run(model, x, **call):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x, call: nnx.merge(graph, state)(x, **call))(state, x, call)


def layers(model, x, some=slice(None), **call):
    """Layers of its stack by themselves."""
    graph, state = nnx.split(model.stack)
    return jax.jit(lambda state, x, call: nnx.merge(graph, state)(x, layers=some, **call))(state, x, call)


def test_with_all_tokens_it_is_the_stack():
    for recover in ("unmerge", "interpolate"):
        model = made({"name": "frames", "frames": TIME}, recover=recover)
        found, said = run(model, X, rotary=ROTARY)
        np.testing.assert_allclose(found, layers(model, X, rotary=ROTARY), atol=1e-5)
        assert float(said["kept"]) == TIME
    # Dropout draws what it draws without an hourglass.
    stack = read_transformer({**CONFIG, "dropout": 0.4}).stack(rngs=nnx.Rngs(0))
    model = Hourglass(stack, 1, 3, reducers.build({"name": "frames", "frames": TIME}), rngs=nnx.Rngs(1))
    key = jax.random.key(5)
    np.testing.assert_allclose(run(model, X, key=key)[0], layers(model, X, keys=split_keys(key, LAYERS)), atol=1e-5)


def test_the_middle_sees_what_is_kept_where_it_stood():
    model = made({"name": "frames", "frames": 3})
    found, _ = run(model, X, rotary=ROTARY)
    kept = np.array([0, 3, 5])  # 2.5 is rounded up
    outer = layers(model, X, slice(0, 1), rotary=ROTARY)
    inner = layers(model, outer[:, kept], slice(1, 3), rotary=ROTARY[kept])
    expected = layers(model, outer.at[:, kept].set(inner), slice(3, 4), rotary=ROTARY)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_mask_of_the_past_holds_in_the_middle():
    model = made({"name": "frames", "frames": 3})
    graph, state = nnx.split(model)
    past = jax.jit(lambda x: nnx.merge(graph, state)(x, rotary=ROTARY, mask=Causal())[0])
    found, other = past(X), past(X.at[:, 4:].set(1.0))
    np.testing.assert_allclose(other[:, :4], found[:, :4], atol=1e-5)
    assert float(jnp.abs(other - found)[:, 4:].max()) > 1e-2


def test_positions_of_the_middle_and_queries_that_bring_all_back():
    model = made({"name": "density_peaks", "budget": 3, "neighbours": 2}, recover="queries", positions=3)
    found, said = run(model, X)
    assert found.shape == X.shape and float(said["asked"]) == 3
    outer = layers(model, X, slice(0, 1))
    kept = jax.jit(lambda x: model.reducer.reduce(of_grid(x[:, :, None, None]))[0])(outer)
    middle = layers(model, kept.x + model.positions.get_value(), slice(1, 3))
    queries = jnp.broadcast_to(model.recovery.queries.get_value(), X.shape)
    back = queries + model.recovery.attention(queries, model.recovery.norm(middle))
    np.testing.assert_allclose(found, layers(model, back, slice(3, 4)), atol=1e-5)
    apart = np.abs(found[:, :, None] - found[:, None]).max(-1) + np.eye(TIME)
    assert apart.min() > 1e-4


def test_gradients_reach_dropped_tokens_through_the_queries_of_attention_only():
    """A token that was dropped counts for the result by its own place (un-merge), not at all behind learned queries."""
    for recover, reached in (("unmerge", True), ("queries", False)):
        section = {"start": 0, "stop": LAYERS, "reducer": {"name": "frames", "frames": 3}, "recover": recover}
        model = reducers.build_hourglass(section, CONFIG, TIME, rngs=nnx.Rngs(0))
        gradient = jax.jit(jax.grad(lambda x, model=model: jnp.sum(model(x)[0] ** 2)))(X)
        assert bool(np.abs(gradient[:, 1]).max() > 0) == reached
        assert np.abs(gradient[:, 0]).max() > 0


def test_merged_tokens_attend_as_many_and_come_back_to_all():
    twice = jnp.repeat(X[:, :3], 2, axis=1)
    model = made({"name": "bipartite", "removed": 3}, start=0, stop=LAYERS)
    found, said = run(model, twice)
    # Duplicates are merged and stand for two each: as if nothing had been reduced.
    np.testing.assert_allclose(found, layers(model, twice), atol=1e-5)
    assert float(said["kept"]) == 3 and float(said["lost"]) == pytest.approx(0, abs=1e-5)


def test_tags_and_padding_follow_the_tokens():
    model = made({"name": "frames", "frames": 3}, start=0, stop=LAYERS)
    there = jnp.array([[True] * 6, [True] * 4 + [False] * 2])
    found, _ = run(model, X, exists=there)
    wild, _ = run(model, jnp.where(there[..., None], X, 99.0), exists=there)
    np.testing.assert_allclose(wild[0], found[0], atol=1e-5)
    np.testing.assert_allclose(wild[1, :4], found[1, :4], atol=1e-5)
    pooled = reducers.build({"name": "windows", "window": (2, 1, 1)})
    merged = jax.jit(lambda x: pooled.reduce(of_grid(x[:, :, None, None]))[0])(X)
    assert first_originals(merged).tolist() == [[0, 2, 4]] * 2
    np.testing.assert_allclose(mean_of_originals(X, merged), X.reshape(2, 3, 2, 8).mean(2), atol=1e-6)
    own = model._inner(merged, ROTARY, {"sample": np.array([0, 0, 1, 1, 2, 2])})
    assert own["tags"]["sample"].tolist() == [[0, 1, 2]] * 2 and own["tags"]["index"].tolist() == [[0, 2, 4]] * 2
    np.testing.assert_allclose(own["rotary"][0], ROTARY.reshape(3, 2, -1).mean(1), atol=1e-6)


def test_frames_between_kept_ones_lie_on_a_line():
    line = (np.arange(TIME)[:, None] * np.array([1.0, -2.0]) + 3.0)[None, :, None, None]
    clip = of_grid(jnp.asarray(np.repeat(line, 2, axis=3), jnp.float32))

    def back(config):
        reducer = reducers.build(config)
        return jax.jit(lambda clip: interpolated(clip, reducer.reduce(clip)[0]))(clip)

    np.testing.assert_allclose(back({"name": "frames", "frames": 3}), clip.x, atol=1e-5)
    middle = np.broadcast_to(clip.x[:, 4:5], clip.x.shape)
    np.testing.assert_allclose(back({"name": "frames", "frames": 1}), middle, atol=1e-6)
    with pytest.raises(UserError, match="keeps whole frames"):
        back({"name": "tokens", "budget": 3})


def test_recovery_copies_where_attention_is_sharp_and_queries_are_small():
    """Tokens that are rows of a Hadamard matrix: as many queries as tokens, of the same directions."""
    rows = np.array([[1.0]])
    for _ in range(3):
        rows = np.block([[rows, rows], [rows, -rows]])
    kept = jnp.asarray(rows[None, 1:], jnp.float32)
    model = Recovery(8, 7, 1, rngs=nnx.Rngs(0))
    model.queries.set_value(0.01 * kept[0])
    attention = model.attention
    attention.query.kernel.set_value(jnp.eye(8))
    attention.key_value.kernel.set_value(jnp.concatenate([jnp.eye(8)] * 2, axis=1))
    attention.out.kernel.set_value(jnp.eye(8))
    attention.query_norm.scale.set_value(jnp.full(8, 100.0))
    np.testing.assert_allclose(model.restore(TokenSet(kept)) - model.queries.get_value(), kept, atol=1e-4)


def test_pairs_that_attention_compares():
    assert attended_pairs(243, 81, 8, 3, 8, queries=True) == 3 * 243**2 + 5 * 81**2 + 243 * 81
    assert attended_pairs(100, 100, 4, 1, 3, queries=False) == 4 * 100**2


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"a run of the layers 0 … 3, got 3:9"):
        made({"name": "frames", "frames": 2}, start=3, stop=9)
    with pytest.raises(UserError, match="recover=queries needs learned queries"):
        stack = read_transformer(CONFIG).stack(rngs=nnx.Rngs(0))
        Hourglass(stack, 1, 2, reducers.build({"name": "frames", "frames": 2}), recover="queries", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="unknown recover of section 'hourglass' 'unmrge'"):
        made({"name": "frames", "frames": 2}, recover="unmrge")
