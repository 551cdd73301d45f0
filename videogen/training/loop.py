"""The one training loop: save → evaluate → step, for every task."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import nnx

from videogen import tasks
from videogen.configuration import shown_rate
from videogen.data import read_buckets
from videogen.data.inputs import build_pipeline, place
from videogen.data.video_io import side_by_side, write_video
from videogen.errors import UserError, near_matches
from videogen.parallel import flops
from videogen.parallel.distributed import process_zero_first, wait_for_all
from videogen.parallel.topology import peak_flops
from videogen.runs.checkpoints import Checkpoints, KeepLastAndBest, abstract_state
from videogen.runs.faults import Termination, Watchdog
from videogen.runs.goodput import Goodput
from videogen.runs.marks import mark, marks_at
from videogen.runs.profiling import Profiler
from videogen.runs.records import MetricsWriter, Progress
from videogen.runs.stops import Interrupted, NotFinite, NotWritten, storage_errors
from videogen.training.checks import check_config, memory_of_a_device
from videogen.training.codebooks import CodebookWatch
from videogen.training.memory import check_program, memory_errors
from videogen.training.start import Start, batch_shapes, prepare
from videogen.training.state import State, averaged, new_state, parameter_count, place_frozen
from videogen.training.warm_start import with_weights


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
    """Everything a run is made of between two steps.

    Attributes:
      start: what it began with.
      state: the train state.
      frozen: the frozen modules, on the mesh.
      codebooks: tells of those that get no gradient.
      warned: names of the task's warnings that were logged.
      pictures: of the last evaluation.
      changed: whether anything was left to do when the run started.
    """

    start: Start
    state: State
    frozen: dict[str, nnx.Module]
    checkpoints: Checkpoints
    writer: MetricsWriter
    goodput: Goodput
    watchdog: Watchdog
    codebooks: CodebookWatch = dataclasses.field(default_factory=CodebookWatch)
    warned: set[str] = dataclasses.field(default_factory=set)
    pictures: list[tasks.Picture] = dataclasses.field(default_factory=list)
    changed: bool = False

    @property
    def config(self) -> Any:
        """The completed config."""
        return self.start.config

    @property
    def workdir(self) -> epath.Path:
        """The run directory."""
        return self.start.workdir

    @property
    def task(self) -> tasks.Task:
        """What is trained."""
        return self.start.task

    def modules(self) -> dict[str, nnx.Module]:
        """Live modules for evaluation: EMA parameters where there are any, and the frozen ones."""
        return self.start.structure.modules(averaged(self.state), self.state["variables"]) | self.frozen

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
      OutOfMemory: the memory of a device is used up; the last checkpoint is still there.
    """
    workdir = epath.Path(workdir)
    with contextlib.ExitStack() as stack:
        goodput = stack.enter_context(contextlib.closing(Goodput()))
        check_config(config)
        watchdog = stack.enter_context(contextlib.closing(Watchdog(config.stall_seconds)))
        start = prepare(config, workdir)
        stack.enter_context(start.claimed())
        stack.enter_context(memory_errors(start.held, config, start.mesh, memory_of_a_device()))
        frozen = place_frozen(start.frozen, start.mesh, config.parallel.frozen)
        stack.enter_context(jax.set_mesh(start.mesh))
        policy = KeepLastAndBest(config.checkpoint.keep, config.checkpoint.keep_best.mode)
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, policy)))
        with goodput.lost("compile" if checkpoints.latest is None else "checkpoint"):
            state, position = _first_state(start, checkpoints)
        for group in start.structure.graphs:
            logging.info("%s: %s parameters", group, f"{parameter_count(start.shapes['params'][group]):,}")
        with process_zero_first():
            writer = MetricsWriter(workdir, int(state["step"]), enabled=jax.process_index() == 0)
        stack.enter_context(contextlib.closing(writer))
        run = Run(start, state, frozen, checkpoints, writer, goodput, watchdog)
        for record in writer.records:
            if not marks_at(workdir, record["step"]):
                _score(run, record["step"], record)
        pipeline = build_pipeline(config, start.source, start.text, position, start.mesh)
        stack.enter_context(contextlib.closing(pipeline))
        termination = Termination()
        stack.callback(termination.restore)
        profiler = stack.enter_context(contextlib.closing(Profiler(workdir, profile)))
        _loop(run, pipeline, termination, profiler)
    return run


def _first_state(start: Start, checkpoints: Checkpoints) -> tuple[State, int]:
    """The state and data position to begin with: of the latest sound checkpoint, or fresh ones."""
    if checkpoints.latest is not None:
        state, position = checkpoints.restore(abstract_state(start.shapes, start.placement))
        return state, position["position"]
    fresh = jax.jit(lambda: new_state(start.task, start.structure, start.config), out_shardings=start.placement)
    state = fresh()
    if start.weights is not None:
        state = with_weights(state, start.placement, start.weights)
        # From here on the run needs nothing but its own directory.
        checkpoints.save(0, state, {"position": 0})
        checkpoints.wait()
    return state, 0


