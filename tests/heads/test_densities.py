"""Densities of continuous tokens in closed form: Divot, section 11.6-8, DiCoDe, section 10.6 and 10.10."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from videogen import heads
from videogen.heads import HeadSampler

WIDTH, CHANNELS = 2, 3
UNIT = math.log(math.expm1(1.0))
"""What softplus makes a variance of 1."""


def build(name: str, channels: int = CHANNELS, width: int = WIDTH, **settings) -> heads.Head:
    return heads.build({"name": name, **settings}, channels=channels, width=width, rngs=nnx.Rngs(0))


def told(head: heads.Head, *numbers: float) -> heads.Head:
    """The head whose parameters are these numbers whatever the features are."""
    head.parameters_of.kernel.set_value(jnp.zeros_like(head.parameters_of.kernel.get_value()))
    head.parameters_of.bias.set_value(jnp.array(numbers, jnp.float32))
    return head


def nll(head: heads.Head, x: jax.Array) -> jax.Array:
    """Mean over numbers of one place."""
    total, count, _ = head.loss(jnp.zeros((1, 1, WIDTH)), x[None, None], jnp.ones((1, 1), bool), None)
    return total / count


@pytest.mark.parametrize(("components", "channels"), [(1, 1), (2, 3), (16, 256), (5, 8)])
def test_the_output_has_a_weight_and_two_vectors_of_each_component(components, channels):
    head = nnx.eval_shape(lambda: build("gaussian_mixture", channels, components=components, layers=2))
    assert head.parameters_of.outputs == 2 * components * channels + components
    if components == 16:
        # Divot's output network: 4096 -> 8208 -> 8208.
        assert head.parameters_of.kernel.get_value().shape == (8208, 8208)
        assert head.parameters_of.first.kernel.get_value().shape == (WIDTH, 8208)


def test_one_component_of_variance_one_is_half_the_squared_error_and_a_constant():
    x, mean = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.1, 0.2, -0.3])
    expected = 0.5 * jnp.sum((x - mean) ** 2) / CHANNELS + 0.5 * math.log(2 * math.pi)
    one = told(build("gaussian_mixture", components=1), 0.7, *mean, *[UNIT] * 3)
    np.testing.assert_allclose(nll(one, x), expected, rtol=1e-6)
    np.testing.assert_allclose(nll(told(build("gaussian"), *mean, *[UNIT] * 3), x), expected, rtol=1e-6)
    np.testing.assert_allclose(nll(told(build("gaussian", variance="one"), *mean), x), expected, rtol=1e-6)
    raw = [0.3, -0.8, 1.1]
    alike = told(build("gaussian_mixture", components=3), 0.1, 1.5, -2.0, *[*mean] * 3, *raw * 3)
    single = told(build("gaussian_mixture", components=1), 0.0, *mean, *raw)
    np.testing.assert_allclose(nll(alike, x), nll(single, x), rtol=1e-6)


def test_the_gradient_of_a_mean_is_the_error_over_variance_and_channels():
    x, mean, raw = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.1, 0.2, -0.3]), jnp.array([0.3, -0.8, 1.1])
    head = build("gaussian")
    graph, state = nnx.split(told(head, *mean, *raw))
    gradient = jax.grad(lambda state: nll(nnx.merge(graph, state), x))(state)
    expected = (mean - x) / jax.nn.softplus(raw) / CHANNELS
    np.testing.assert_allclose(gradient["parameters_of"]["bias"].get_value()[:3], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "gaussian_mixture"])
def test_at_the_clamp_loss_and_gradient_are_finite(name):
    numbers = [0.0] * (name == "gaussian_mixture") + [0.0] * 3 + [-60.0] * 3
    settings = {"components": 1} if name == "gaussian_mixture" else {}
    graph, state = nnx.split(told(build(name, **settings), *numbers))
    value, gradient = jax.value_and_grad(lambda s: nll(nnx.merge(graph, s), jnp.array([3.0, -3.0, 0.0])))(state)
    expected = 0.5 * (18 / 1e-5 / 3 + math.log(1e-5) + math.log(2 * math.pi))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
    dense = nll(nnx.merge(graph, state), jnp.zeros(3))
    np.testing.assert_allclose(dense, 0.5 * math.log(2 * math.pi * 1e-5), rtol=1e-5)  # -4.8: it may be negative


@pytest.mark.parametrize("name", ["gaussian", "gaussian_mixture"])
def test_the_scale_multiplies_the_variance_behind_the_clamp(name):
    """A variance of 1e-4 at scale 0.01 is 1e-6; scaled before the clamp it would be 1e-5."""
    settings = {"components": 1} if name == "gaussian_mixture" else {}
    raw = math.log(math.expm1(1e-4))
    head = told(build(name, 1, **settings), *[0.0] * len(settings), 2.0, raw)
    draw = jax.jit(lambda keys, scale: head.draw(jnp.zeros((100, 1000, WIDTH)), None, keys, HeadSampler(scale))[0])
    keys = jax.random.split(jax.random.key(0), 100)
    for scale, deviation in ((1.0, 1e-2), (0.1, 1e-2 * 0.1**0.5), (0.01, 1e-3), (0.0, 0.0)):
        np.testing.assert_allclose(np.asarray(draw(keys, scale)).std(), deviation, rtol=0.01, atol=1e-7)


def test_draws_have_the_moments_of_the_mixture_and_without_variance_are_its_means():
    weights, means, variances = np.array([0.2, 0.5, 0.3]), np.array([-2.0, 0.5, 3.0]), np.array([0.3, 1.0, 0.1])
    raw = np.log(np.expm1(variances))
    head = told(build("gaussian_mixture", 1, components=3), *np.log(weights), *means, *raw)
    keys = jax.random.split(jax.random.key(1), 100)
    draw = jax.jit(lambda scale: head.draw(jnp.zeros((100, 1000, WIDTH)), None, keys, HeadSampler(scale))[0])
    drawn = np.asarray(draw(1.0))
    mean = weights @ means
    np.testing.assert_allclose(drawn.mean(), mean, atol=0.02)
    np.testing.assert_allclose(drawn.var(), weights @ (variances + means**2) - mean**2, rtol=0.02)
    still = np.asarray(draw(0.0)).ravel()
    values, counts = np.unique(np.round(still, 5), return_counts=True)
    np.testing.assert_allclose(values, means, atol=1e-5)
    np.testing.assert_allclose(counts / counts.sum(), weights, atol=0.01)


@pytest.mark.parametrize("name", ["gaussian", "gaussian_mixture"])
def test_guided_vectors_are_between_and_beyond_two_draws(name):
    settings = {"components": 2, "guidance": "vectors"} if name == "gaussian_mixture" else {}
    head = build(name, **settings)
    keys = jax.random.split(jax.random.key(2), 4)
    features = jax.random.normal(jax.random.key(3), (2, 4, 5, WIDTH))
    draw = functools.partial(head.draw, keys=keys)
    given, null = (draw(f, None, sampler=HeadSampler())[0] for f in features)
    for scale in (0.0, 1.0, 2.5):
        found = draw(*features, sampler=HeadSampler(guidance_scale=scale))[0]
        np.testing.assert_allclose(found, null + scale * (given - null), atol=1e-5)


@pytest.mark.slow
def test_of_two_points_the_mixture_is_likelier_than_a_gaussian_and_squared_errors_give_their_mean():
    """DiCoDe, 10.10: the next vector is (1, 1) or (-1, -1), of which nothing tells."""
    kinds = {"mixture": ("gaussian_mixture", {"components": 2}), "gaussian": ("gaussian", {})}
    kinds["mse"] = ("gaussian", {"variance": "one"})
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (256, 1, 1))
    data = jnp.asarray(np.repeat(signs, 2, axis=2) + 0.1 * rng.normal(size=(256, 1, 2)), jnp.float32)
    x, mask, found = jnp.ones((256, 1, WIDTH)), jnp.ones((256, 1), bool), {}
    for kind, (name, settings) in kinds.items():
        graph, state = nnx.split(build(name, 2, **settings))
        optimizer = optax.adam(3e-2)
        begun = optimizer.init(state)

        def loss(state, graph=graph):
            total, count, _ = nnx.merge(graph, state).loss(x, data, mask, None)
            return total / count

        @jax.jit
        def run(state, begun, loss=loss, optimizer=optimizer):
            def step(carry, _):
                updates, moments = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
                return (optax.apply_updates(carry[0], updates), moments), None

            return jax.lax.scan(step, (state, begun), None, length=800)[0][0]

        state = run(state, begun)
        found[kind] = float(loss(state)), nnx.merge(graph, state)
    assert found["mixture"][0] < 0.2 * found["gaussian"][0]
    # Log 2 for the choice, over two numbers, and Gaussians of deviation 0.1.
    np.testing.assert_allclose(
        found["mixture"][0], math.log(2) / 2 + 0.5 * math.log(2 * math.pi * 0.01) + 0.5, atol=0.1
    )
    mean = found["mse"][1].moments(x[:1])[0]
    np.testing.assert_allclose(mean, jnp.broadcast_to(data.mean(0), mean.shape), atol=0.02)
    keys = jax.random.split(jax.random.key(0), 256)
    drawn = np.asarray(found["mixture"][1].draw(x, None, keys, HeadSampler())[0])[:, 0]
    assert (np.abs(np.abs(drawn) - 1) < 0.5).all() and np.corrcoef(drawn.T)[0, 1] > 0.9
