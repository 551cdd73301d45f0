"""The train state: a plain nested dict, created directly in its shards.

``{"step", "params": {group: …}, "variables": {group: …}, "optimizer": {group: …}, "ema": {group: …}}``; ``ema`` is
empty when it is switched off, and has no part for parameters that ``optimizer.GROUP.freeze`` keeps as they are. Frozen
modules are not part of the state: they are written once per run.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen.errors import UserError, near_matches
from videogen.nn import beside_lora, draw_by_name
from videogen.parallel import shardings
from videogen.tasks import Task
from videogen.training.optimizers import build_optimizer, is_frozen

State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Structure:
    """Everything static about a run's modules: graphs to merge with arrays, optimizers, learning rates.

    Attributes:
      freeze: group -> path prefixes of the parameters and variables that training leaves as they are.
    """

    graphs: dict[str, nnx.GraphDef]
    optimizers: dict[str, optax.GradientTransformation]
    rates: dict[str, optax.Schedule]
    freeze: dict[str, tuple[str, ...]]

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
    graphs = {name: nnx.graphdef(module) for name, module in abstract.items()}
    freeze, built = {}, {}
    for name in task.losses:
        if name not in config.optimizer:
            raise UserError(f"config.optimizer.{name} is missing: {name!r} is a group of parameters that is trained")
        settings = config.optimizer[name]
        freeze[name] = _frozen_paths(name, settings.get("freeze", ()), abstract[name])
        built[name] = build_optimizer({**settings, "freeze": freeze[name]}, config.steps)
    structure = Structure(graphs, {n: b[0] for n, b in built.items()}, {n: b[1] for n, b in built.items()}, freeze)
    return structure, abstract


def _frozen_paths(group: str, prefixes: Sequence[str], module: nnx.Module) -> tuple[str, ...]:
    """The prefixes less the low-rank updates below them, which are there to be trained beside what is frozen.

    Raises:
      UserError: a prefix names neither a parameter nor a variable, or nothing is left to train.
    """
    every = [path for path, _ in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module)))]
    for prefix in prefixes:
        if not any(is_frozen(path, [prefix]) for path in every):
            known = near_matches(prefix, {path[0].key for path in every})
            raise UserError(f"optimizer.{group}.freeze: nothing is called {prefix!r}{known}")
    paths = beside_lora(module, prefixes)
    if all(is_frozen(path, paths) for path in every):
        raise UserError(f"optimizer.{group}.freeze leaves nothing to train")
    return paths


def without_frozen(structure: Structure, tree: dict[str, Any]) -> dict[str, Any]:
    """Parameters (or what has their paths) by group, less the frozen ones."""

    def prune(value: Any, path: tuple, prefixes: tuple[str, ...]) -> Any:
        below = {key: (*path, jax.tree_util.DictKey(key)) for key in value}
        kept = {key: value[key] for key in value if not is_frozen(below[key], prefixes)}
        return {key: prune(v, below[key], prefixes) if isinstance(v, dict) else v for key, v in kept.items()}

    return {group: prune(value, (), structure.freeze[group]) for group, value in tree.items()}


def overlay(whole: Any, part: Any) -> Any:
    """The nested dict ``whole`` with the leaves that ``part`` has taken from there."""
    if not isinstance(whole, dict):
        return part
    return {key: overlay(value, part[key]) if key in part else value for key, value in whole.items()}


def select(whole: Any, part: Any) -> Any:
    """What the nested dict ``whole`` has at the leaves of ``part``."""
    return {key: select(whole[key], part[key]) for key in part} if isinstance(part, dict) else whole


def averaged(state: State) -> dict[str, Any]:
    """What evaluation and loading use: EMA parameters where there are any, the trained ones elsewhere."""
    return overlay(state["params"], state["ema"])


def new_state(task: Task, structure: Structure, config: Any) -> State:
    """A fresh state; trace it under ``jit`` with the shardings of ``state_shardings``."""
    modules = task.init(nnx.Rngs(params=0))
    draw_by_name(modules, jax.random.key(config.seed))
    _, params, variables = split(modules)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "variables": variables,
        "optimizer": {name: structure.optimizers[name].init(params[name]) for name in structure.graphs},
        "ema": jax.tree.map(jnp.array, without_frozen(structure, params)) if config.ema.decay else {},
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
        "ema": select(params, state["ema"]),
    }


FROZEN_LAYOUTS = ("sharded", "whole")
"""Where the weights of frozen modules are: shared out like trained ones and gathered in every step, or on every device,
which takes memory and sends nothing."""


def check_frozen_layout(layout: str) -> None:
    """Raises ``UserError`` for a name that is not in ``FROZEN_LAYOUTS``."""
    if layout not in FROZEN_LAYOUTS:
        raise UserError(f"unknown parallel.frozen {layout!r}{near_matches(layout, FROZEN_LAYOUTS)}")


def frozen_shardings(frozen: dict[str, nnx.Module], mesh: Mesh, layout: str) -> dict[str, Any]:
    """The sharding of every leaf of the frozen modules.

    Args:
      layout: a name in ``FROZEN_LAYOUTS``; the weights of ``whole`` modules are not spread over ``fsdp``.

    Raises:
      UserError: there is no such layout.
    """
    check_frozen_layout(layout)
    return {name: shardings(nnx.state(module), mesh, fsdp=layout == "sharded") for name, module in frozen.items()}


def place_frozen(frozen: dict[str, nnx.Module], mesh: Mesh, layout: str) -> dict[str, nnx.Module]:
    """The frozen modules, which every process has read whole, with their arrays laid out on the mesh."""
    placed = {}
    for name, sharding in frozen_shardings(frozen, mesh, layout).items():
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
