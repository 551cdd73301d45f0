"""The one training loop: evaluate → save → step, for every task."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import nnx

from videogen import tasks
from videogen.data import read_buckets
from videogen.data.video_io import side_by_side, write_video
from videogen.errors import UserError, near_matches
from videogen.parallel import flops, make_mesh
from videogen.parallel.distributed import process_zero_first, wait_for_all
from videogen.parallel.topology import peak_flops
from videogen.training.checkpoints import Checkpoints, KeepLastAndBest, abstract_state
from videogen.training.faults import Termination, Watchdog
from videogen.training.goodput import Goodput
from videogen.training.inputs import (
    build_pipeline,
    build_source,
    check_batch,
    held_out_batches,
    place,
    text_tokenizer,
)
from videogen.training.loading import frozen_modules
from videogen.training.metrics import MetricsWriter, Progress
from videogen.training.profiling import Profiler
from videogen.training.run_report import write_run_report
from videogen.training.state import (
    State,
    Structure,
    averaged,
    check_frozen_layout,
    frozen_shardings,
    new_state,
    parameter_count,
    place_frozen,
    state_shardings,
    structure_of,
)
from videogen.training.step import jit_train_step
from videogen.training.stops import Interrupted, NotFinite, storage_errors
from videogen.training.warm_start import Weights, start, starting_weights
from videogen.training.workdir import claim_workdir, complete_config

EVAL_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Program:
    """The train step compiled for batches of one bucket.

    Attributes:
      step: ``(state, frozen, batch) -> (state, metrics)``.
      flops: model floating-point operations of one step, over all devices.
    """

    step: jax.stages.Compiled
    flops: float


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
    goodput: Goodput
    watchdog: Watchdog
    pictures: list[tasks.Picture] = dataclasses.field(default_factory=list)

    def modules(self) -> dict[str, nnx.Module]:
        """Live modules for evaluation: EMA parameters where there are any, and the frozen ones."""
        return self.structure.modules(averaged(self.state), self.state["variables"]) | self.frozen

    @contextlib.contextmanager
    def waiting(self, what: str, step: int) -> Iterator[None]:
        """The loop waits for ``what`` (of ``goodput.LOSSES``) after ``step`` finished steps."""
        self.watchdog.beat(step, what)
        with self.goodput.lost(what):
            yield
        self.watchdog.beat(step, "step")


def train(config: Any, workdir: epath.PathLike, profile: tuple[int, int] | None = None) -> Run:
    """Trains a stage from its config, or goes on where its directory stopped.

    Args:
      config: a complete stage config.
      workdir: the run directory; holds everything the run writes.
      profile: first step and number of steps to trace.

    Raises:
      UserError: bad input; nothing on disk is changed.
      Interrupted: SIGTERM or a preemption notice; the state is saved.
      NotFinite: NaN or infinity; the state before it is saved.
      NotWritten: the run directory is full or read-only; the last good checkpoint is still there.
    """
    workdir = epath.Path(workdir)
    mesh = make_mesh(config.parallel.mesh)
    check_config(config)
    check_batch(config, mesh.shape)
    with contextlib.ExitStack() as stack:
        goodput = stack.enter_context(contextlib.closing(Goodput()))
        watchdog = stack.enter_context(contextlib.closing(Watchdog(config.stall_seconds)))
        complete_config(config, workdir)
        source = build_source(config, "train")
        task = tasks.build(config)
        # Read onto one device, hence outside the mesh.
        weights = starting_weights(config, workdir, task)
        with process_zero_first():
            claim_workdir(config, workdir)
            text = text_tokenizer(config, workdir, source)
        frozen = frozen_modules(task, workdir)
        frozen = place_frozen(frozen, mesh, config.parallel.frozen)
        stack.enter_context(jax.set_mesh(mesh))
        structure, abstract = structure_of(task, config)
        shapes = jax.eval_shape(lambda: new_state(task, structure, config))
        placement = state_shardings(abstract, shapes, mesh)
        policy = KeepLastAndBest(config.checkpoint.keep, config.checkpoint.keep_best.mode)
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, policy)))
        with goodput.lost("compile" if checkpoints.latest is None else "checkpoint"):
            state, position = _first_state(task, structure, config, checkpoints, shapes, placement, weights)
        for group in structure.graphs:
            logging.info("%s: %s parameters", group, f"{parameter_count(shapes['params'][group]):,}")
        with process_zero_first():
            writer = MetricsWriter(workdir, int(state["step"]), enabled=jax.process_index() == 0)
        stack.enter_context(contextlib.closing(writer))
        run = Run(config, workdir, task, structure, state, frozen, checkpoints, writer, goodput, watchdog)
        for record in writer.records:
            _score(run, record["step"], record)
        held_out = held_out_batches(config, text, EVAL_BATCHES)
        pipeline = stack.enter_context(contextlib.closing(build_pipeline(config, source, text, position, mesh)))
        termination = Termination()
        stack.callback(termination.restore)
        profiler = stack.enter_context(contextlib.closing(Profiler(workdir, profile)))
        _loop(run, mesh, placement, pipeline, held_out, termination, profiler)
    return run


def check_config(config: Any) -> None:
    """Refuses settings that cannot work, before anything is written."""
    for key in ("steps", "log_every", "eval_every", "checkpoint_every", "accumulate"):
        if config[key] < 1:
            raise UserError(f"config.{key} must be at least 1, got {config[key]}")
    check_frozen_layout(config.parallel.frozen)
    if config.checkpoint.keep < 1 or config.stall_seconds <= 0:
        raise UserError("config.checkpoint.keep must be at least 1 and config.stall_seconds above 0")
    if config.checkpoint.keep_best.mode not in ("max", "min"):
        raise UserError(f"config.checkpoint.keep_best.mode is max or min, got {config.checkpoint.keep_best.mode!r}")


def _first_state(
    task: tasks.Task,
    structure: Structure,
    config: Any,
    checkpoints: Checkpoints,
    shapes: State,
    placement: State,
    weights: Weights | None,
) -> tuple[State, int]:
    """The state and data position to begin with: of the latest sound checkpoint, or fresh ones with ``weights``."""
    if checkpoints.latest is not None:
        state, position = checkpoints.restore(abstract_state(shapes, placement))
        return state, position["position"]
    state = jax.jit(lambda: new_state(task, structure, config), out_shardings=placement)()
    if weights is not None:
        state = start(state, placement, weights)
        # From here on the run needs nothing but its own directory.
        checkpoints.save(0, state, {"position": 0})
        checkpoints.wait()
    return state, 0


def _prepare_step(run: Run, mesh: Any, placement: State) -> tuple[Any, dict[str, Any]]:
    """The step function, not yet compiled, and the arrays of the frozen modules."""
    split = {name: nnx.split(module) for name, module in run.frozen.items()}
    frozen_placement = frozen_shardings(run.frozen, mesh, run.config.parallel.frozen)
    frozen_state = {name: nnx.to_pure_dict(state) for name, (_, state) in split.items()}
    graphs = {name: graph for name, (graph, _) in split.items()}
    step = jit_train_step(run.task, run.structure, graphs, run.config, mesh, placement, frozen_placement)
    return step, frozen_state


def _loop(
    run: Run, mesh: Any, placement: Any, pipeline: Any, held_out: list, termination: Termination, profiler: Profiler
) -> None:
    config = run.config
    buckets = read_buckets(config.data)
    step = int(run.state["step"])
    train_step, frozen_state = _prepare_step(run, mesh, placement)
    enabled = jax.process_index() == 0
    progress = Progress(config.steps, step, enabled)
    progress.peak = peak_flops(mesh.devices.flatten())
    programs: dict[tuple, Program] = {}
    pending, fresh = None, False
    try:
        while True:
            # What is due at a step that was just restored was done before the run stopped.
            evaluation_due = fresh and (step % config.eval_every == 0 or step == config.steps)
            checkpoint_due = fresh and (step % config.checkpoint_every == 0 or step == config.steps)
            stopping = termination.due(step)
            if pending is not None and (evaluation_due or checkpoint_due or stopping):
                _record(run, *pending, progress, pipeline)
                pending = None
            if evaluation_due:
                with run.waiting("evaluation", step):
                    _evaluate(run, step, held_out)
            if checkpoint_due or stopping:
                _save(run, step, pipeline)
            if step >= config.steps:
                break
            if stopping:
                run.checkpoints.wait()
                raise Interrupted(f"stopped by SIGTERM at step {step}; the state is saved, start again to go on")
            with run.waiting("input", step - (pending is not None)):
                batch = next(pipeline)
                batch = place(batch, mesh, buckets[pipeline.bucket].batch_size, config.data.image_batch_size)
            shapes = tuple(array.shape for array in jax.tree.leaves(batch))
            if shapes not in programs:
                with run.waiting("compile", step):
                    traced = train_step.trace(run.state, frozen_state, batch)
                    programs[shapes] = Program(traced.lower().compile(), flops.count(traced.jaxpr).model)
                    wait_for_all()
            program = programs[shapes]
            with profiler.step(step, run.state):
                run.state, metrics = run.goodput.step(program.step, run.state, frozen_state, batch)
            step, fresh = step + 1, True
            videos = buckets[pipeline.bucket].batch_size
            progress.update(videos, videos * run.task.bucket_tokens[pipeline.bucket], program.flops)
            run.checkpoints.wait(timeout=0)  # tells at once when a save under way has failed
            # The metrics of the step before are ready by now: reading them does not block the device.
            if pending is not None:
                _record(run, *pending, progress, pipeline)
            pending = (step, metrics)
    finally:
        progress.close()
    with run.waiting("checkpoint", step):
        run.checkpoints.wait()
    if fresh:
        _finish(run, step)


def _save(run: Run, step: int, pipeline: Any) -> None:
    with run.waiting("checkpoint", step):
        run.checkpoints.save(step, run.state, pipeline.get_state())
        run.writer.flush()


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
    run.watchdog.beat(step, "step")
    if step % run.config.log_every and step != run.config.steps:
        return
    values = {f"train/{name}": float(value) for name, value in metrics.items() if name != "finite"}
    speeds = progress.speeds()
    goodput = {f"goodput/{name}": share for name, share in run.goodput.shares().items()}
    run.writer.write(step, values | speeds | goodput | {"data/skipped": len(pipeline.skipped)})
    progress.show(f"loss {values['train/loss']:.4f}, {speeds['speed/videos_per_second']:.1f} videos/s")


def _evaluate(run: Run, step: int, held_out: list[dict[str, np.ndarray]]) -> None:
    """Metrics and pictures on held-out batches."""
    modules = run.modules()
    values = run.task.evaluate(modules, held_out, run.config.seed)
    values = {f"eval/{name}": value for name, value in values.items()}
    run.writer.write(step, values)
    _score(run, step, values)
    run.pictures = run.task.pictures(modules, held_out[0], run.config.seed)
    if jax.process_index() != 0:
        return
    fps = run.config.data.clip.fps or 8
    folder = run.workdir / "samples"
    with storage_errors(run.workdir, "make room there and start the same command again"):
        folder.mkdir(exist_ok=True)
        for picture in run.pictures:
            for i, row in enumerate(picture.rows):
                write_video(folder / f"step_{step:07d}_{picture.name}_{i}.mp4", side_by_side(row), fps)


def _score(run: Run, step: int, values: dict[str, float]) -> None:
    """Tells the checkpoints what ``checkpoint.keep_best`` goes by, where ``values`` come from an evaluation."""
    metric = run.config.checkpoint.keep_best.metric
    known = {name.removeprefix("eval/"): value for name, value in values.items() if name.startswith("eval/")}
    if not metric or not known:
        return
    if metric not in known:
        raise UserError(f"checkpoint.keep_best.metric={metric!r} is not evaluated{near_matches(metric, known)}")
    run.checkpoints.score(step, known[metric])


def _finish(run: Run, step: int) -> None:
    """The last record, of where the time went, and the report of the run."""
    run.writer.write(step, {f"goodput/{name}": share for name, share in run.goodput.shares().items()})
    run.writer.flush()
    if jax.process_index() == 0:
        with storage_errors(run.workdir, "make room there; the checkpoints are complete"):
            write_run_report(run.workdir, run.config, run.pictures)
