"""Run and export directories -> ready modules: ``videogen.load``."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videogen import tasks
from videogen.building import check_value
from videogen.configuration import check_writable, flatten, load_config, remote_errors, save_config
from videogen.data.inputs import save_text_tokenizer, text_tokenizer
from videogen.encoders.lora_files import Lora
from videogen.errors import UserError, near_matches
from videogen.nn import merged, without_lora
from videogen.parallel import make_mesh, on_host, parse_mesh
from videogen.ranges import Natural
from videogen.runs.checkpoints import Checkpoints
from videogen.runs.marks import marks_at
from videogen.tasks.base import DTYPES
from videogen.tokenizers import Tiled, Tokenizer
from videogen.training.checks import building, check_config
from videogen.training.placement import Placement, mesh_of_sizes
from videogen.training.published import find, is_published, read_modules
from videogen.training.state import Structure, averaged, new_state, split, structure_of
from videogen.weights import hash_weights, load_weights, place_weights, save_weights

CONFIG = "config.json"
FROZEN = "frozen"
MODEL = "model.safetensors"


@dataclasses.dataclass(frozen=True, repr=False)
class Loaded:
    """A run or export, ready to use.

    Attributes:
      directory: where it came from.
      config: its stage config.
      task: its task.
      modules: trained (EMA where there is one) and frozen modules by name.
      step: training steps behind the weights.
      mesh: the devices that the weights are spread over; ``None``: one, or the host's memory.
      dtype: what parameters were converted to; ``None``: they are as they were saved.
      loras: published updates that were added to its transformer.
    """

    directory: epath.Path
    config: Any
    task: tasks.Task
    modules: dict[str, nnx.Module]
    step: int
    mesh: Mesh | None = None
    dtype: str | None = None
    loras: Sequence[Lora] = ()

    def __repr__(self) -> str:
        config, clip = self.config, self.config.data.clip
        trained = nnx.state(self.modules[self.task.exported[0]], nnx.Param)
        counts = (math.prod(x.shape) for x in jax.tree.leaves(trained))
        rate = f" at {clip.fps:g} frames per second" if clip.fps else ""
        learned = [str(v) for k, v in config.data.source.items() if k in ("name", "path") and v]
        return (
            f"{config.task} {config.model.name!r} of {self.directory}, step {self.step}\n"
            f"clips: {clip.frames} frames of {clip.height}×{clip.width}{rate}\n"
            f"parameters: {sum(counts):,}; modules: {', '.join(self.modules)}\n"
            f"trained on: {' '.join(learned)}"
        )

    @functools.cached_property
    def text(self) -> Any:
        """The text tokenizer, ``None`` for stages without text."""
        if is_published(self.directory):
            return find(self.directory).text(self.config)
        return text_tokenizer(self.config, self.directory)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the weights of the generator or tokenizer: what token caches are keyed by.

        A de-tokenizer has the hash of the tokenizer whose codes it decodes. It is that of the weights as they were
        saved: where they were converted they are read again.

        Raises:
          UserError: they were converted, and there are others in the directory now.
        """
        saved = self._as_saved()
        return hash_of(saved.task.assembled(saved.modules) or saved.trained)

    @property
    def key(self) -> dict[str, Any]:
        """What decides the numbers that are computed with it, as JSON values: weights, parts and settings."""
        parts = {name: part.hash for name, part in self.config.parts.items()}
        settings = hashlib.sha256(json.dumps(flatten(self.config), sort_keys=True, default=str).encode()).hexdigest()
        return {"weights": self.hash, "step": self.step, "parts": parts, "dtype": self.dtype, "settings": settings}

    @functools.cached_property
    def coder_hash(self) -> str:
        """As ``hash``, of the tokenizer that ``coder`` is: what files of codes are keyed by."""
        return hash_of(self._as_saved().coder)

    def _as_saved(self) -> "Loaded":
        if self.dtype is None:
            return self
        if (saved := load(self.directory, self.mesh, loras=self.loras)).step != self.step:
            raise UserError(f"{self.directory} was trained on since it was loaded; load it again")
        return saved

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of a stage that trains one or the decoder of one, ready to use.

        Raises:
          UserError: this is a generator.
        """
        if (tokenizer := self.task.assembled(self.modules)) is None:
            raise UserError(f"{self.directory} holds a {self.config.task}, not a tokenizer")
        return tokenizer

    @property
    def coder(self) -> Any:
        """The tokenizer that this stage trains, or whose codes its generator learns."""
        return self.task.assembled(self.modules) or self.modules["tokenizer"]

    def model_of(self, what: str) -> Any:
        """The config that builds ``tokenizer``, or what this stage has ``trained``, by that name."""
        return self.task.assembled_model if what == "tokenizer" else self.config.model

    @property
    def trained(self) -> nnx.Module:
        """What this stage has trained and exports."""
        return self.modules[self.task.exported[0]]

    def generator(
        self,
        sampler: dict[str, Any] | None = None,
        tile: tuple[int, int] | None = None,
        size: tuple[int, int] | None = None,
    ) -> tasks.VideoGenerator:
        """The sampler of a generator stage.

        Args:
          sampler: overrides of the config's sampler.
          tile: height and width in pixels of the tiles that frames are decoded by; ``None``: as a whole.
          size: height and width in pixels of the videos; ``None``: those of training.

        Raises:
          UserError: this is no generator, or its frames have no such tiles or size.
        """
        modules, self.task.texts = self.modules, self.text
        if tile is not None and self.task.draws:
            modules = {**modules, "tokenizer": Tiled(modules["tokenizer"], tile)}
        if (generator := self.task.drawing(modules, sampler, size)) is None:
            raise UserError(f"{self.directory} holds a {self.config.task}, not a generator")
        return generator


def load(
    directory: epath.PathLike,
    mesh: Mesh | Mapping[str, int] | None = None,
    dtype: str | None = None,
    loras: Sequence[Lora] = (),
) -> Loaded:
    """Loads a run directory (latest checkpoint), an export, or a published file or folder; nothing else is needed.

    With a mesh every array is spread over it by the rules that training uses (``parallel.rules``, and
    ``parallel.frozen`` of the config for frozen modules). Each device is given its part of an array as it is read:
    no device and no host ever holds the whole of one that is spread (but for exports in an object store, whose files
    are read whole). What only training needs is not read.

    Args:
      directory: a run or an export; or what others have published (``tokenizers.public``).
      mesh: what ``parallel.make_mesh`` builds, or the sizes it builds one from, as ``config.parallel.mesh`` has them.
      dtype: ``float32`` or ``bfloat16``: parameters, but not those of quantizers, are converted to it as they are read.
        Of a checkpoint that is converted only the sizes of its files are compared, not the checksum of its arrays.
      loras: published low-rank updates, which are added to the transformer of a published folder.

    Raises:
      UserError: no run there, no finished checkpoint, files that do not fit each other, or no such mesh or dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}{near_matches(dtype, DTYPES)}")
    mesh = mesh_of_sizes(mesh)
    with remote_errors(directory):
        directory = epath.Path(directory)
    if is_published(directory):
        return _read_published(directory, mesh, dtype, loras)
    if loras:
        raise UserError(f"{directory} is a run or an export: published updates (LoRA) are for published folders")
    config = config_at(directory)
    with building(f"what {directory / CONFIG} describes"):
        task = tasks.build(config)
        structure, abstract = structure_of(task, config)
    placement = Placement(mesh, dtype, config.parallel.frozen)
    if (directory / MODEL).exists():
        params, variables, step = _read_export(directory, config, placement, {n: abstract[n] for n in task.exported})
    else:
        params, variables, step = _read_checkpoint(directory, config, placement, task, structure, abstract)
    modules = {name: nnx.merge(structure.graphs[name], params[name], variables[name]) for name in params}
    frozen = load_frozen(task, directory, placement, check=True)
    return Loaded(directory, config, task, modules | frozen, step, mesh, dtype)


