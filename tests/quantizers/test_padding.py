"""Every quantizer on a batch with padding: losses, gradients, statistics and updates are of what exists alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.quantizers.test_base import APART, VQ
from tests.quantizers.test_base import CONFIGS as ALL
from videogen.nn import MicroBatch
from videogen.quantizers import QUANTIZERS, build

AGAIN = ("vq-cosine", "vq-euclidean", "fsq-", "lfq-", "bernoulli-", "residual", "posterior")
"""Variants of others, as far as padding goes."""
CONFIGS = {name: config for name, config in ALL.items() if not name.startswith(AGAIN)} | {
    "vq-restarts": VQ | {"restart_threshold": 0.5},
    "residual-dropout": {"name": "residual", "base": VQ, "levels": 2, "dropout": 0.5},
}
DRAWING = ("stochastic", "gaussian", "residual-dropout", "bernoulli", "two-paths")
"""What they draw for an example with padding is not what they draw for the same tokens laid end to end."""
EXISTS = np.array([[1, 1, 1, 0, 1], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


def latents() -> np.ndarray:
    return np.asarray(1.3 * jax.random.normal(jax.random.key(1), (4, 5, 4)))


def padded() -> np.ndarray:
    """The same where they exist; far away elsewhere."""
    return np.where(EXISTS[..., None], latents(), 90.0 + latents())


@functools.cache
def compiled(name: str):
    """Gradient of the losses to the latents, and the losses, statistics, sums and state after an update."""
    graph, start = nnx.split(build(CONFIGS[name], rngs=nnx.Rngs(0)))

    @jax.jit
    def step(state, z, exists, keys):
        quantizer = nnx.merge(graph, state)

        def loss(z):
            quantized = quantizer(z, key=keys, train=keys is not None or name not in DRAWING, exists=exists)
            return sum(quantized.losses.values(), jnp.zeros(())), quantized

        gradient, quantized = jax.grad(loss, has_aux=True)(z)
        quantizer.update(quantized.update_sums, quantized.candidates, jax.random.key(2))
        # Of entropies some are differences of numbers of about 1.
        losses = jnp.stack([jnp.ones(()), *quantized.losses.values()])
        return gradient, (losses, quantized.statistics, quantized.update_sums, nnx.to_pure_dict(nnx.state(quantizer)))

    return functools.partial(step, start)


def run(name: str, z: np.ndarray, exists: np.ndarray | None, keys: jax.Array | None = None):
    return compiled(name)(jnp.asarray(z), exists, keys)


def assert_equal(found, expected, rtol=1e-6) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(float(np.max(np.abs(b), initial=0)), 1e-6))


def test_every_family_is_tested_here():
    assert {config["name"] for config in CONFIGS.values()} | APART == QUANTIZERS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_counts_nowhere(name):
    """Tokens that are missing anywhere, against those that are there alone."""
    gradient, found = run(name, padded(), EXISTS)
    expected, alone = run(name, latents()[EXISTS][None], None)
    assert_equal(found, alone)
    np.testing.assert_array_equal(gradient[~EXISTS], 0.0)
    assert_equal(gradient[EXISTS], expected[0], rtol=1e-5)


@pytest.mark.parametrize("name", DRAWING)
def test_padding_behind_an_example_changes_no_draw(name):
    keys = jax.random.split(jax.random.key(3), 4)
    exists = np.zeros((4, 5), bool)
    exists[:, :3] = True
    gradient, found = run(name, latents(), exists, keys)
    expected, alone = run(name, latents()[:, :3], None, keys)
    assert_equal(found, alone)
    assert_equal(gradient[:, :3], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["vq-gradient", "lfq", "gaussian"])
def test_parts_of_a_batch_with_unequal_padding_are_the_batch(name):
    """The number of tokens is that of the whole batch, and so is the mean distribution."""
    quantizer = build(CONFIGS[name] | ({"kl_weight": 1.0} if name == "gaussian" else {}), rngs=nnx.Rngs(0))

    @jax.jit
    def part(z, exists, number, known, count):
        micro = MicroBatch(number, count, known)

        def loss(z):
            quantized = quantizer(z, mean=micro.mean, exists=exists)
            return sum(quantized.losses.values()), micro.means

        return jax.value_and_grad(loss, has_aux=True)(z)

    (whole, _), expected = part(padded(), EXISTS, 0, None, 1)
    parts = [(padded()[i::2], EXISTS[i::2], i) for i in range(2)]
    means = [part(*these, None, 2)[0][1] for these in parts]
    known = jax.tree.map(lambda a, b: (a + b) / 2, *means)
    (values, gradients) = zip(*[((found := part(*these, known, 2))[0][0], found[1]) for these in parts], strict=True)
    np.testing.assert_allclose(sum(values) / 2, whole, rtol=1e-6)
    joined = np.stack(gradients, axis=1).reshape(padded().shape) / 2
    np.testing.assert_allclose(joined, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_a_batch_of_padding_only_moves_nothing():
    for name in ("vq-restarts", "per-dimension", "lfq"):
        gradient, (losses, statistics, sums, _) = run(name, padded(), np.zeros((4, 5), bool))
        assert not losses[1:].any() and not statistics["counts"].any()
        assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves((gradient, sums)))
