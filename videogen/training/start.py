"""The start of a run: everything that can be refused is built and checked before its directory is touched."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from videogen import data, tasks
from videogen.configuration import is_remote
from videogen.data.inputs import (
    HeldOut,
    abstract_batch,
    build_source,
    check_batch,
    held_out,
    keep_findings,
    new_text_tokenizer,
    save_text_tokenizer,
    text_tokenizer,
)
from videogen.errors import UserError
from videogen.locks import locked
from videogen.parallel import batch_sharding, make_mesh
from videogen.parallel.distributed import process_zero_first
from videogen.runs.checkpoints import abstract_state
from videogen.runs.stops import storage_errors
from videogen.training.checks import building, check_config, check_held_out, check_memory, check_same_everywhere
from videogen.training.loading import holds_frozen, load, load_frozen, new_frozen, save_frozen
from videogen.training.memory import held
from videogen.training.state import (
    State,
    Structure,
    frozen_shardings,
    new_state,
    state_shardings,
    structure_of,
)
from videogen.training.step import jit_train_step
from videogen.training.warm_start import Weights, starting_weights
from videogen.training.workdir import (
    Earlier,
    claim_workdir,
    complete_config,
    earlier_start,
    say_changed_data,
    say_new_rates,
)

EVAL_BATCHES = 2
"""Batches of ``data.eval_batch_size`` held-out clips that an evaluation during training uses."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with; nothing of it is written yet.

    Attributes:
      config: the completed stage config.
      workdir: the run directory.
      mesh: the devices.
      task, structure: what is trained.
      shapes, placement: the state without arrays, and where its arrays go.
      earlier: what the directory holds of earlier starts.
      weights: what a fresh state takes from another run; ``None`` for its own.
      frozen: the frozen modules, whole in the memory of this process.
      source: the training source.
      text: the text tokenizer; ``None`` without text.
      evaluated: the held-out clips that are evaluated during training.
      step: the train step ``(state, frozen arrays, batch) -> (state, metrics)``, to be traced.
      traced: the step traced for batches of the largest bucket, by the shapes of such a batch.
      held: bytes that state, frozen modules and a batch take on one device, by kind (``memory.held``).
    """

    config: Any
    workdir: epath.Path
    mesh: Mesh
    task: tasks.Task
    structure: Structure
    shapes: State
    placement: State
    earlier: Earlier
    weights: Weights | None
    frozen: dict[str, nnx.Module]
    source: data.Source
    text: Any
    evaluated: HeldOut
    step: Any
    traced: dict[Any, Any]
    held: dict[str, float]

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the run directory, with its config, text tokenizer and frozen modules written."""
        with contextlib.ExitStack() as stack:
            with process_zero_first():
                if jax.process_index() == 0 and not is_remote(self.workdir):
                    with storage_errors(self.workdir, "choose another --workdir or make it writable", UserError):
                        stack.enter_context(locked(self.workdir))
                claim_workdir(self.config, self.workdir)
                if jax.process_index() == 0:
                    with storage_errors(self.workdir, "make room there and start the same command again"):
                        self._save()
            yield

    def _save(self) -> None:
        say_changed_data(self.workdir, self.source.contents(), len(self.source))
        if self.earlier.step is None and self.text is not None:
            save_text_tokenizer(self.text, self.workdir)
        if not self.earlier.same or not holds_frozen(self.task, self.workdir):
            save_frozen(self.frozen, self.workdir)


def prepare(config: Any, workdir: epath.Path) -> Start:
    """Builds and checks a run as far as that needs no arrays of its own.

    Raises:
      UserError: bad input; nothing on disk is changed.
    """
    check_config(config)
    mesh = make_mesh(config.parallel.mesh)
    check_same_everywhere(config)
    check_batch(config, mesh.shape)
    # Each run that parts and first weights come from is read once.
    read = functools.cache(load)
    complete_config(config, workdir, read)
    earlier = earlier_start(config, workdir)
    source, unseen = build_source(config, "train"), build_source(config, "eval")
    keep_findings(config, source)
    if config.get("classes") and len(source.classes) > config.classes:
        raise UserError(
            f"config.classes is {config.classes}, and the source has {len(source.classes)}; set it to as many or more"
        )
    with building("the model"):
        task = tasks.build(config)
        structure, abstract = structure_of(task, config)
        shapes = jax.eval_shape(lambda: new_state(task, structure, config))
    say_new_rates(earlier, config, task.losses)
    placement = state_shardings(abstract, shapes, mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh, x.shape[0])),
        abstract_batch(config, task, source),
    )
    check_memory(shapes, placement, batch)
    # Weights of other runs are read onto one device, hence outside the mesh.
    frozen = load_frozen(task, workdir) if earlier.same and holds_frozen(task, workdir) else new_frozen(task, read)
    weights = starting_weights(config, workdir, task, read, frozen)
    text = new_text_tokenizer(config, source) if earlier.step is None else text_tokenizer(config, workdir)
    task.texts = text
    wanted = EVAL_BATCHES * config.data.eval_batch_size
    check_held_out(min(wanted, len(unseen)), unseen.fields)
    evaluated = held_out(unseen, wanted, text)
    with jax.set_mesh(mesh), building("the train step"):
        step, traced = _trace(config, mesh, task, structure, shapes, placement, frozen, batch)
    return Start(
        config,
        workdir,
        mesh,
        task,
        structure,
        shapes,
        placement,
        earlier,
        weights,
        frozen,
        source,
        text,
        evaluated,
        step,
        traced,
        _held(config, mesh, shapes, placement, frozen, batch),
    )


def _held(
    config: Any, mesh: Mesh, shapes: State, placement: State, frozen: dict[str, nnx.Module], batch: Any
) -> dict[str, float]:
    arrays = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in frozen.items()}
    return held(shapes, placement, arrays, frozen_shardings(frozen, mesh, config.parallel.frozen), batch)


def _trace(
    config: Any,
    mesh: Mesh,
    task: tasks.Task,
    structure: Structure,
    shapes: State,
    placement: State,
    frozen: dict[str, nnx.Module],
    batch: Any,
) -> tuple[Any, dict[Any, Any]]:
    """The train step, and ``{batch_shapes: traced step}`` for batches of the largest bucket."""
    split = {name: nnx.split(module) for name, module in frozen.items()}
    graphs = {name: graph for name, (graph, _) in split.items()}
    arrays = {name: nnx.to_pure_dict(state) for name, (_, state) in split.items()}
    frozen_placement = frozen_shardings(frozen, mesh, config.parallel.frozen)
    step = jit_train_step(task, structure, graphs, config, mesh, placement, frozen_placement)
    traced = step.trace(abstract_state(shapes, placement), abstract_state(arrays, frozen_placement), batch)
    return step, {batch_shapes(batch): traced}


def batch_shapes(batch: Any) -> Any:
    """What the step is compiled for: names, shapes and dtypes of a batch."""
    leaves, tree = jax.tree.flatten(batch)
    return tree, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
