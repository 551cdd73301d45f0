"""What the skeletons share: a tiny stage, trained by the real loop, saved, killed and resumed, exported and loaded.

Each skeleton is a system that the framework does not have, written in one test file: it registers its parts in the
tables of the rooms and changes nothing else. So the contracts are enough for it.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import videogen
from videogen import tasks
from videogen.defaults import base, optimizer
from videogen.runs.records import FILE, read_metrics
from videogen.tasks import Task
from videogen.training.loading import Loaded, export_safetensors
from videogen.training.loop import train

BATCH, WIDTH = 4, 16
BLOCK = dict(attention={"heads": 2}, mlp={"hidden": 32})
"""Settings of the blocks of every skeleton."""


class Skeleton(Task):
    """A task with one parameter group, ``model``, which ``network`` builds and ``forward`` gives the loss of."""

    exported = ("model",)

    def __init__(self, config: Any):
        self.config = config
        self.losses, self.bucket_tokens = {"model": self.loss}, [1]

    def network(self, rngs: nnx.Rngs) -> nnx.Module:
        raise NotImplementedError

    def loss(self, modules, batch, key, step, micro=None):
        """(loss, outcome) of some examples."""
        raise NotImplementedError

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"model": self.network(rngs)}

    def evaluate(self, modules, batches, seed):
        zero = jnp.zeros((), jnp.int32)
        batches = [jax.tree.map(jnp.asarray, batch) for batch in batches]
        values = [self.loss(modules, batch, jax.random.key(seed), zero)[0] for batch in batches]
        return {"loss": float(np.mean(values))}


def stage(task: str, frames: int = 4, side: int = 8, **sections: Any) -> ConfigDict:
    """The config of a tiny stage."""
    config = base("float32")
    config.task, config.model = task, {"name": task}
    config.data.clip.update({"frames": frames, "height": side, "width": side})
    config.data.batch_size = config.data.eval_batch_size = BATCH
    config.eval_every = config.checkpoint_every = 2
    config.log_every = 1
    config.optimizer = {"model": optimizer(learning_rate=1e-2, schedule="constant")}
    config.update(sections)
    return config


def trained(config: ConfigDict, folder: Path, steps: int = 4) -> Loaded:
    """Trains the stage twice: at once, and in two goes. Both end equal to the bit; gives the second, loaded."""

    def run(name: str, steps: int) -> None:
        own = config.copy_and_resolve_references()
        own.steps = steps
        train(own, folder / name)

    run("straight", steps)
    run("resumed", steps // 2)
    run("resumed", steps)
    straight, resumed = (videogen.load(folder / name) for name in ("straight", "resumed"))
    for a, b in zip(*(jax.tree.leaves(nnx.state(r.modules["model"])) for r in (straight, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [record["train/loss"] for record in read_metrics(folder / "resumed" / FILE) if "train/loss" in record]
    assert len(losses) == steps and np.isfinite(losses).all()
    export_safetensors(resumed, folder / "export")
    exported = videogen.load(folder / "export")
    for a, b in zip(*(jax.tree.leaves(nnx.state(r.modules["model"])) for r in (exported, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)
    return resumed


def moved(config: ConfigDict, loaded: Loaded) -> None:
    """Asserts that training moved every parameter."""
    task = tasks.build(config)
    fresh = nnx.state(task.init(nnx.Rngs(config.seed))["model"], nnx.Param)
    after = nnx.state(loaded.modules["model"], nnx.Param)
    pairs = zip(nnx.to_flat_state(fresh), nnx.to_flat_state(after), strict=True)
    still = [path for (path, old), (_, new) in pairs if (old.get_value() == new.get_value()).all()]
    assert not still, still
