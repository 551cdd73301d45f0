"""Freezing of parameters, and groups that rest, in the step of a task of a few numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videogen import tasks
from videogen.defaults import optimizer
from videogen.errors import UserError
from videogen.nn import Linear
from videogen.parallel import AXES
from videogen.tasks.base import Outcome
from videogen.training.state import averaged, new_state, state_shardings, structure_of
from videogen.training.step import jit_train_step, make_train_step


class Count(nnx.Variable):
    """A statistic."""


class Counted(nnx.Module):
    """A matrix that counts the examples it has seen."""

    def __init__(self, rngs):
        self.linear = Linear(4, 4, axes=("embed", None), rngs=rngs)
        self.uses = Count(jnp.zeros(()))

    def __call__(self, x):
        return self.linear(x)

    def update(self, uses):
        self.uses.set_value(self.uses.get_value() + uses)


class Coder(nnx.Module):
    def __init__(self, rngs):
        self.encoder, self.encoder_norm, self.decoder = (Counted(rngs) for _ in range(3))


class Task(tasks.Task):
    """A coder whose second group is active in even steps only."""

    def __init__(self):
        self.losses = {"coder": self.loss, "judge": self.resting}
        self.updates = {"coder": self.update}
        self.active = {"judge": lambda metrics, step: step % 2 == 0}

    def init(self, rngs):
        return {"coder": Coder(rngs), "judge": Counted(rngs)}

    def loss(self, modules, batch, key, step, micro):
        coder = modules["coder"]
        error = coder.decoder(coder.encoder_norm(coder.encoder(batch["x"]))) - 1.0
        uses = jnp.asarray(len(batch["x"]), jnp.float32)
        return jnp.mean(error**2), Outcome({"loss": jnp.mean(error**2)}, sums={"uses": uses})

    def update(self, modules, sums, rows, key, step):
        for part in (modules["coder"].encoder, modules["coder"].encoder_norm, modules["coder"].decoder):
            part.update(sums["uses"])
        return {}

    def resting(self, modules, batch, key, step, micro):
        loss = jnp.mean(modules["judge"](batch["x"]) ** 2)
        return loss, Outcome({"judge_loss": loss})


def config(freeze=(), name="adamw", accumulate=1):
    own = optimizer(name, learning_rate=0.1, freeze=freeze)
    optimizers = {"coder": own, "judge": optimizer(learning_rate=0.1, weight_decay=0.1)}
    return ConfigDict(
        {"seed": 0, "steps": 10, "accumulate": accumulate, "ema": {"decay": 0.9}, "optimizer": optimizers}
    )


def states(config, count=4):
    """The states before and after each of ``count`` steps, and the metrics."""
    structure, _ = structure_of(Task(), config)
    step = jax.jit(make_train_step(Task(), structure, {}, config))
    all_states, metrics = [new_state(Task(), structure, config)], []
    for i in range(count):
        x = np.random.default_rng(i).normal(size=(4, 4)).astype(np.float32)
        state, values = step(all_states[-1], {}, {"x": x})
        all_states.append(state)
        metrics.append(values)
    return all_states, metrics


def moved(a, b):
    """The paths at which two trees differ."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x, y: bool(jnp.any(x != y)), a, b))
    return {jax.tree_util.keystr(path, simple=True, separator=".") for path, differs in leaves if differs}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parts_stay_and_cost_no_state(name):
    (first, *_, last), _ = states(config(freeze=("encoder", "encoder_norm.linear.kernel"), name=name))
    expected = {"encoder_norm.linear.bias", "decoder.linear.kernel", "decoder.linear.bias"}
    assert moved(first["params"]["coder"], last["params"]["coder"]) == expected
    # Statistics of what is frozen stay as well.
    assert moved(first["variables"]["coder"], last["variables"]["coder"]) == {"encoder_norm.uses", "decoder.uses"}
    kernels = [leaf for leaf in jax.tree.leaves(last["optimizer"]["coder"]) if leaf.shape == (4, 4)]
    # The first and second moments of the one kernel that learns.
    assert len(kernels) == 2
    assert set(last["ema"]["coder"]) == {"encoder_norm", "decoder"}
    used = averaged(last)["coder"]
    assert not moved(used["encoder"], first["params"]["coder"]["encoder"])
    assert not moved(used["decoder"], last["ema"]["coder"]["decoder"])


