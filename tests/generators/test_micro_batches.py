"""The loss of every generator on a batch in parts: losses, metrics and gradients are those of the batch as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import codes_of, latents_of
from videogen import diffusion
from videogen.conditioning import Conditioning, EncodedText
from videogen.diffusion import Euler, RectifiedFlow
from videogen.generators import FlowTransformer, MaskedTransformer, NextBlockTransformer
from videogen.nn import MicroBatch
from videogen.shapes import TokenGrid

GRID, BATCH, COUNT = TokenGrid(3, 2, 2), 8, 4
RANDOM = {"context_width": 8, "condition_drop": 0.5}
TRANSFORMER = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32, "dropout": 0.3}
BITS = {"noise": {"process": {"name": "bernoulli"}, "prediction": "flip"}, "text": "deep", "patch": (1, 1, 1)}
SMOOTHED = {"name": "categorical", "bias": True, "label_smoothing": 0.1}
CODES = jax.random.randint(jax.random.key(7), (BATCH, *GRID.shape, 1), 0, 6)
LATENTS = jax.random.normal(jax.random.key(8), (BATCH, *GRID.shape, 3))
TEXT = EncodedText(jax.random.normal(jax.random.key(0), (BATCH, 3, 8)), jnp.ones((BATCH, 3), bool))
SHORT = jnp.arange(GRID.tokens) < 4 * (1 + jnp.arange(BATCH)[:, None] % 3)
"""Clips of one to three latent frames."""


def masked(**settings):
    return MaskedTransformer((6,), GRID.shape, TRANSFORMER, **RANDOM, **settings, rngs=nnx.Rngs(0))


CASES = {
    "masked": (lambda: masked(head=SMOOTHED), lambda i: codes_of(CODES[i], GRID, 6)),
    "masked, short clips and a critic": (
        lambda: masked(critic={"layers": 1, "weight": 0.5}),
        lambda i: codes_of(CODES[i], GRID, 6, exists=SHORT[i]),
    ),
    "next block": (
        lambda: NextBlockTransformer(
            (6,), GRID.shape, TRANSFORMER, block=(1, 1, 2), token_drop=0.5, **RANDOM, rngs=nnx.Rngs(0)
        ),
        lambda i: codes_of(CODES[i], GRID, 6),
    ),
    "next token, sequences that end": (
        lambda: NextBlockTransformer(
            (6,), GRID.shape, TRANSFORMER, head={**SMOOTHED, "special": ("end",)}, **RANDOM, rngs=nnx.Rngs(0)
        ),
        lambda i: codes_of(CODES[i], GRID, 6, exists=SHORT[i].reshape(-1, *GRID.shape)),
    ),
    "flow, given frames": (
        lambda: FlowTransformer(3, GRID.shape, TRANSFORMER, prefix_share=0.7, **RANDOM, rngs=nnx.Rngs(0)),
        lambda i: latents_of(LATENTS[i]),
    ),
    "flow, times of frames": (
        lambda: FlowTransformer(3, GRID.shape, TRANSFORMER, times="frame", **RANDOM, rngs=nnx.Rngs(0)),
        lambda i: latents_of(LATENTS[i]),
    ),
    "flow, bits and deep text": (
        lambda: FlowTransformer(0, GRID.shape, TRANSFORMER, vocabulary=(8,), **BITS, **RANDOM, rngs=nnx.Rngs(0)),
        lambda i: codes_of(CODES[i], GRID, 8),
    ),
}


def in_parts(loss, count: int, known=None):
    """Means over micro-batches of the values, metrics and gradients of ``loss(rows, micro)``, and its means."""

    @jax.jit
    def run(rows, number):
        micro = MicroBatch(number, count, known)
        (value, means), gradients = loss(rows, micro)
        return (value, gradients), means

    results = [run(rows, i) for i, rows in enumerate(MicroBatch.split(jnp.arange(BATCH), count))]
    return jax.tree.map(lambda *x: sum(x) / count, *results)


def assert_whole_equals_parts(loss, nonlinear: bool) -> None:
    whole, _ = in_parts(loss, 1)
    _, means = in_parts(loss, COUNT)
    parts, _ = in_parts(loss, COUNT, means)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b))) + 1e-9)
    assert bool(means) == nonlinear


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("masked", marks=pytest.mark.slow),  # the next case has all that this one has
        pytest.param("masked, short clips and a critic", marks=pytest.mark.slow),
        "next block",
        pytest.param("next token, sequences that end", marks=pytest.mark.slow),
        pytest.param("flow, given frames", marks=pytest.mark.slow),
        pytest.param("flow, times of frames", marks=pytest.mark.slow),
    ],
)
def test_a_batch_in_parts_is_the_batch(name):
    make, data = CASES[name]
    graph, params, rest = nnx.split(jax.jit(make)(), nnx.Param, ...)
    # Fresh heads are zeros, through which no gradient goes.
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)

    def loss(rows, micro):
        conditioning = Conditioning(EncodedText(TEXT.features[rows], TEXT.mask[rows]), None)

        def value(params):
            value, metrics = nnx.merge(graph, params, rest).loss(
                data(rows), conditioning, jax.random.key(1), micro=micro
            )
            return value, (metrics, micro.means)

        (loss, (metrics, means)), gradients = jax.value_and_grad(value, has_aux=True)(params)
        return ((loss, metrics), means), gradients

    # Of next blocks every micro-batch has equally many; elsewhere draws decide what counts.
    assert_whole_equals_parts(loss, nonlinear=name != "next block")


def test_distillation_in_parts_is_that_of_the_batch():
    process, times = RectifiedFlow(), jnp.array([1.0, 0.5, 0.0])
    given = jnp.arange(3) < jnp.arange(BATCH)[:, None] % 3
    grid = jnp.where(given, 0.0, jnp.broadcast_to(times[:, None, None], (3, BATCH, 3)))
    states = jax.random.normal(jax.random.key(2), (2, BATCH, 3, 2, 2, 1))

    def loss(rows, micro):
        def value(scale):
            def student(x, t):
                return scale * x

            def teacher(x, t):
                return 0.3 * x

            value = diffusion.distillation_loss(
                student, teacher, process, Euler(), grid[:, rows], states[:, rows], jax.random.key(3),
                substeps=2, micro=micro,
            )  # fmt: skip
            return value, micro.means

        return jax.value_and_grad(value, has_aux=True)(0.7)

    assert_whole_equals_parts(loss, nonlinear=True)
