"""Starting a run from the weights of others: progressive training, 2-D to 3-D inflation, a new head on trained layers,
a branch that begins as the copy of another.

Only the first start reads the other runs. It then saves the new run's step 0, so that from there on the run needs
nothing but its own directory.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import nnx

from videogen.errors import UserError, near_matches
from videogen.runs.checkpoints import latest_step
from videogen.tasks import Task
from videogen.tokenizers.inflation import SLICES, inflate_array, new_frames
from videogen.training.loading import Loaded, load
from videogen.training.state import State, split, structure_of

Path = tuple[str, ...]
"""Parameter group and names down to one array."""

Weights = dict[Path, np.ndarray]

LOW_RANK = "lora"
"""The name of a low-rank update among the parts of a layer."""

SMALLEST_CONVOLUTION = 5
"""Axes of a 3-D convolution's kernel; what has fewer is not inflated."""


def starting_weights(
    config: Any,
    workdir: epath.PathLike,
    task: Task,
    read: Callable[[str], Loaded] = load,
    frozen: Mapping[str, nnx.Module] = MappingProxyType({}),
) -> Weights | None:
    """What a new run takes over from other runs or exports; call it outside any mesh.

    ``config.start_from.paths = ((path, "RUN" or "RUN:path"), …)`` says where parts of the new run come from. Paths are
    dotted; the first name is a parameter group, or in the other run a frozen module. ``":NAME"``, without a run, is a
    frozen part of the new run itself, such as the published encoder that a trained one begins as a copy of; where
    NAME is a parameter group, it is that of ``start_from.run``, such as a branch that begins as a copy of what it
    stands beside.
    ``config.start_from.run`` is the short form of ``("", RUN)``, and a student begins with its teacher's weights unless
    it names another run.

    At the empty path every parameter and variable of the same group, path and shape is taken over (EMA where there is
    one). At other paths all arrays must be there, but for low-rank updates, which begin as none; a longer path counts
    for what is below it. With
    ``config.start_from.inflate`` (a name in ``tokenizers.inflation.SLICES``) 2-D kernels go where the new run has 3-D
    ones. What was kept, inflated, new and left behind is named in the log.

    Args:
      config: the complete config of the new run.
      workdir: its directory.
      task: its task.
      read: how a run or export is read.
      frozen: the frozen modules of the new run.

    Returns:
      The arrays in the shapes and dtypes of the new run; ``None`` when it starts afresh or has a checkpoint already.

    Raises:
      UserError: no run there, nothing in it fits, a path names nothing or other shapes, or an unknown inflation.
    """
    settings = config.start_from
    if settings.inflate and settings.inflate not in SLICES:
        raise UserError(f"unknown start_from.inflate {settings.inflate!r}{near_matches(settings.inflate, SLICES)}")
    run = settings.run or config.parts.get("teacher", {}).get("checkpoint", "")
    # A directory of the short form may have a colon in its name.
    origins = [("", run, "")] if run else []
    origins += [(path, *split_origin(where)) for path, where in settings.get("paths") or ()]
    if not origins or latest_step(workdir) is not None:
        return None
    modules, weights = structure_of(task, config)[1], {}
    for path, run, theirs in sorted(origins, key=lambda origin: len(_names_of(origin[0]))):
        # A parameter group of no run is that of the short form.
        run = run or (settings.run if theirs.split(".")[0] not in frozen else "")
        weights |= _taken(path, read(run) if run else Own(frozen), theirs, modules, settings.inflate)
    return weights


class Own(NamedTuple):
    """The new run itself as an origin: its frozen modules."""

    modules: Mapping[str, nnx.Module]
    directory: str = "the frozen parts of this run"
    step: int = 0


def _taken(path: str, origin: Loaded | Own, theirs: str, modules: dict[str, nnx.Module], inflate: str) -> Weights:
    """What a path of a new run, which has these ``modules``, takes over from a path of another one."""
    run, at = origin.directory, _names_of(path)
    wanted = _below("this run", at, _arrays(modules))
    found = _below(run, _names_of(theirs), _arrays(origin.modules))
    frames = {(group, *names): n for group, module in modules.items() for names, n in new_frames(module).items()}
    weights, inflated = {}, []
    for names, goal in wanted.items():
        value = found.get(names)
        if value is not None and value.shape != goal.shape and inflate and _inflates(names, found):
            value = inflate_array(value, goal.shape, inflate, frames.get((*at, *names)[:-2], 1))
            inflated += [(*at, *names)] if value is not None else []
        if value is not None and value.shape == goal.shape:
            weights[*at, *names] = np.asarray(value, goal.dtype)
        elif path and LOW_RANK not in names:
            shape = f"has the shape {list(found[names].shape)}" if names in found else "is not there"
            name, other = (".".join(names_of) for names_of in ((*at, *names), (*_names_of(theirs), *names)))
            raise UserError(f"start_from: {name} has the shape {list(goal.shape)}, and {other} of {run} {shape}")
    _report(origin, weights, inflated, *({(*at, *names): x for names, x in a.items()} for a in (wanted, found)))
    return weights


def split_origin(where: str) -> tuple[str, str]:
    """``RUN:path`` -> the directory and the path in it, which is empty where none is said (``gs://bucket/run``)."""
    run, colon, path = where.rpartition(":")
    return (run, path) if colon and "/" not in path else (where, "")


def _names_of(path: str) -> Path:
    return tuple(path.split(".")) if path else ()


def _below(run: epath.PathLike, path: Path, arrays: dict[Path, Any]) -> dict[Path, Any]:
    """The arrays of a run below a path, by the rest of their paths; raises ``UserError`` where there are none."""
    found = {names[len(path) :]: array for names, array in arrays.items() if names[: len(path)] == path}
    if path and not found:
        near = near_matches(".".join(path), {".".join(names[: len(path)]) for names in arrays})
        raise UserError(f"start_from: {run} has nothing called {'.'.join(path)!r}{near}")
    return found


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


def _arrays(modules: Mapping[str, nnx.Module]) -> dict[Path, Any]:
    """Every (possibly abstract) parameter and variable of modules."""
    _, params, variables = split(modules)
    leaves = [leaf for tree in (params, variables) for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return {_names(path): value for path, value in leaves}


def _inflates(path: Path, found: dict[Path, Any]) -> bool:
    """Whether an array belongs to a 3-D convolution: its kernel or its bias."""
    kernel = found.get((*path[:-1], "kernel"))
    return kernel is not None and kernel.ndim >= SMALLEST_CONVOLUTION


def _report(
    origin: Loaded | Own, weights: Weights, inflated: list[Path], wanted: dict[Path, Any], found: dict[Path, Any]
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
