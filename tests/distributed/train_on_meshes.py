"""Trains a tiny stage for two steps on each of the meshes given as JSON, and prints the losses, a line a mesh.

    python tests/distributed/train_on_meshes.py tokenizer|generator '[{"data": 8}, …]' '["none", …]'
    python tests/distributed/train_on_meshes.py memory '{"fsdp": 8}'

The last argument names remat policies. A mesh of one device takes the first. Every run starts from the same state on
the same batches. ``memory`` prints what the compiler reports of a deeper generator's step and of its initialisation.
"""

import json
import math
import re
import sys
from typing import Any

import jax
import numpy as np
from flax import nnx

from videogen import tasks, tokenizers
from videogen.configs import phenaki
from videogen.data.inputs import place
from videogen.defaults import optimizer
from videogen.parallel import make_mesh
from videogen.training.state import frozen_shardings, new_state, state_shardings, structure_of
from videogen.training.step import jit_train_step

STEPS, BATCH = 2, 8
TOKENIZER = {"width": 128, "heads": 8, "mlp_width": 256, "encoder_layers": (1, 1), "decoder_layers": (0, 1)}


def tiny(stage: str, remat: str) -> Any:
    """The stage's config with eight heads and a grid eight wide, so that every mesh axis of 8 divides something."""
    config = phenaki.get_config(f"stage={stage},size=debug")
    config.data.batch_size, config.steps, config.parallel.remat = BATCH, STEPS, remat
    config.data.clip.update({"frames": 5, "height": 8, "width": 32})
    tokenizer = config.model if stage == "tokenizer" else config.parts.tokenizer.model
    tokenizer.update(TOKENIZER)
    tokenizer.quantizer.update({"size": 64, "restart_threshold": 0.0})
    if stage == "generator":
        config.model.transformer.update({"width": 128, "layers": 2, "heads": 8, "mlp_width": 256})
        config.text.encoder.update({"width": 128, "heads": 8})
        config.optimizer = {"generator": optimizer(learning_rate=1e-3)}
    return config


def batches() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        {
            "video": random.integers(0, 256, (BATCH, 5, 8, 32, 3), np.uint8),
            "text_ids": random.integers(0, 512, (BATCH, 24), np.int32),
            "text_mask": np.arange(24) < random.integers(1, 25, (BATCH, 1)),
        }
        for _ in range(STEPS)
    ]


class Training:
    """One stage and what it needs on any mesh."""

    def __init__(self, config: Any):
        self.config, self.task = config, tasks.build(config)
        self.structure, self.abstract = structure_of(self.task, config)
        self.frozen = self.task.frozen(
            lambda *_: tokenizers.build(config.parts.tokenizer.model, remat="none", rngs=nnx.Rngs(1))
        )
        self.weights = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in self.frozen.items()}

    def new_state(self) -> Any:
        return new_state(self.task, self.structure, self.config)

    def placement(self, mesh: Any) -> tuple[Any, Any]:
        """Shardings of the state and of the frozen weights."""
        state = state_shardings(self.abstract, jax.eval_shape(self.new_state), mesh)
        return state, frozen_shardings(self.frozen, mesh, "sharded")

    def step(self, mesh: Any) -> Any:
        """The compiled step of every run."""
        graphs = {name: nnx.graphdef(module) for name, module in self.frozen.items()}
        return jit_train_step(self.task, self.structure, graphs, self.config, mesh, *self.placement(mesh))

    def losses(self, start: Any, sizes: dict[str, int]) -> list[float]:
        """Training losses on one mesh from the host arrays ``start``."""
        mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
        values = []
        with jax.set_mesh(mesh):
            state, weights = jax.device_put((start, self.weights), self.placement(mesh))
            step = self.step(mesh)
            for batch in batches():
                state, metrics = step(state, weights, place(batch, mesh, BATCH))
                values.append(float(metrics["loss"]))
        return values


def memory(sizes: dict[str, int]) -> dict[str, Any]:
    """Bytes per device of state, step and initialisation, and the parameters a device holds or computes whole."""
    config = tiny("generator", "full")
    config.model.transformer.update({"width": 256, "layers": 8, "heads": 8, "mlp_width": 1024})
    mesh, training = make_mesh(sizes), Training(config)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(training.new_state)
        placement, _ = training.placement(mesh)
        start = jax.jit(training.new_state, out_shardings=placement).lower().compile()
        step = training.step(mesh).lower(state, training.weights, place(batches()[0], mesh, BATCH)).compile()
    report, start_report = step.memory_analysis(), start.memory_analysis()
    params = list(zip(jax.tree.leaves(state["params"]), jax.tree.leaves(placement["params"]), strict=True))
    sharded = {p.shape for p, s in params if "fsdp" in s.spec and p.ndim == 3}
    shapes = set(re.findall(r"f32\[[0-9,]+\]", step.as_text() + start.as_text()))
    shards = jax.tree.map(lambda leaf, s: math.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize, state, placement)
    return {
        "parameters": sum(p.size * 4 for p, _ in params),
        "state_shards": sum(jax.tree.leaves(shards)),
        "frozen": sum(leaf.nbytes for leaf in jax.tree.leaves(training.weights)),
        "arguments": report.argument_size_in_bytes,
        "temporary": report.temp_size_in_bytes,
        "start_output": start_report.output_size_in_bytes,
        "start_temporary": start_report.temp_size_in_bytes,
        "sharded": len(sharded),
        "whole": [shape for shape in sharded if f"f32[{','.join(map(str, shape))}]" in shapes],
    }


def main(stage: str, meshes: str, policies: str = '["none"]') -> None:
    if stage == "memory":
        print(json.dumps(memory(json.loads(meshes))))
        return
    start = None
    for policy in json.loads(policies):
        training = Training(tiny(stage, policy))
        start = start or jax.device_get(jax.jit(training.new_state)())
        for sizes in json.loads(meshes):
            print(json.dumps(training.losses(start, sizes)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