def config_at(directory: epath.PathLike) -> ConfigDict:
    """The checked config of a run or export, or the one that a published file would have."""
    config = find(directory).config() if is_published(directory) else load_config(epath.Path(directory) / CONFIG)
    check_config(config)
    return config


def _read_published(path: epath.Path, mesh: Mesh | None, dtype: str | None, loras: Sequence[Lora]) -> Loaded:
    published = find(path, loras)
    task = tasks.build(config := published.config())
    return Loaded(path, config, task, read_modules(published, task, Placement(mesh, dtype)), 0, mesh, dtype, loras)


def load_for_command(
    directory: epath.PathLike, mesh: str | None, batch: int | None = None, loras: Sequence[Lora] = ()
) -> Loaded:
    """Loads as a command does: onto the mesh that its flag names.

    Args:
      directory: a run or an export.
      mesh: e.g. ``data=4,fsdp=2``; ``None``: all devices of this process share the batches if they can do so evenly,
        else one computes.
      batch: examples in a batch; ``None``: ``data.eval_batch_size`` of the config.
      loras: as for ``load``.

    Raises:
      UserError: as ``load``, and for a mesh that is written otherwise.
    """
    if mesh:
        return load(directory, parse_mesh(mesh), loras=loras)
    devices = jax.local_devices()
    if len(devices) == 1:
        return load(directory, loras=loras)
    if batch is None:
        batch = config_at(directory).data.eval_batch_size
    return load(directory, None if batch % len(devices) else make_mesh({"data": -1}, devices), loras=loras)


