"""One training step of any task: gradients per parameter group, accumulation, updates, EMA, and the NaN guard."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from videogen.nn import MicroBatch, named_key
from videogen.tasks import Task
from videogen.tasks.base import Outcome, videos_and_images, weighted_mean
from videogen.training.codebooks import codebook_norms
from videogen.training.optimizers import is_frozen
from videogen.training.state import State, Structure, overlay, select, split, without_frozen

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
    began with, except that a later group sees the earlier groups' outputs; then ``task.updates`` move what moves with
    the data. With ``accumulate`` micro-batches all of this is that of the whole batch, up to rounding. A step whose
    loss, gradient or new state is not finite changes nothing but the step count, and reports ``finite = 0``.
    """
    groups = _Groups(task, structure, frozen_graphs, config.accumulate)

    def train_step(state: State, frozen: dict, batch: dict) -> tuple[State, dict[str, Float[Array, ""]]]:
        key, step = jax.random.fold_in(jax.random.key(config.seed + 1), state["step"]), state["step"]
        grads, found = groups.whole(state, frozen, batch, key)
        metrics = found.metrics
        norm = {group: optax.tree.norm(grads[group]) for group in grads}
        finite = jnp.isfinite(sum(norm.values()) + sum(jnp.sum(m) for m in metrics.values()))
        asked = {group: moves(metrics, step) for group, moves in task.active.items()}
        active = {group: moves for group, moves in asked.items() if moves is not None}
        learned, changes = apply_gradients(structure, state, grads, active)
        new, measured = apply_updates(task, structure, learned, found, key)
        # What follows from finite numbers by sums and products is finite; this much can be known before anything is
        # written, so that the old state and the new one are never both in memory.
        finite &= is_finite((changes, new["variables"], measured, state["ema"]))
        new["ema"] = averages(state, learned, new, config.ema.decay)
        new = jax.tree.map(lambda n, old: jnp.where(finite, n, old), new, state)
        new["step"] = step + 1
        metrics = dict(metrics, **measured, finite=finite.astype(jnp.float32))
        for group in grads:
            suffix = "" if len(grads) == 1 else f"_{group}"
            metrics[f"gradient_norm{suffix}"] = norm[group]
            metrics[f"learning_rate{suffix}"] = structure.rates[group](step)
            metrics |= codebook_norms(grads[group], structure.freeze[group])
        return new, metrics

    return train_step