def _loop(run: Run, pipeline: Any, termination: Termination, profiler: Profiler) -> None:
    config, start = run.config, run.start
    buckets = read_buckets(config.data)
    step = int(run.state["step"])
    frozen_state = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in run.frozen.items()}
    enabled = jax.process_index() == 0
    progress = Progress(config.steps, step, enabled)
    progress.peak = peak_flops(start.mesh.devices.flatten())
    programs: dict[Any, Program] = {}
    held_out = start.evaluated.batches(config.data.eval_batch_size, start.text)
    # What is due at a step that was just restored was done before the run stopped, but for an evaluation cut short.
    evaluated = any(r["step"] == step and any(n.startswith("eval/") for n in r) for r in run.writer.records)
    pending, fresh = None, False
    try:
        while True:
            evaluation_due = step > 0 and not evaluated and (step % config.eval_every == 0 or step == config.steps)
            checkpoint_due = fresh and (step % config.checkpoint_every == 0 or step == config.steps)
            stopping = termination.due(step)
            if pending is not None and (evaluation_due or checkpoint_due or stopping):
                _record(run, *pending, progress, pipeline)
                pending = None
            # Saved first: nothing that an evaluation does can lose a state.
            if checkpoint_due or stopping:
                _save(run, step, pipeline)
            if evaluation_due and not stopping:
                _evaluate(run, step, held_out, pipeline)
            if step >= config.steps:
                break
            if stopping:
                run.checkpoints.wait()
                raise Interrupted(
                    f"stopped by {termination.signal} at step {step}; the state is saved, start again to go on"
                )
            with run.waiting("input", step - (pending is not None)):
                batch = next(pipeline)
                batch = place(batch, start.mesh, buckets[pipeline.bucket].batch_size, config.data.image_batch_size)
            shapes = batch_shapes(batch)
            if shapes not in programs:
                with run.waiting("compile", step):
                    traced = start.traced.pop(shapes, None) or start.step.trace(run.state, frozen_state, batch)
                    programs[shapes] = Program(traced.lower().compile(), flops.count(traced.jaxpr).model)
                    check_program(programs[shapes].step, start.held, config, start.mesh, memory_of_a_device())
                    wait_for_all()
            program = programs[shapes]
            with profiler.step(step, run.state):
                run.state, metrics = run.goodput.step(program.step, run.state, frozen_state, batch)
            step, fresh, evaluated = step + 1, True, False
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
    if fresh or not evaluated:
        _finish(run, step)


def _save(run: Run, step: int, pipeline: Any) -> None:
    with run.waiting("checkpoint", step):
        run.checkpoints.save(step, run.state, pipeline.get_state())
        run.writer.flush()


def _keep(run: Run, pipeline: Any) -> int:
    """Saves the present state where no checkpoint of its step is there, beside the last good one; returns its step."""
    at = int(run.state["step"])
    run.checkpoints.save(at, run.state, pipeline.get_state(), planned=False)
    run.checkpoints.wait()
    return at


def _record(run: Run, step: int, metrics: dict[str, Any], progress: Progress, pipeline: Any) -> None:
    """Checks a finished step and, every ``log_every`` steps, writes its metrics."""
    if not float(metrics["finite"]):
        # The bad step changed nothing but the count, so what is saved is the state before it.
        at = _keep(run, pipeline)
        raise NotFinite(
            f"loss, gradient or update of step {step} is not finite; the last finite parameters are saved at step "
            f"{at}. Lower optimizer.*.learning_rate, clip harder, or look at the data of that step"
        )
    run.watchdog.beat(step, "step")
    for warning in run.codebooks.warnings(metrics):
        logging.warning("step %d: %s", step, warning)
    if step % run.config.log_every and step != run.config.steps:
        return
    found = {name: float(value) for name, value in metrics.items() if name != "finite"}
    warnings = run.task.warnings(found, step)
    for name in warnings.keys() - run.warned:
        logging.warning("step %d: %s", step, warnings[name])
    run.warned |= warnings.keys()
    values = {f"train/{name}": value for name, value in found.items()}
    speeds = progress.speeds()
    goodput = {f"goodput/{name}": share for name, share in run.goodput.shares().items()}
    read = {"data/skipped": len(pipeline.skipped), "data/cut_captions": pipeline.cut}
    run.writer.write(step, values | speeds | goodput | read)
    progress.show(f"loss {values['train/loss']:.4f}, {speeds['speed/videos_per_second']:.1f} videos/s")


def _evaluate(run: Run, step: int, held_out: list[dict[str, np.ndarray]], pipeline: Any) -> None:
    """Metrics and pictures on held-out batches; whatever goes wrong, the state is saved."""
    try:
        with run.waiting("evaluation", step):
            _measure(run, step, held_out)
    except (NotWritten, NotFinite):
        raise
    except Exception as error:
        at = _keep(run, pipeline)
        remedy = f"the state is saved at step {at}: the same command goes on from there once this is mended"
        if isinstance(error, UserError):
            raise UserError(f"{error}; {remedy}") from error
        logging.error("the evaluation after step %d failed; %s", step, remedy)
        raise


def _measure(run: Run, step: int, held_out: list[dict[str, np.ndarray]]) -> None:
    modules = run.modules()
    values = run.task.evaluate(modules, held_out, run.config.seed)
    if bad := [name for name, value in values.items() if not math.isfinite(value)]:
        raise NotFinite(
            f"{bad[0]} is not finite in the evaluation after step {step}, whose losses and gradients were; "
            "lower optimizer.*.learning_rate or ema.decay, and go on from an earlier checkpoint"
        )
    concerns = run.task.concerns(values)
    for reason in concerns or []:
        logging.warning("step %d: %s; its checkpoint is marked", step, reason)
    values = {f"eval/{name}": value for name, value in values.items()}
    run.writer.write(step, values)
    if concerns is not None and jax.process_index() == 0:
        with storage_errors(run.workdir, "make room there and start the same command again"):
            mark(run.workdir, step, concerns)
    if not concerns:
        _score(run, step, values)
    run.pictures = run.task.pictures(modules, held_out[0], run.config.seed)
    if jax.process_index() != 0:
        return
    fps = shown_rate(run.config)
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
    """The last record: where the time went."""
    run.writer.write(step, {f"goodput/{name}": share for name, share in run.goodput.shares().items()})
    run.writer.flush()
    run.changed = True