def test_statistics_without_parameters_freeze_too():
    (first, *_, last), _ = states(config(freeze=("encoder.uses",)), count=2)
    assert "encoder.uses" not in moved(first["variables"]["coder"], last["variables"]["coder"])
    assert "encoder.linear.kernel" in moved(first["params"]["coder"], last["params"]["coder"])


def test_what_learns_beside_frozen_parts_learns_as_if_their_gradients_were_not_there():
    frozen, metrics = states(config(freeze=("encoder", "encoder_norm")), count=1)
    free, all_metrics = states(config(), count=1)
    assert float(metrics[0]["gradient_norm_coder"]) < float(all_metrics[0]["gradient_norm_coder"])
    # One Adam step has the learning rate's length, whatever the clipping by the norm of all gradients.
    a, b = (s[1]["params"]["coder"]["decoder"]["linear"]["kernel"] for s in (frozen, free))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_every_leaf_of_a_state_with_frozen_parts_has_a_sharding():
    settings = config(freeze=("encoder",))
    structure, abstract = structure_of(Task(), settings)
    shapes = jax.eval_shape(lambda: new_state(Task(), structure, settings))
    mesh = Mesh(np.array(jax.devices()[:1]).reshape((1,) * len(AXES)), AXES)
    assert jax.tree.structure(state_shardings(abstract, shapes, mesh)) == jax.tree.structure(shapes)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [(("encodr",), "did you mean 'encoder'"), (("encoder", "encoder_norm", "decoder"), "leaves nothing to train")],
)
def test_paths_that_name_nothing_or_everything_are_refused(freeze, message):
    with pytest.raises(UserError, match=message):
        structure_of(Task(), config(freeze=freeze))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_group_that_rests_keeps_parameters_and_moments_but_counts_steps(accumulate):
    all_states, _ = states(config(accumulate=accumulate))
    for step, (before, after) in enumerate(zip(all_states, all_states[1:], strict=False)):
        active = step % 2 == 0
        assert bool(moved(before["params"]["judge"], after["params"]["judge"])) == active
        moments = [optax.tree_utils.tree_get(state["optimizer"]["judge"], "mu") for state in (before, after)]
        assert bool(moved(*moments)) == active
        assert moved(before["params"]["coder"], after["params"]["coder"])
        counts = [leaf for leaf in jax.tree.leaves(after["optimizer"]["judge"]) if leaf.dtype == jnp.int32]
        assert counts and all(int(count) == step + 1 for count in counts)


def test_the_average_follows_quickly_at_first():
    """e + (p - e)·(1 - rate) with rate (1 + n)/(10 + n), up to the setting."""
    all_states, metrics = states(config(), count=3)
    for n, (before, after) in enumerate(zip(all_states, all_states[1:], strict=False)):
        rate = min(0.9, (1 + n) / (10 + n))
        for e, p, new in zip(*map(jax.tree.leaves, (before["ema"], after["params"], after["ema"])), strict=True):
            np.testing.assert_allclose(new, rate * e + (1 - rate) * p, rtol=1e-5, atol=1e-7)
    assert all(float(values["finite"]) == 1 for values in metrics)


def test_the_state_is_donated():
    settings = config()
    structure, abstract = structure_of(Task(), settings)
    shapes = jax.eval_shape(lambda: new_state(Task(), structure, settings))
    mesh = Mesh(np.array(jax.devices()[:1]).reshape((1,) * len(AXES)), AXES)
    step = jit_train_step(Task(), structure, {}, settings, mesh, state_shardings(abstract, shapes, mesh), {})
    info = step.lower(shapes, {}, {"x": jax.ShapeDtypeStruct((4, 4), jnp.float32)}).args_info[0]
    assert all(leaf.donated for leaf in jax.tree.leaves(info[0]))
    assert not any(leaf.donated for leaf in jax.tree.leaves(info[1:]))
