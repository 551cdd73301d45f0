"""One training step of any task: gradients per parameter group, accumulation, EMA, and the NaN guard."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from videogen.tasks import Task
from videogen.tasks.base import Outcome
from videogen.training.optimizers import is_frozen
from videogen.training.state import State, Structure, overlay, select, without_frozen

FrozenModules = tuple[dict[str, nnx.GraphDef], dict[str, Any]]


def jit_train_step(
    task: Task,
    structure: Structure,
    frozen_graphs: dict[str, nnx.GraphDef],
    config: Any,
    mesh: Mesh,
    placement: State,
    frozen_placement: dict[str, Any],
) -> Any:
    """The step of ``make_train_step`` under ``jax.jit`` as every run and every plan compiles it.

    Args:
      placement: shardings of the state, which is donated.
      frozen_placement: shardings of the frozen modules' arrays.
    """
    return jax.jit(
        make_train_step(task, structure, frozen_graphs, config),
        # Batches come on the devices that share them (``inputs.place``).
        in_shardings=(placement, frozen_placement, None),
        out_shardings=(placement, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def make_train_step(
    task: Task, structure: Structure, frozen_graphs: dict[str, nnx.GraphDef], config: Any
) -> Callable[[State, dict[str, Any], dict[str, Any]], tuple[State, dict[str, Float[Array, ""]]]]:
    """Builds ``(state, frozen, batch) -> (state, metrics)``; pure, to be compiled with a donated state.

    Every parameter group is updated in the order of ``task.losses`` from gradients at the parameters the step
    began with, except that a later group sees the earlier groups' handover. A step whose loss or gradient is not
    finite changes nothing but the step count, and reports ``finite = 0``.
    """
    accumulate = config.accumulate

    def gradients(group: str, state: State, params: dict, frozen: dict, batch: dict, key: jax.Array):
        """Loss, outcome, gradients and moved variables of one group on one (micro-)batch."""

        def loss(own: Any, variables: dict) -> tuple[Array, tuple[Outcome, dict]]:
            # No gradient goes to what is frozen, nor any work into one.
            own = jax.tree_util.tree_map_with_path(
                lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path, structure.freeze[group]) else x, own
            )
            modules = structure.modules({**params, group: own}, variables)
            frozen_modules = {name: nnx.merge(graph, frozen[name]) for name, graph in frozen_graphs.items()}
            value, outcome = task.losses[group](modules | frozen_modules, batch, key, state["step"])
            moved = {name: nnx.to_pure_dict(nnx.state(m, nnx.Not(nnx.Param))) for name, m in modules.items()}
            return value, (outcome, moved)

        return jax.value_and_grad(loss, has_aux=True)(params[group], state["variables"])

    def all_groups(state: State, frozen: dict, batch: dict, key: jax.Array):
        """Gradients and metrics of every group on one (micro-)batch, the moved variables, and who is active."""
        grads, metrics, active, batch = {}, {}, {}, dict(batch)
        for i, group in enumerate(task.losses):
            (_, (outcome, variables)), grads[group] = gradients(
                group, state, state["params"], frozen, batch, jax.random.fold_in(key, i)
            )
            state = {**state, "variables": variables}
            batch.update(outcome.handover)
            metrics.update(outcome.metrics)
            if outcome.active is not None:
                active[group] = outcome.active
        return grads, metrics, state["variables"], active

    def accumulated(state: State, frozen: dict, batch: dict, key: jax.Array):
        """The same over ``accumulate`` micro-batches: mean gradients and metrics."""
        micro = jax.tree.map(lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch)

        def body(carry: tuple, scanned: tuple) -> tuple[tuple, dict]:
            total, variables = carry
            grads, metrics, variables, active = all_groups({**state, "variables": variables}, frozen, *scanned)
            return (jax.tree.map(jnp.add, total, grads), variables), (metrics, active)

        zeros = jax.tree.map(jnp.zeros_like, {group: state["params"][group] for group in task.losses})
        keys = jax.random.split(key, accumulate)
        (total, variables), (metrics, active) = jax.lax.scan(body, (zeros, state["variables"]), (micro, keys))
        grads = jax.tree.map(lambda g: g / accumulate, total)
        return grads, jax.tree.map(lambda m: m.mean(0), metrics), variables, jax.tree.map(lambda a: a.any(0), active)

    def train_step(state: State, frozen: dict, batch: dict) -> tuple[State, dict[str, Float[Array, ""]]]:
        key = jax.random.fold_in(jax.random.key(config.seed + 1), state["step"])
        compute = all_groups if accumulate == 1 else accumulated
        grads, metrics, variables, active = compute(state, frozen, batch, key)
        # Statistics below frozen paths, such as a codebook's, stay as well.
        variables = overlay(state["variables"], without_frozen(structure, variables))
        norm = {group: optax.global_norm(grads[group]) for group in grads}
        finite = jnp.isfinite(sum(norm.values()) + sum(jnp.sum(m) for m in metrics.values()))
        new = apply_gradients(structure, state, grads, variables, config.ema.decay, active)
        new = jax.tree.map(lambda n, old: jnp.where(finite, n, old), new, state)
        new["step"] = state["step"] + 1
        metrics = dict(metrics, finite=finite.astype(jnp.float32))
        for group in grads:
            suffix = "" if len(grads) == 1 else f"_{group}"
            metrics[f"gradient_norm{suffix}"] = norm[group]
            metrics[f"learning_rate{suffix}"] = structure.rates[group](state["step"])
        return new, metrics

    return train_step


def apply_gradients(
    structure: Structure,
    state: State,
    grads: dict,
    variables: dict,
    ema_decay: float,
    active: dict[str, Bool[Array, ""]],
) -> State:
    """One optimizer step of every group but those that are not ``active``, then the EMA of the parameters.

    The step count of a group that rests goes on, so that its learning rate follows the steps of the run.
    """
    params, optimizer = {}, {}
    for group in structure.graphs:
        updates, optimizer[group] = structure.optimizers[group].update(
            grads[group], state["optimizer"][group], state["params"][group]
        )
        params[group] = optax.apply_updates(state["params"][group], updates)
        if group in active:
            old = state["params"][group], state["optimizer"][group]
            params[group], optimizer[group] = jax.tree.map(
                lambda new, old, moves=active[group]: new if new.dtype == jnp.int32 else jnp.where(moves, new, old),
                (params[group], optimizer[group]),
                old,
            )
    ema = {}
    if ema_decay:
        # Young averages follow quickly, so that a short run is not stuck at its initial values.
        count = state["step"].astype(jnp.float32)
        rate = jnp.minimum(ema_decay, (1 + count) / (10 + count))
        ema = jax.tree.map(lambda e, p: rate * e + (1 - rate) * p, state["ema"], select(params, state["ema"]))
    return {**state, "params": params, "variables": variables, "optimizer": optimizer, "ema": ema}
