"""Two steps of a tiny tokenizer in micro-batches on each of the meshes given as JSON; prints a line of JSON a mesh.

    python tests/distributed/accumulate_on_meshes.py '[[1, {}], [2, {"data": 8}], …]'

Each pair is the number of micro-batches and the mesh. A line has the losses, and every collective of the compiled step
that moves data between devices without adding it up: its kind and bytes.
"""

import json
import math
import sys

import jax
import numpy as np

from tests.distributed.train_on_meshes import Training, tiny
from videogen.data.inputs import place
from videogen.parallel import make_mesh
from videogen.parallel.hlo import collectives, parse

BATCH = 32


def batches() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"video": random.integers(0, 256, (BATCH, 5, 8, 32, 3), np.uint8)} for _ in range(2)]


def main(runs: str) -> None:
    start = None
    for count, sizes in json.loads(runs):
        config = tiny("tokenizer", "none")
        config.accumulate, config.data.batch_size = count, BATCH
        config.model.quantizer.restart_threshold = 0.5  # its latents are rows that go through the step
        config.losses.perceptual.weight = config.losses.adversarial.weight = 0.0
        training = Training(config)
        start = start or jax.device_get(jax.jit(training.new_state)())
        mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
        with jax.set_mesh(mesh):
            state, weights = jax.device_put((start, training.weights), training.placement(mesh))
            placed = [place(batch, mesh, BATCH) for batch in batches()]
            step, losses = training.step(mesh).lower(state, weights, placed[0]).compile(), []
            for batch in placed:
                state, metrics = step(state, weights, batch)
                losses.append(float(metrics["loss"]))
        moved = [(c.kind, c.payload) for c in collectives(parse(step.as_text()))]
        moved = [(kind, size) for kind, size in moved if kind not in ("all-reduce", "reduce-scatter")]
        print(json.dumps({"losses": losses, "moved": moved}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