class _Groups:
    """Losses and gradients of the parameter groups of a task, over ``count`` micro-batches."""

    def __init__(self, task: Task, structure: Structure, frozen_graphs: dict[str, nnx.GraphDef], count: int):
        self.task, self.structure, self.frozen_graphs, self.count = task, structure, frozen_graphs, count

    def parts(self, frozen: dict, batch: dict) -> list[tuple[dict[str, Any], int]]:
        """The videos of a batch and its images, with what frozen modules make of both at once, and their numbers."""
        modules = {name: nnx.merge(graph, frozen[name]) for name, graph in self.frozen_graphs.items()}
        given = videos_and_images(batch)
        counts = [len(jax.tree.leaves(part)[0]) for part in given]
        return list(zip(map(dict, self.task.prepare(modules, given)), counts, strict=True))

    def loss(
        self,
        group: str,
        own: Any,
        state: State,
        frozen: dict,
        examples: Sequence[tuple[dict[str, Any], int]],
        key: jax.Array,
        micro: MicroBatch,
    ) -> tuple[Float[Array, ""], Outcome]:
        """The loss of a group whose parameters are ``own``: the mean over videos and images by their numbers.

        What is handed over, and rows, are those of each part by its number.
        """
        # No gradient goes to what is frozen, nor any work into one.
        freeze = self.structure.freeze[group]
        own = jax.tree_util.tree_map_with_path(
            lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path, freeze) else x, own
        )
        modules = self.structure.modules({**state["params"], group: own}, state["variables"])
        modules |= {name: nnx.merge(graph, frozen[name]) for name, graph in self.frozen_graphs.items()}
        modules |= {name: self._average(state, of) for name, of in self.task.averages.items()}
        losses, found, counts = [], [], [count for _, count in examples]
        for i, (part, _) in enumerate(examples):
            part_key = jax.random.fold_in(named_key(key, group), i)
            value, outcome = self.task.losses[group](modules, part, part_key, state["step"], micro)
            losses.append(value)
            found.append(outcome)
        metrics = {name: weighted_mean([o.metrics[name] for o in found], counts) for name in found[0].metrics}
        sums = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), [outcome.sums for outcome in found])
        handed, rows = ({f"part_{i}": getattr(o, name) for i, o in enumerate(found)} for name in ("outputs", "rows"))
        return weighted_mean(losses, counts), Outcome(metrics, handed, sums, rows)

    def _average(self, state: State, group: str) -> nnx.Module:
        """The module of a group with the moving average of its parameters, as the step began."""
        params = overlay(state["params"][group], state["ema"].get(group, {}))
        return nnx.merge(self.structure.graphs[group], jax.lax.stop_gradient(params), state["variables"][group])

    def gradients(
        self,
        state: State,
        frozen: dict,
        batch: dict,
        key: jax.Array,
        number: Any = 0,
        known: dict[str, list] | None = None,
    ) -> tuple[dict, Outcome]:
        """Gradients of every group on one micro-batch, and what the groups found there.

        Args:
          number: of the micro-batch.
          known: what ``MicroBatch.mean`` gives in the loss of each group.
        """
        grads, metrics, sums, rows, examples = {}, {}, {}, {}, self.parts(frozen, batch)
        for group in self.task.losses:
            micro = MicroBatch(number, self.count, known and known[group])
            loss = functools.partial(self.loss, group)
            arguments = (state["params"][group], state, frozen, examples, key, micro)
            (_, outcome), grads[group] = jax.value_and_grad(loss, has_aux=True)(*arguments)
            hand_over(examples, outcome)
            metrics.update(outcome.metrics)
            sums[group], rows[group] = outcome.sums, outcome.rows
        return grads, Outcome(metrics, {}, sums, rows)

    def means(self, state: State, frozen: dict, batch: dict, key: jax.Array, number: Any = 0) -> dict[str, list]:
        """What the losses of the groups pass through ``MicroBatch.mean`` on one micro-batch, and nothing else."""
        means, examples = {}, self.parts(frozen, batch)
        for group in self.task.losses:
            micro, own = MicroBatch(number, self.count), state["params"][group]
            _, outcome = self.loss(group, own, state, frozen, examples, key, micro)
            hand_over(examples, outcome)
            means[group] = micro.means
        return means

    def whole(self, state: State, frozen: dict, batch: dict, key: jax.Array) -> tuple[dict, Outcome]:
        """Gradients and findings of the whole batch: means of gradients and metrics, sums, and rows in their order."""
        if self.count == 1:
            return self.gradients(state, frozen, batch, key)
        batches = jax.tree.map(lambda x: MicroBatch.split(x, self.count), batch)
        scanned = (batches, jnp.arange(self.count))

        def mean(total: Any) -> Any:
            return jax.tree.map(lambda x: x / self.count, total)

        def find(batch: dict, number: Array) -> dict[str, list]:
            return self.means(state, frozen, batch, key, number)

        known = None
        if jax.tree.leaves(jax.eval_shape(find, *jax.tree.map(lambda x: x[0], scanned))):
            known = mean(_sum_over(lambda *one: (find(*one), ()), scanned)[0])

        def body(batch: dict, number: Array) -> tuple[Any, Any]:
            grads, found = self.gradients(state, frozen, batch, key, number, known)
            return (grads, found.metrics, found.sums), found.rows

        (grads, metrics, sums), rows = _sum_over(body, scanned)
        sizes = [len(jax.tree.leaves(part)[0]) // self.count for part in videos_and_images(batch)]
        rows = {group: self._joined(by_part, sizes) for group, by_part in rows.items()}
        return mean(grads), Outcome(mean(metrics), {}, sums, rows)

    @staticmethod
    def _joined(rows: dict[str, Any], sizes: Sequence[int]) -> dict[str, Any]:
        """The rows of all micro-batches in the order of the batch; by part, of which each has so many examples."""
        return {
            f"part_{i}": jax.tree.map(lambda x, size=size: MicroBatch.join(x, size), rows[f"part_{i}"])
            for i, size in enumerate(sizes)
        }


def hand_over(examples: Sequence[tuple[dict[str, Any], int]], outcome: Outcome) -> None:
    """Adds to the videos and to the images what a group hands over of each."""
    for i, (part, _) in enumerate(examples):
        part.update(outcome.outputs[f"part_{i}"])


def _sum_over(body: Callable[..., tuple[Any, Any]], scanned: tuple) -> tuple[Any, Any]:
    """Of ``body(*one) -> (to add up, to keep)`` for each one that is scanned the sum of the first, and the others."""
    first = jax.eval_shape(body, *jax.tree.map(lambda x: x[0], scanned))[0]

    def turn(total: Any, one: tuple) -> tuple[Any, Any]:
        added, kept = body(*one)
        return jax.tree.map(jnp.add, total, added), kept

    return jax.lax.scan(turn, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first), scanned)