def _read_export(
    directory: epath.Path, config: Any, placement: Placement, abstract: dict[str, nnx.Module]
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """``(params, variables, step)`` of the exported modules."""
    check_value("exported_step", Natural, step := config.get("exported_step", 0))
    tree = _exported(abstract)
    weights = load_weights(directory / MODEL, tree, mapped=not placement.as_ever)
    if not placement.as_ever:
        weights = place_weights(weights, placement.of_weights(abstract, tree))
    return weights["params"], weights["variables"], step


def _read_checkpoint(
    directory: epath.Path,
    config: Any,
    placement: Placement,
    task: tasks.Task,
    structure: Structure,
    abstract: dict[str, nnx.Module],
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """``(params, variables, step)`` of the latest checkpoint; EMA where there is one."""
    with building(f"what {directory / CONFIG} describes"):
        state = jax.eval_shape(lambda: new_state(task, structure, config))
    goal = placement.of_state(abstract, state)
    checkpoints = Checkpoints(directory, read_only=True)
    try:
        if placement.as_ever:
            state, _ = checkpoints.restore(goal)
        else:
            state = checkpoints.restore_weights(goal, converted=placement.dtype is not None)
    finally:
        checkpoints.close()
    step = int(on_host(state["step"]))
    for reason in marks_at(directory, step):
        logging.warning("the checkpoint of step %d of %s is marked: %s", step, directory, reason)
    return averaged(state), state["variables"], step


def _check_part(name: str, part: Any, module: nnx.Module, directory: epath.PathLike) -> None:
    """Refuses a frozen part that is not the one this stage was trained with: its codes would mean something else."""
    if part.hash and hash_of(module) != part.hash:
        raise UserError(
            f"{epath.Path(directory) / FROZEN} holds another {name} than {CONFIG} names (hash {part.hash[:12]}); "
            "restore it from the run that wrote it"
        )


def hash_of(module: nnx.Module) -> str:
    """SHA-256 of the weights of a module; of a tokenizer with another decoder that of the one whose codes it reads."""
    module = module.coder if isinstance(module, Tokenizer) else module
    return hash_weights(nnx.to_pure_dict(nnx.state(module)), on_host)


def _exported(modules: dict[str, nnx.Module]) -> dict[str, Any]:
    _, params, variables = split(modules)
    return {"params": params, "variables": variables}


def export_safetensors(loaded: Loaded, out: epath.PathLike) -> Loaded:
    """Writes a directory that ``load`` reads: modules, config and text tokenizer, without what only training needs.

    Low-rank updates become part of the kernels they update, so that the export is a plain model with a hash of its own.
    An export that is there already is replaced.

    Returns:
      What the directory holds.

    Raises:
      UserError: ``out`` holds a run, or cannot be written.
    """
    out = epath.Path(out)
    _check_export_directory(out)
    trained = {name: merged(loaded.modules[name]) for name in loaded.task.exported}
    config = loaded.config.copy_and_resolve_references()
    config.exported_step = loaded.step
    plain = without_lora(config.model)
    if plain != config.model.to_dict():
        config.model = ConfigDict(plain)
        for name in trained:
            # Paths beside updates that are no longer there.
            config.optimizer[name].freeze = ()
    save_weights(out / MODEL, _exported(trained))
    left_out = {*loaded.task.losses, *loaded.task.training_only}
    frozen = {name: module for name, module in loaded.modules.items() if name not in left_out}
    save_frozen(frozen, out)
    if loaded.text is not None:
        save_text_tokenizer(loaded.text, out)
    save_config(out / CONFIG, config)
    return dataclasses.replace(loaded, directory=out, config=config, modules=trained | frozen)


def _check_export_directory(out: epath.Path) -> None:
    """Makes the directory of an export.

    Raises:
      UserError: it holds something else, or cannot be written.
    """
    if (out / CONFIG).exists() and not (out / MODEL).exists():
        raise UserError(f"{out} holds a run, which an export would overwrite; choose another --out")
    check_writable(out, "--out", directory=True)


def save_frozen(modules: dict[str, nnx.Module], directory: epath.PathLike) -> None:
    """Writes the frozen modules of a run once, so that the directory needs nothing else."""
    folder = epath.Path(directory) / FROZEN
    for name, module in modules.items():
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / f"{name}.safetensors", nnx.to_pure_dict(nnx.state(module)))


def load_frozen(
    task: tasks.Task, directory: epath.PathLike, placement: Placement = Placement(), check: bool = False
) -> dict[str, nnx.Module]:
    """The frozen modules of a run directory or export.

    Args:
      task: its task.
      directory: where they are.
      placement: where their arrays go.
      check: refuse other modules than the config names.

    Raises:
      UserError: their files are missing or damaged, or ``check`` refuses them.
    """
    modules = {}
    for name, module in nnx.eval_shape(lambda: task.frozen(None)).items():
        graph, state = nnx.split(module)
        path = epath.Path(directory) / FROZEN / f"{name}.safetensors"
        if name in task.training_only and not path.exists():
            continue
        tree = nnx.to_pure_dict(state)
        weights = load_weights(path, tree, mapped=not placement.as_ever)
        if check and (part := task.config.parts.get(name)) is not None:
            _check_part(name, part, nnx.merge(graph, weights), directory)
        if not placement.as_ever:
            weights = place_weights(weights, placement.of_frozen(name, module))
        modules[name] = nnx.merge(graph, weights)
    return modules


def holds_frozen(task: tasks.Task, directory: epath.PathLike) -> bool:
    """Whether a directory holds every frozen module of a task."""
    names = nnx.eval_shape(lambda: task.frozen(None))
    return all((epath.Path(directory) / FROZEN / f"{name}.safetensors").exists() for name in names)


def new_frozen(task: tasks.Task, read: Callable[[str], Loaded] = load) -> dict[str, nnx.Module]:
    """The frozen modules of a run, from where its config says; ``read`` reads a run or export."""
    return task.frozen(lambda directory, what: getattr(read(directory), what))
