"""The state space: recurrence written out, convolution, parts of a sequence, padding; the stack that halves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn.state_space import HalvingLayer, HalvingStack, StateSpace, _steps, discretised, halved

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 12, 4)), jnp.float32)


def space(states=3):
    return StateSpace(4, states, rngs=nnx.Rngs(0))


def call(model, *arguments, of=lambda model: model):
    """A module, or one of its methods, as one compiled program."""
    graph, state = nnx.split(model)
    return jax.jit(lambda state, *arguments: of(nnx.merge(graph, state))(*arguments))(state, *arguments)


def written_out(model, x):
    """One step after another in double precision."""
    step, decay, turn, read, skip = (
        np.asarray(v.get_value(), np.float64) for v in (model.step, model.decay, model.turn, model.read, model.skip)
    )
    rate, reader = -np.exp(decay) + 1j * turn, read[0] + 1j * read[1]
    carried = np.exp(np.exp(step)[:, None] * rate)
    inflow, state, out = (carried - 1) / rate, np.zeros((len(x), *rate.shape), complex), []
    for u in np.moveaxis(np.asarray(x, np.float64), 1, 0):
        state = carried * state + inflow * u[..., None]
        out.append(2 * (state * reader).sum(-1).real + skip * u)
    return np.stack(out, 1)


def close(actual, expected, share=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


def test_the_scan_is_the_recurrence_and_the_convolution():
    model = space()
    found = call(model, X)
    close(found, written_out(model, X))
    close(model.convolved(X), found, 1e-4)
    long = jnp.asarray(RNG.normal(size=(1, 150, 4)), jnp.float32)
    close(model.convolved(long), call(model, long), 1e-4)


def test_a_step_of_length_zero_carries_all_and_lets_nothing_in():
    rate = jnp.asarray(-np.exp(RNG.normal(size=(4, 3))) + 1j * RNG.normal(size=(4, 3)), jnp.complex64)
    carried, inflow = discretised(jnp.zeros((4, 1)), rate)
    assert (carried == 1).all() and (inflow == 0).all()


def test_steps_begin_between_a_thousandth_and_a_tenth():
    steps = np.exp(np.asarray(_steps(jax.random.key(0), (4000,), jnp.float32)))
    assert 1e-3 <= steps.min() < 1.02e-3 and 0.098 < steps.max() <= 0.1
    # Evenly by their logarithms: half of them are below the geometric mean.
    assert np.mean(steps < 1e-2) == pytest.approx(0.5, abs=0.03)


def test_it_is_causal_and_linear():
    model = space()
    other = X.at[:, 7:].set(9.0)
    np.testing.assert_allclose(call(model, other)[:, :7], call(model, X)[:, :7], atol=1e-5)
    y = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)
    close(call(model, 2 * X - 3 * y), 2 * call(model, X) - 3 * call(model, y))


def test_parts_go_on_from_the_state_and_padding_leaves_it():
    model = space()
    going = dict(of=lambda model: model.go_on)
    first, state = call(model, X[:, :5], model.begin(2), **going)
    second, last = call(model, X[:, 5:], state, **going)
    close(jnp.concatenate([first, second], axis=1), call(model, X))
    mask = jnp.array([[True] * 12 + [False] * 3, [True] * 4 + [False] * 3 + [True] * 8])
    wild = jnp.concatenate([X, jnp.full((2, 3, 4), 99.0)], axis=1)
    padded, end = call(model, wild, model.begin(2), mask, **going)
    close(padded[0, :12], call(model, X)[0])
    close(end[0], last[0])
    # Padding in the middle is as if it were not there.
    kept = jnp.concatenate([wild[1:, :4], wild[1:, 7:]], axis=1)
    close(jnp.concatenate([padded[1:, :4], padded[1:, 7:]], axis=1), call(model, kept))


def test_every_parameter_learns():
    graph, state = nnx.split(space())
    weight = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(weight * nnx.merge(graph, s)(X))))(state)
    assert all(np.any(leaf) and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_neighbours_are_averaged():
    x, mask = halved(X[:, :5], jnp.array([[True] * 5, [True, True, True, False, False]]))
    np.testing.assert_allclose(x[0, :2], np.asarray(X[0, :4]).reshape(2, 2, 4).mean(1), rtol=1e-6)
    np.testing.assert_allclose(x[0, 2], X[0, 4])
    np.testing.assert_allclose(x[1, 1], X[1, 2])
    assert mask.tolist() == [[True] * 3, [True, True, False]]


def test_the_stack_halves_length_and_width():
    stack = HalvingStack(8, layers=3, states=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(2, 20, 8)), jnp.float32)
    y, mask = call(stack, x)
    assert y.shape == (2, 3, 1) and stack.outputs == 1 and mask.all()
    layer = HalvingLayer(8, 2, 0.0, dtype=jnp.float32, rngs=nnx.Rngs(1))
    found, _ = call(layer, x)
    inner = x + call(layer.space, layer.norm(x))
    expected = jax.nn.gelu(layer.half(inner.reshape(2, 10, 2, 8).mean(2)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Padding at the end changes nothing.
    longer = jnp.concatenate([x, jnp.full((2, 4, 8), 9.0)], axis=1)
    padded, there = call(stack, longer, jnp.broadcast_to(jnp.arange(24) < 20, (2, 24)))
    np.testing.assert_allclose(padded[:, :3], y, atol=1e-5)
    with pytest.raises(UserError, match="divides by 8"):
        HalvingStack(12, layers=3, rngs=nnx.Rngs(0))
