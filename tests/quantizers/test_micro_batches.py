"""Every quantizer on a batch in parts: codes, losses, gradients and updates are those of the batch as a whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.quantizers.test_base import GRIDS
from tests.quantizers.training import train
from videogen.nn import MicroBatch
from videogen.quantizers import QUANTIZERS, build

VQ = {"name": "vq", "size": 8, "width": 4, "cosine": False}
ALONE = {
    "vq": VQ | {"restart_threshold": 0.5},
    "vq by gradient": VQ | {"codebook_update": "gradient", "restart_threshold": 0.5},
    "simvq": {"name": "simvq", "size": 8, "width": 4},
    "ibq": {"name": "ibq", "size": 8, "width": 4},
    "stochastic": {"name": "stochastic", "size": 8, "width": 4, "temperature": 0.5},
    "residual": {"name": "residual", "base": VQ | {"restart_threshold": 0.5}, "levels": 2, "dropout": 0.5},
    "dual_codebook": {"name": "dual_codebook", "size": 8, "widths": (2, 2), "kmeans": 2, "restart_threshold": 0.5},
    "product": {"name": "product", "base": {"name": "simvq", "size": 8, "width": 2}, "groups": 2},
    "additive": {"name": "additive", "size": 8, "width": 4, "levels": 2, "beam": 2},
    "fsq": {"name": "fsq", "levels": [3, 4, 5, 3]},
    "gaussian": {"name": "gaussian", "width": 2, "kl_weight": 0.1},
    "bernoulli": {"name": "bernoulli", "bits": 4, "temperature": 0.5, "uncertainty_weight": 1.0},
    "per_dimension": {"name": "per_dimension", "width": 4, "posterior": False},
    "two_paths": {"name": "two_paths", "width": 2, "codes": VQ | {"width": 2, "restart_threshold": 0.5}},
}
TOGETHER = {
    "multi_scale": {"name": "multi_scale", "base": VQ | {"restart_threshold": 0.5}, "drop": 0.5}
    | {"scales": ((1, 1, 1), (1, 2, 1), (1, 5, 1))},
    "vq with entropy": VQ | {"entropy_weight": 0.1, "temperature": 1.0},
    "ibq with entropy": {"name": "ibq", "size": 8, "width": 4, "entropy_weight": 0.1},
    "lfq": {"name": "lfq", "bits": 4, "temperature": 1.0},
    "bsq": {"name": "bsq", "bits": 4},
    "residual lfq": {"name": "residual", "base": {"name": "lfq", "bits": 4}, "levels": 2, "scale": 0.5},
}
"""Those whose loss is no sum over examples: an entropy of mean probabilities, a mean over the examples that keep a
scale. They ask for means of the whole batch."""
COUNT = 4


def run(config: dict, count: int):
    """Gradients of the latents, results by part, and means asked for, of a batch in ``count`` parts."""
    quantizer, key = build(config, rngs=nnx.Rngs(0)), jax.random.key(3)
    sides = (1, 5, 1) if config["name"] in GRIDS else (5,)
    z = jax.random.normal(jax.random.key(1), (8, *sides, 4)) * 0.7
    weight = jnp.cos(jnp.arange(8 * 5 * quantizer.width)).reshape(8, *sides, quantizer.width)

    def loss(part, weight, micro):
        quantized = quantizer(part, key=micro.keys(key, len(part)), train=True, mean=micro.mean)
        return jnp.mean(quantized.latents * weight) + sum(quantized.losses.values()), (quantized, micro.means)

    def parts(known):
        @jax.jit
        def one(part, weight, number):
            micro = MicroBatch(number, count, known)
            (value, (quantized, means)), gradient = jax.value_and_grad(loss, has_aux=True)(part, weight, micro)
            return value, gradient, quantized, means

        pairs = zip(MicroBatch.split(z, count), MicroBatch.split(weight, count), strict=True)
        return [one(*pair, i) for i, pair in enumerate(pairs)]

    known = jax.tree.map(lambda *means: sum(means) / count, *[means for *_, means in parts(None)])
    values, gradients, results, _ = zip(*parts(known if count > 1 else None), strict=True)
    sums = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), [r.update_sums for r in results])
    before = jax.tree.map(jnp.array, nnx.state(quantizer))

    def join(*parts):
        return MicroBatch.join(jnp.stack(parts), 8 // count)

    quantizer.update(sums, jax.tree.map(join, *[r.candidates for r in results]), key)
    return {
        "value": sum(values) / count,
        "gradient": join(*gradients) / count,
        "ids": join(*[r.indices for r in results]),
        "codes": join(*[r.latents for r in results]),
        "state": nnx.to_pure_dict(nnx.state(quantizer)),
        "before": nnx.to_pure_dict(before),
    }, known


@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
def test_a_batch_in_parts_is_the_batch(name):
    config = (ALONE | TOGETHER)[name]
    (whole, _), (parts, known) = run(config, 1), run(config, COUNT)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(float(jnp.max(jnp.abs(b), initial=0)), 1e-3))
    # Only these need to know the other parts.
    assert bool(known) == (name in TOGETHER)


def test_every_quantizer_is_in_the_lists():
    # What leaves latents as they are has nothing that a batch could decide.
    assert {config["name"] for config in (ALONE | TOGETHER).values()} | {"unquantized"} == set(QUANTIZERS)


@pytest.mark.parametrize("name", ["vq", "residual", "per_dimension"])
def test_a_call_moves_nothing_and_an_update_once(name):
    quantizer = build(ALONE[name], rngs=nnx.Rngs(0))
    before = jax.tree.map(jnp.array, nnx.to_pure_dict(nnx.state(quantizer)))
    z = jax.random.normal(jax.random.key(1), (8, 5, 4))
    quantizer(z, key=jax.random.key(0), train=True)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(quantizer)), before)
    # Two parts count as one step: an average moves by one decay.
    train(quantizer, z[:2], z[2:], key=jax.random.key(0))
    if name == "vq":
        alone = build(VQ, rngs=nnx.Rngs(0))
        train(alone, z)
        assert float(alone.counts.get_value().sum()) == pytest.approx(0.01 * 40, rel=1e-5)
        alive = alone.counts.get_value() >= 0.5
        np.testing.assert_allclose(quantizer.counts.get_value()[~alive], 1.0)
