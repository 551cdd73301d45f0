"""Times the train step of any config on the devices that are here, with random weights and random data.

    python benchmarks/config_step.py --config=configs/phenaki.py:stage=generator,size=debug [--steps=9]
    python benchmarks/config_step.py --config=configs/phenaki.py:stage=generator,size=paper \
        --config.model.width=1536 --config.model.heads=12 --config.model.mlp_width=6144 --config.data.source.name=tokens

Prints one JSON line: {"command", "seconds_per_step", "videos_per_second", "tokens_per_second", "tflops_per_second",
"mfu", "parameters", "argument_bytes", "temporary_bytes", "batch", "dtype", "devices"}; the median after one step that
is not counted. MFU is of the vendor's bfloat16 peak and null where that is not known (CPUs); bytes are of one device,
as the compiler plans them. --out appends the line to a file.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import app, tasks  # noqa: E402
from videogen.allocation import use_large_pages  # noqa: E402
from videogen.parallel import flops, make_mesh  # noqa: E402
from videogen.parallel.topology import peak_flops  # noqa: E402
from videogen.training.inputs import abstract_batch, check_batch, largest_bucket, place  # noqa: E402
from videogen.training.planning import complete_for_planning  # noqa: E402
from videogen.training.state import (  # noqa: E402
    frozen_shardings,
    new_state,
    parameter_count,
    place_frozen,
    state_shardings,
    structure_of,
)
from videogen.training.step import jit_train_step  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE:stage=…,size=… of the stage to time.")
STEPS = flags.DEFINE_integer("steps", 9, "Timed steps.", lower_bound=3)
OUT = flags.DEFINE_string("out", None, "File that the line is appended to.")


def random_batch(shapes: dict[str, Any], task: tasks.Task) -> dict[str, Any]:
    """Noise in the place of pixels, and ids that exist."""
    random = np.random.default_rng(0)
    highest = {"video": 256, "indices": min(getattr(getattr(task, "tokenizer", None), "vocabulary", None) or (2,))}

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return random.integers(0, highest.get(path[-1].key, 2), shape.shape).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def measure(config: Any, steps: int) -> dict[str, Any]:
    """The measurement of a completed config."""
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
        times = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, weights, batch))
            times.append(time.perf_counter() - start)
    seconds, memory = statistics.median(times[1:]), compiled.memory_analysis()
    videos, peak = config.data.batch_size, peak_flops(mesh.devices.flatten())
    return {
        "seconds_per_step": round(seconds, 4),
        "videos_per_second": round(videos / seconds, 2),
        "tokens_per_second": round(videos * task.grid.tokens / seconds) if hasattr(task, "grid") else None,
        "tflops_per_second": round(work / seconds / 1e12, 3),
        "mfu": round(work / seconds / peak, 4) if peak else None,
        "parameters": {group: parameter_count(state["params"][group]) for group in structure.graphs},
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "batch": videos,
        "dtype": str(jnp.dtype(config.parallel.dtype)),
        "devices": f"{mesh.size} × {jax.devices()[0].device_kind}",
    }


def main() -> None:
    config = CONFIG.value.copy_and_resolve_references()
    complete_for_planning(config)
    line = json.dumps({"command": "python " + " ".join(sys.argv), **measure(config, STEPS.value)})
    print(line, flush=True)
    if OUT.value:
        with Path(OUT.value).open("a") as file:
            file.write(f"{line}\n")


if __name__ == "__main__":
    use_large_pages()
    flags.mark_flag_as_required("config")
    app.run(main)
