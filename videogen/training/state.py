"""The train state: a plain nested dict, created directly in its shards.

``{"step", "params": {group: …}, "variables": {group: …}, "optimizer": {group: …}, "ema": {group: …}}``; ``ema`` is
empty when it is switched off. Frozen modules are not part of it: they are written once per run.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen.parallel import shardings
from videogen.tasks import Task
from videogen.training.optimizers import build_optimizer

State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Structure:
    """Everything static about a run's modules: graphs to merge with arrays, optimizers, learning rates."""

    graphs: dict[str, nnx.GraphDef]
    optimizers: dict[str, optax.GradientTransformation]
    rates: dict[str, optax.Schedule]

    def modules(self, params: dict[str, Any], variables: dict[str, Any]) -> dict[str, nnx.Module]:
        """Live modules of the parameter groups."""
        return {name: nnx.merge(graph, params[name], variables[name]) for name, graph in self.graphs.items()}


def split(modules: dict[str, nnx.Module]) -> tuple[dict[str, nnx.GraphDef], dict[str, Any], dict[str, Any]]:
    """``(graphs, params, variables)`` of modules, the latter two as plain nested dicts by name."""
    graphs, params, variables = {}, {}, {}
    for name, module in modules.items():
        graphs[name], p, v = nnx.split(module, nnx.Param, ...)
        params[name], variables[name] = nnx.to_pure_dict(p), nnx.to_pure_dict(v)
    return graphs, params, variables


def structure_of(task: Task, config: Any) -> tuple[Structure, dict[str, nnx.Module]]:
    """The static structure of a task, and its modules without arrays (shapes and axes only)."""
    abstract = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    built = {name: build_optimizer(config.optimizer[name], config.steps) for name in task.losses}
    graphs = {name: nnx.graphdef(module) for name, module in abstract.items()}
    structure = Structure(graphs, {n: b[0] for n, b in built.items()}, {n: b[1] for n, b in built.items()})
    return structure, abstract


def new_state(task: Task, structure: Structure, config: Any) -> State:
    """A fresh state; trace it under ``jit`` with the shardings of ``state_shardings``."""
    _, params, variables = split(task.init(nnx.Rngs(params=jax.random.key(config.seed))))
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "variables": variables,
        "optimizer": {name: structure.optimizers[name].init(params[name]) for name in structure.graphs},
        "ema": jax.tree.map(jnp.array, params) if config.ema.decay else {},
    }


def state_shardings(abstract: dict[str, nnx.Module], state: State, mesh: Mesh) -> State:
    """The sharding of every leaf of a (possibly abstract) state: optimizer moments and EMA follow their parameters."""
    replicated = NamedSharding(mesh, PartitionSpec())
    params = {name: shardings(nnx.state(module, nnx.Param), mesh) for name, module in abstract.items()}
    return {
        "step": replicated,
        "params": params,
        "variables": {
            name: shardings(nnx.state(module, nnx.Not(nnx.Param)), mesh) for name, module in abstract.items()
        },
        "optimizer": {name: _like_params(state["optimizer"][name], params[name], replicated) for name in params},
        "ema": params if state["ema"] else {},
    }


def frozen_shardings(frozen: dict[str, nnx.Module], mesh: Mesh) -> dict[str, Any]:
    """The sharding of every leaf of the frozen modules: that of a trained parameter of its shape."""
    return {name: shardings(nnx.state(module), mesh) for name, module in frozen.items()}


def place_frozen(frozen: dict[str, nnx.Module], mesh: Mesh) -> dict[str, nnx.Module]:
    """The frozen modules, which every process has read whole, with their arrays spread over the mesh."""
    placed = {}
    for name, sharding in frozen_shardings(frozen, mesh).items():
        graph, state = nnx.split(frozen[name])
        arrays = jax.tree.map(
            lambda x, s: jax.make_array_from_callback(x.shape, s, np.asarray(x).__getitem__),
            nnx.to_pure_dict(state),
            sharding,
        )
        placed[name] = nnx.merge(graph, arrays)
    return placed


def _like_params(optimizer_state: Any, params: Any, other: NamedSharding) -> Any:
    """Gives every moment the sharding of the parameter whose path its own path ends with, and ``other`` to the rest."""
    by_path = {_keys(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(params)}

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        keys = _keys(path)
        return next((by_path[keys[i:]] for i in range(len(keys)) if keys[i:] in by_path and leaf.ndim), other)

    return jax.tree_util.tree_map_with_path(sharding, optimizer_state)


def _keys(path: tuple) -> tuple[str, ...]:
    return tuple(part.key for part in path if isinstance(part, jax.tree_util.DictKey))


def parameter_count(params: Any) -> int:
    """Number of scalars in a (possibly abstract) tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
