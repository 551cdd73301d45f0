"""Distances of vectors at the places that count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen import losses
from videogen.errors import UserError
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape

SETTING = losses.Setting(VideoShape(1, 8, 8), tokens=1, code_width=1, steps=1)
RNG = np.random.default_rng(0)
OURS, THEIRS = (jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32) for _ in range(2))
EXISTS = jnp.array([[True, False, True], [False, False, True]])


def value(objective: str, exists) -> float:
    section = {"name": "regression", "reads": "pixels", "weight": 1.0, "objective": objective}
    terms = losses.build({"pixels": section}, SETTING)
    outputs = losses.Outputs({"pixels": losses.Pass(OURS, THEIRS, exists)})
    return float(losses.combine(terms, {}, outputs, jax.random.key(0), jnp.zeros((), int), MicroBatch())[0])


@pytest.mark.parametrize("exists", [EXISTS, None])
def test_the_mean_over_places_that_exist(exists):
    there = np.ones((2, 3), bool) if exists is None else np.asarray(exists)
    ours, theirs = np.asarray(OURS)[there], np.asarray(THEIRS)[there]
    assert value("l2", exists) == pytest.approx(np.square(ours - theirs).mean(), rel=1e-5)
    cosines = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert value("cosine", exists) == pytest.approx((1 - cosines).mean(), rel=1e-5)


def test_nothing_costs_nothing_and_other_objectives_are_refused():
    assert value("l2", jnp.zeros((2, 3), bool)) == 0 and value("cosine", jnp.zeros((2, 3), bool)) == 0
    with pytest.raises(UserError, match="objective"):
        value("l1", None)
