"""The one training loop: evaluate → save → step, for every task."""

import dataclasses
import signal
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from videogen import tasks
from videogen.configuration import differences, load_config, save_config
from videogen.data.video_io import side_by_side, write_video
from videogen.errors import UserError
from videogen.parallel import batch_sharding, make_mesh
from videogen.training.checkpoints import Checkpoints, abstract_state
from videogen.training.inputs import build_pipeline, build_source, held_out_batches, place, text_tokenizer
from videogen.training.loading import CONFIG, frozen_modules, load
from videogen.training.metrics import MetricsWriter, Progress
from videogen.training.state import (
    State,
    Structure,
    new_state,
    parameter_count,
    state_shardings,
    structure_of,
)
from videogen.training.step import make_train_step

FREE_KEYS = (
    "steps",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "data.workers",
    "parallel.mesh",
    "tokenizer.checkpoint",
)
"""Config keys that may change between two starts of one run."""

EVAL_BATCHES = 2


class Interrupted(Exception):
    """SIGTERM arrived and the state has been saved."""


class NotFinite(Exception):
    """A loss or gradient was NaN or infinite; the last finite state has been saved."""


class _Termination:
    """Remembers a SIGTERM, so that the loop can save between two steps."""

    def __init__(self):
        self.requested = False
        self._previous = signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, *_: Any) -> None:
        self.requested = True

    def restore(self) -> None:
        signal.signal(signal.SIGTERM, self._previous)


def complete_config(config: Any, workdir: epath.Path) -> None:
    """Writes into a generator's config what its tokenizer and text encoder decide.

    Raises:
      UserError: there is no tokenizer, neither named by the config nor known from an earlier start.
    """
    if config.task != "generator":
        return
    if config.tokenizer.checkpoint:
        loaded = load(config.tokenizer.checkpoint)
        model, digest = loaded.config.model, loaded.hash
    elif (workdir / CONFIG).exists():
        earlier = load_config(workdir / CONFIG).tokenizer
        model, digest = earlier.model, earlier.hash
    else:
        raise UserError("a generator needs its tokenizer: pass --config.tokenizer.checkpoint=RUN_OR_EXPORT")
    tasks.GeneratorTask.complete(config, model, digest)


def claim_workdir(config: Any, workdir: epath.Path) -> None:
    """Writes ``config.json``, after a check against an earlier start of the run.

    Raises:
      UserError: the directory holds a run with other settings.
    """
    if (workdir / CONFIG).exists():
        changed = differences(load_config(workdir / CONFIG), config, ignore=FREE_KEYS)
        if changed:
            raise UserError(
                f"{workdir} holds a run whose {changed[0]!r} differs; use another --workdir or the old settings"
            )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(workdir / CONFIG, config)


@dataclasses.dataclass
class Run:
    """Everything a run is made of between two steps."""

    config: Any
    workdir: epath.Path
    task: tasks.Task
    structure: Structure
    state: State
    frozen: dict[str, nnx.Module]
    checkpoints: Checkpoints
    writer: MetricsWriter

    def modules(self) -> dict[str, nnx.Module]:
        """Live modules for evaluation: EMA parameters where there are any, and the frozen ones."""
        params = self.state["ema"] or self.state["params"]
        return self.structure.modules(params, self.state["variables"]) | self.frozen


def train(config: Any, workdir: epath.PathLike) -> Run:
    """Trains a stage from its config, or goes on where its directory stopped.

    Args:
      config: a complete stage config.
      workdir: the run directory; holds everything the run writes.

    Raises:
      UserError: bad input; nothing on disk is changed.
      Interrupted: SIGTERM; the state is saved.
      NotFinite: NaN or infinity; the state before it is saved.
    """
    workdir = epath.Path(workdir)
    mesh = make_mesh(config.parallel.mesh)
    check_config(config)
    complete_config(config, workdir)
    source = build_source(config, "train")
    task = tasks.build(config)
    claim_workdir(config, workdir)
    with jax.set_mesh(mesh):
        structure, abstract = structure_of(task, config)
        shapes = jax.eval_shape(lambda: new_state(task, structure, config))
        placement = state_shardings(abstract, shapes, mesh)
        checkpoints = Checkpoints(workdir)
        position = {"position": 0}
        if checkpoints.latest is None:
            state = jax.jit(lambda: new_state(task, structure, config), out_shardings=placement)()
        else:
            state, position = checkpoints.restore(abstract_state(shapes, placement))
        frozen = frozen_modules(task, workdir)
        for group in structure.graphs:
            logging.info("%s: %s parameters", group, f"{parameter_count(shapes['params'][group]):,}")
        text = text_tokenizer(config, workdir, source)
        writer = MetricsWriter(workdir, int(state["step"]), enabled=jax.process_index() == 0)
        run = Run(config, workdir, task, structure, state, frozen, checkpoints, writer)
        pipeline = build_pipeline(config, source, text, position["position"])
        termination = _Termination()
        try:
            _loop(run, mesh, placement, pipeline, held_out_batches(config, text, EVAL_BATCHES), termination)
        finally:
            termination.restore()
            pipeline.close()
            checkpoints.close()
            writer.close()
    return run


