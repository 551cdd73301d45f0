"""Starting a run from the weights of another: progressive training, 2-D to 3-D inflation, a new head on trained layers.

Only the first start reads the other run. It then saves the new run's step 0, so that from there on the run needs
nothing but its own directory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from videogen.errors import UserError, near_matches
from videogen.runs.checkpoints import latest_step
from videogen.tasks import Task
from videogen.tokenizers.inflation import SLICES, inflate_array, new_frames
from videogen.training.loading import Loaded, load
from videogen.training.state import State, split, structure_of

Path = tuple[str, ...]
"""Parameter group and names down to one array."""

Weights = dict[Path, np.ndarray]

SMALLEST_CONVOLUTION = 5
"""Axes of a 3-D convolution's kernel; what has fewer is not inflated."""


def starting_weights(
    config: Any, workdir: epath.PathLike, task: Task, read: Callable[[str], Loaded] = load
) -> Weights | None:
    """What a new run takes over from the run or export ``config.start_from.run``; call it outside any mesh.

    A student begins with its teacher's weights unless another run is named.

    That is every parameter and variable of the same group, path and shape (EMA where there is one) and, with
    ``config.start_from.inflate`` (a name in ``tokenizers.inflation.SLICES``), 2-D kernels where the new run has 3-D
    ones. What was kept, inflated, new and left behind is named in the log.

    Args:
      config: the complete config of the new run.
      workdir: its directory.
      task: its task.
      read: how a run or export is read.

    Returns:
      The arrays in the shapes and dtypes of the new run; ``None`` when it starts afresh or has a checkpoint already.

    Raises:
      UserError: no run there, nothing in it fits, or an unknown inflation.
    """
    settings = config.start_from
    if settings.inflate and settings.inflate not in SLICES:
        raise UserError(f"unknown start_from.inflate {settings.inflate!r}{near_matches(settings.inflate, SLICES)}")
    run = settings.run or config.parts.get("teacher", {}).get("checkpoint", "")
    if not run or latest_step(workdir) is not None:
        return None
    origin = read(run)
    found, modules = _arrays(origin.modules), structure_of(task, config)[1]
    wanted = _arrays(modules)
    frames = {(group, *path): n for group, module in modules.items() for path, n in new_frames(module).items()}
    weights, inflated = {}, []
    for path, goal in wanted.items():
        if path not in found:
            continue
        value = found[path]
        if value.shape != goal.shape and settings.inflate and _inflates(path, found):
            value = inflate_array(value, goal.shape, settings.inflate, frames.get(path[:-2], 1))
            inflated += [path] if value is not None else []
        if value is not None and value.shape == goal.shape:
            weights[path] = np.asarray(value, goal.dtype)
    _report(origin, weights, inflated, wanted, found)
    return weights


def with_weights(state: State, placement: State, weights: Weights) -> State:
    """A fresh state with ``weights`` in the place of its own, EMA included, each spread over the mesh.

    Args:
      state: a fresh state.
      placement: the sharding of each of its arrays.
      weights: from ``starting_weights``.
    """

    def choose(path: tuple, fresh: jax.Array, sharding: Any) -> jax.Array:
        value = weights.get(_names(path))
        return fresh if value is None else jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

    names = ("params", "variables", "ema")
    parts = {name: jax.tree_util.tree_map_with_path(choose, state[name], placement[name]) for name in names}
    # Arrays made from the host's memory may share it, and the train step overwrites its state.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.array, tree), out_shardings={name: placement[name] for name in names})
    return {**state, **copy(parts)}


def _names(path: tuple) -> Path:
    return tuple(str(part.key) for part in path)


def _arrays(modules: dict[str, Any]) -> dict[Path, Any]:
    """Every (possibly abstract) parameter and variable of modules."""
    _, params, variables = split(modules)
    leaves = [leaf for tree in (params, variables) for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return {_names(path): value for path, value in leaves}


def _inflates(path: Path, found: dict[Path, Any]) -> bool:
    """Whether an array belongs to a 3-D convolution: its kernel or its bias."""
    kernel = found.get((*path[:-1], "kernel"))
    return kernel is not None and kernel.ndim >= SMALLEST_CONVOLUTION


def _report(
    origin: Loaded, weights: Weights, inflated: list[Path], wanted: dict[Path, Any], found: dict[Path, Any]
) -> None:
    """Names in the log what became of each array.

    Raises:
      UserError: nothing is taken over.
    """
    if not weights:
        raise UserError(
            f"nothing in {origin.directory} has the name and shape of anything in this run; name a run of the same "
            "model and sizes as start_from.run, or leave it empty"
        )
    groups = {path[0] for path in wanted}
    lists = {
        "kept": [path for path in weights if path not in inflated],
        "inflated": inflated,
        "new": [path for path in wanted if path not in weights],
        "left behind": [path for path in found if path not in weights and path[0] in groups],
    }
    logging.info("start from %s, step %d: %d of %d arrays", origin.directory, origin.step, len(weights), len(wanted))
    for what, paths in lists.items():
        if paths:
            logging.info("  %s: %s", what, ", ".join(".".join(path) for path in paths))