def apply_gradients(
    structure: Structure, state: State, grads: dict, active: dict[str, Bool[Array, ""]]
) -> tuple[State, dict[str, Any]]:
    """One optimizer step of every group but those that are not ``active``, and the changes of the parameters.

    The step count of a group that rests goes on, so that its learning rate follows the steps of the run.
    """
    params, optimizer, changes = {}, {}, {}
    for group in structure.graphs:
        updates, optimizer[group] = structure.optimizers[group].update(
            grads[group], state["optimizer"][group], state["params"][group]
        )
        params[group], changes[group] = optax.apply_updates(state["params"][group], updates), updates
        if group in active:
            old = state["params"][group], state["optimizer"][group]
            params[group], optimizer[group] = jax.tree.map(
                lambda new, old, moves=active[group]: new if new.dtype == jnp.int32 else jnp.where(moves, new, old),
                (params[group], optimizer[group]),
                old,
            )
            changes[group] = jax.tree.map(lambda x, moves=active[group]: jnp.where(moves, x, 0), updates)
    return {**state, "params": params, "optimizer": optimizer}, changes


def apply_updates(
    task: Task, structure: Structure, state: State, found: Outcome, key: jax.Array
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """What ``task.updates`` make of a step's state, but for frozen parts, and their metrics."""
    modules, metrics = structure.modules(state["params"], state["variables"]), {}
    for group in task.losses:
        if group in task.updates:
            rows = jax.tree.map(lambda *rows: jnp.concatenate(rows), *found.rows[group].values())
            metrics |= task.updates[group](modules, found.sums[group], rows, named_key(key, group), state["step"])
    _, params, variables = split(modules)
    changed = {"params": params, "variables": variables}
    changed = {name: overlay(state[name], without_frozen(structure, tree)) for name, tree in changed.items()}
    return {**state, **changed}, metrics


def averages(old: State, learned: State, new: State, ema_decay: float) -> dict[str, Any]:
    """The EMA of the parameters after a step.

    What an update has set anew since the parameters were ``learned``, such as a restarted code, begins anew.
    """
    # Young averages follow quickly, so that a short run is not stuck at its initial values.
    count = old["step"].astype(jnp.float32)
    rate = jnp.minimum(ema_decay, (1 + count) / (10 + count))

    def average(e: Array, before: Array, p: Array) -> Array:
        follows = rate * e + (1 - rate) * p
        return follows if before is p else jnp.where(before == p, follows, p)

    return jax.tree.map(average, old["ema"], *(select(state["params"], old["ema"]) for state in (learned, new)))


def is_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number is; sums are faster than asking each.

    The root leaves 0 and NaN as they are, and keeps XLA from computing the whole sum again in the update of every
    parameter, which takes minutes to compile where there are hundreds of them.
    """
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.isfinite(jnp.sqrt(sum(jnp.sum(x * 0) for x in leaves)))
