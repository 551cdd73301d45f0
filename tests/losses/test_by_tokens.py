"""Losses of KARL: discriminators by the number of tokens, and what tells the tokens that are not needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import losses
from videogen.errors import UserError
from videogen.losses.by_tokens import TokenBuckets
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape

SETTING = losses.Setting(VideoShape(2, 4, 4), 8, 4, 10)
JUDGE = {"name": "transformer", "patch": (1, 4, 4), "width": 6, "layers": 1, "heads": 1}
KEY, FIRST = jax.random.key(0), jnp.zeros((), int)
VIDEO = jax.random.uniform(jax.random.key(1), (3, 2, 4, 4, 3), minval=-1, maxval=1)


def term(**settings) -> losses.Term:
    section = {"name": "adversarial", "weight": 1.0, "objective": "hinge", "reads": "estimate", **settings}
    return losses.build({"adversarial": section}, SETTING)["adversarial"]


def outputs(tokens: int | None) -> losses.Outputs:
    tokens = None if tokens is None else jnp.asarray(tokens)
    return losses.Outputs({"estimate": losses.Pass(VIDEO, -VIDEO, tokens=tokens)})


def test_a_number_of_tokens_has_its_bucket():
    """Checkable 11: clamp(T // 32 - 1, 0, 7)."""
    section = TokenBuckets(of=JUDGE)
    found = [int(section.bucket(tokens)) for tokens in (16, 32, 48, 64, 96, 128, 224, 256, 288, 368)]
    assert found == [0, 0, 0, 1, 2, 3, 6, 7, 7, 7]


@pytest.mark.slow
def test_the_discriminator_of_the_bucket_judges_and_learns():
    judged = term(discriminator={"name": "by_tokens", "of": JUDGE, "buckets": 3, "size": 2})
    module = judged.module(nnx.Rngs(0))
    graph, state = nnx.split(module)

    @jax.jit
    def found(state, tokens) -> tuple:
        """The value of the term, and the gradient of what the discriminators learn."""

        def loss(state):
            modules = {judged.group: nnx.merge(graph, state)}
            return judged.group_value(modules, outputs(tokens), KEY, FIRST, MicroBatch())[0]

        modules = {judged.group: nnx.merge(graph, state)}
        return judged.value(modules, outputs(tokens), KEY, FIRST, MicroBatch())[0], jax.grad(loss)(state)

    alone = jax.jit(lambda state, bucket: nnx.merge(graph, state).stack.layer(bucket)(VIDEO))
    for tokens, bucket in ((2, 0), (4, 1), (99, 2)):
        value, gradient = found(state, tokens)
        assert float(value) == pytest.approx(-float(np.mean(alone(state, bucket))), rel=1e-5)
        gradient = np.asarray(gradient["stack"]["layers"]["logit"]["kernel"][...])
        assert (np.abs(gradient).reshape(3, -1).max(1) > 0).tolist() == [i == bucket for i in range(3)]
    # Each began with weights of its own.
    kernels = np.asarray(module.stack.layers.logit.kernel[...]).reshape(3, -1)
    assert np.abs(kernels[0] - kernels[1]).max() > 0


def test_a_second_pass_has_a_second_discriminator():
    section = {"name": "adversarial", "weight": 1.0, "objective": "hinge", "discriminator": JUDGE}
    with pytest.raises(UserError, match="both train a discriminator"):
        losses.build({"a": section | {"reads": "estimate"}, "b": section | {"reads": "complete"}}, SETTING)
    second = {"reads": "complete", "group": "second_discriminator"}
    built = losses.build({"a": section | {"reads": "estimate"}, "b": section | second}, SETTING)
    assert [(t.group, t.reads) for t in built.values()] == [
        ("discriminator", "estimate"),
        ("second_discriminator", "complete"),
    ]


def test_what_does_not_fit_is_refused():
    judged = term(discriminator={"name": "by_tokens", "of": JUDGE})
    module = {"discriminator": judged.module(nnx.Rngs(0))}
    with pytest.raises(UserError, match="pass 'estimate' tells no number of tokens"):
        judged.value(module, outputs(None), KEY, FIRST, MicroBatch())
    with pytest.raises(UserError, match="there is no pass 'estimat' to compare.*'estimate'"):
        term(discriminator=JUDGE, reads="estimat").value(module, outputs(None), KEY, FIRST, MicroBatch())
    with pytest.raises(UserError, match="unknown discriminator 'transforme'"):
        term(discriminator={"name": "by_tokens", "of": JUDGE | {"name": "transforme"}})


def test_halting_is_the_cross_entropy_of_the_tokens_that_exist():
    logits, halt = jnp.asarray([[2.0, -1.0, 0.5, 7.0]]), jnp.asarray([[0.0, 0.0, 1.0, 1.0]])
    exists = jnp.asarray([[True, True, True, False]])
    built = losses.build({"halting": {"name": "halting", "reads": "a", "weight": 1.0}}, SETTING)["halting"]

    def value(logits: jax.Array, exists: jax.Array | None) -> jax.Array:
        given = losses.Outputs({"a": losses.Pass(logits, halt, exists=exists)})
        return built.value({}, given, KEY, FIRST, MicroBatch())[0]

    p = 1 / (1 + np.exp(-np.asarray(logits[0])))
    each = [-np.log(1 - p[0]), -np.log(1 - p[1]), -np.log(p[2]), -np.log(p[3])]
    assert float(value(logits, None)) == pytest.approx(np.mean(each), rel=1e-5)
    assert float(value(logits, exists)) == pytest.approx(np.mean(each[:3]), rel=1e-5)
    assert jax.grad(value)(logits, exists)[0, 3] == 0
    assert np.isfinite(value(jnp.full((1, 4), -1e4), None))