def check_config(config: Any) -> None:
    """Refuses settings that cannot work, before anything is written."""
    for key in ("steps", "log_every", "eval_every", "checkpoint_every", "accumulate"):
        if config[key] < 1:
            raise UserError(f"config.{key} must be at least 1, got {config[key]}")
    for size in (config.data.batch_size, config.data.image_batch_size):
        if size % config.accumulate:
            raise UserError(f"a batch of {size} does not divide by accumulate = {config.accumulate}")


def _loop(run: Run, mesh: Any, placement: Any, pipeline: Any, held_out: list, termination: _Termination) -> None:
    config = run.config
    step = int(run.state["step"])
    split_frozen = {name: nnx.split(module) for name, module in run.frozen.items()}
    graphs = {name: graph for name, (graph, _) in split_frozen.items()}
    replicated = NamedSharding(mesh, PartitionSpec())
    frozen_state = {name: nnx.to_pure_dict(state) for name, (_, state) in split_frozen.items()}
    frozen_state = jax.tree.map(lambda x: jax.device_put(x, replicated), frozen_state)
    train_step = jax.jit(
        make_train_step(run.task, run.structure, graphs, config),
        in_shardings=(placement, replicated, batch_sharding(mesh)),
        out_shardings=(placement, replicated),
        donate_argnums=0,
    )
    progress = Progress(config.steps, step, config.data.batch_size, enabled=jax.process_index() == 0)
    pending, fresh = None, False
    try:
        while True:
            # What is due at a step that was just restored was done before the run stopped.
            evaluation_due = fresh and (step % config.eval_every == 0 or step == config.steps)
            checkpoint_due = fresh and (step % config.checkpoint_every == 0 or step == config.steps)
            if pending is not None and (evaluation_due or checkpoint_due or termination.requested):
                _record(run, *pending, progress, pipeline)
                pending = None
            if evaluation_due:
                _evaluate(run, step, held_out)
            if checkpoint_due:
                run.checkpoints.save(step, run.state, pipeline.get_state())
            if step >= config.steps:
                break
            if termination.requested:
                run.checkpoints.save(step, run.state, pipeline.get_state())
                raise Interrupted(f"stopped by SIGTERM at step {step}; the state is saved, start again to go on")
            batch = place(next(pipeline), mesh)
            run.state, metrics = train_step(run.state, frozen_state, batch)
            step, fresh = step + 1, True
            progress.update()
            # The metrics of the step before are ready by now: reading them does not block the device.
            if pending is not None:
                _record(run, *pending, progress, pipeline)
            pending = (step, metrics)
    finally:
        progress.close()


def _record(run: Run, step: int, metrics: dict[str, Any], progress: Progress, pipeline: Any) -> None:
    """Checks a finished step and, every ``log_every`` steps, writes its metrics."""
    if not float(metrics["finite"]):
        # The bad step changed nothing but the count, so what is saved is the state before it.
        at = int(run.state["step"])
        run.checkpoints.save(at, run.state, pipeline.get_state())
        run.checkpoints.wait()
        raise NotFinite(
            f"loss or gradient of step {step} is not finite; the last finite parameters are saved at step {at}. "
            "Lower optimizer.*.learning_rate, clip harder, or look at the data of that step"
        )
    if step % run.config.log_every and step != run.config.steps:
        return
    values = {f"train/{name}": float(value) for name, value in metrics.items() if name != "finite"}
    speed = progress.videos_per_second()
    run.writer.write(step, values | {"speed/videos_per_second": speed, "data/skipped": len(pipeline.skipped)})
    progress.show(f"loss {values['train/loss']:.4f}, {speed:.1f} videos/s")


def _evaluate(run: Run, step: int, held_out: list[dict[str, np.ndarray]]) -> None:
    """Metrics and pictures on held-out batches."""
    modules = run.modules()
    values = run.task.evaluate(modules, held_out, run.config.seed)
    run.writer.write(step, {f"eval/{name}": value for name, value in values.items()})
    if jax.process_index() != 0:
        return
    fps = run.config.data.clip.fps or 8
    for picture in run.task.pictures(modules, held_out[0], run.config.seed):
        folder = run.workdir / "samples"
        folder.mkdir(exist_ok=True)
        for i, row in enumerate(picture.rows):
            write_video(folder / f"step_{step:07d}_{picture.name}_{i}.mp4", side_by_side(row), fps)
