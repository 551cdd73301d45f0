"""Steps of any config on the devices that are here, with random weights and random data."""

import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from videogen import tasks
from videogen.data.inputs import abstract_batch, check_batch, largest_bucket, place
from videogen.parallel import flops, make_mesh
from videogen.training.state import (
    frozen_shardings,
    new_state,
    parameter_count,
    place_frozen,
    state_shardings,
    structure_of,
)
from videogen.training.step import jit_train_step


def random_batch(shapes: dict[str, Any], task: tasks.Task) -> dict[str, Any]:
    """Noise in the place of pixels, and ids that exist."""
    random = np.random.default_rng(0)
    highest = {"video": 256, "tokens/video": min(getattr(getattr(task, "tokenizer", None), "vocabulary", None) or (2,))}

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return random.integers(0, highest.get(path[-1].key, 2), shape.shape).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run(config: Any, steps: int) -> dict[str, Any]:
    """Steps of a completed config on random weights and one random batch.

    Returns:
      ``times`` in seconds and ``metrics`` of every step, and what is known before: ``work`` (floating-point operations
      of a step), ``memory``, ``parameters`` by group, ``tokens`` of a clip and the ``mesh``.
    """
    mesh = make_mesh(config.parallel.mesh)
    check_batch(config, mesh.shape)
    task = tasks.build(config)
    frozen = place_frozen(task.frozen(None), mesh, config.parallel.frozen)
    with jax.set_mesh(mesh):
        structure, abstract = structure_of(task, config)
        shapes = jax.eval_shape(lambda: new_state(task, structure, config))
        placement = state_shardings(abstract, shapes, mesh)
        state = jax.jit(lambda: new_state(task, structure, config), out_shardings=placement)()
        split = {name: nnx.split(module) for name, module in frozen.items()}
        weights = {name: nnx.to_pure_dict(values) for name, (_, values) in split.items()}
        graphs = {name: graph for name, (graph, _) in split.items()}
        frozen_placement = frozen_shardings(frozen, mesh, config.parallel.frozen)
        step = jit_train_step(task, structure, graphs, config, mesh, placement, frozen_placement)
        batch = random_batch(abstract_batch(config, task), task)
        batch = place(batch, mesh, largest_bucket(config).batch_size, config.data.image_batch_size)
        traced = step.trace(state, weights, batch)
        work = flops.count(traced.jaxpr).model
        compiled = traced.lower().compile()
        times, metrics = [], []
        for _ in range(steps):
            start = time.perf_counter()
            state, values = jax.block_until_ready(compiled(state, weights, batch))
            times.append(time.perf_counter() - start)
            metrics.append({name: float(value) for name, value in values.items()})
    return {
        "times": times,
        "metrics": metrics,
        "work": work,
        "memory": compiled.memory_analysis(),
        "parameters": {group: parameter_count(state["params"][group]) for group in structure.graphs},
        "tokens": task.grid.tokens if hasattr(task, "grid") else None,
        "mesh": mesh,
    }
