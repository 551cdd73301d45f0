"""Run and export directories -> ready modules: ``videogen.load``."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from flax import nnx

from videogen import tasks
from videogen.building import check_value
from videogen.configuration import check_writable, load_config, remote_errors, save_config
from videogen.data.inputs import save_text_tokenizer, text_tokenizer
from videogen.errors import UserError
from videogen.ranges import Natural
from videogen.runs.checkpoints import Checkpoints
from videogen.tokenizers import Tiled, Tokenizer
from videogen.training.checks import building, check_config
from videogen.training.state import averaged, new_state, split, structure_of
from videogen.weights import hash_weights, load_weights, save_weights

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
    """

    directory: epath.Path
    config: Any
    task: tasks.Task
    modules: dict[str, nnx.Module]
    step: int

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
        return text_tokenizer(self.config, self.directory)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the weights of the generator or tokenizer: what token caches are keyed by.

        A de-tokenizer has the hash of the tokenizer whose codes it decodes.
        """
        return hash_of(self.task.assembled(self.modules) or self.trained)

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
        self, sampler: dict[str, Any] | None = None, tile: tuple[int, int] | None = None
    ) -> tasks.VideoGenerator:
        """The sampler of a generator stage.

        Args:
          sampler: overrides of the config's sampler.
          tile: height and width in pixels of the tiles that frames are decoded by; ``None``: as a whole.

        Raises:
          UserError: this is no generator, or its frames have no such tiles.
        """
        modules = self.modules
        if tile is not None and self.task.draws:
            modules = {**modules, "tokenizer": Tiled(modules["tokenizer"], tile)}
        if (generator := self.task.drawing(modules, sampler)) is None:
            raise UserError(f"{self.directory} holds a {self.config.task}, not a generator")
        return generator


def load(directory: epath.PathLike) -> Loaded:
    """Loads a run directory (latest checkpoint) or an export; nothing else is needed.

    Raises:
      UserError: no run there, no finished checkpoint, or files that do not fit each other.
    """
    with remote_errors(directory):
        directory = epath.Path(directory)
    config = load_config(directory / CONFIG)
    check_config(config)
    with building(f"what {directory / CONFIG} describes"):
        task = tasks.build(config)
        structure, abstract = structure_of(task, config)
    names = structure.graphs
    if (directory / MODEL).exists():
        names = task.exported
        weights = load_weights(directory / MODEL, _exported({name: abstract[name] for name in names}))
        step = config.get("exported_step", 0)
        check_value("exported_step", Natural, step)
        params, variables = weights["params"], weights["variables"]
    else:
        with building(f"what {directory / CONFIG} describes"):
            state = jax.eval_shape(lambda: new_state(task, structure, config))
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state)
        checkpoints = Checkpoints(directory, read_only=True)
        state, _ = checkpoints.restore(state)
        checkpoints.close()
        params, variables, step = averaged(state), state["variables"], int(state["step"])
    modules = {name: nnx.merge(structure.graphs[name], params[name], variables[name]) for name in names}
    frozen = load_frozen(task, directory)
    _check_parts(config, frozen, directory)
    return Loaded(directory, config, task, modules | frozen, step)


def _check_parts(config: Any, frozen: dict[str, nnx.Module], directory: epath.Path) -> None:
    """Refuses frozen parts that are not those this stage was trained with: their codes would mean something else."""
    for name, part in config.parts.items():
        if part.hash and name in frozen and hash_of(frozen[name]) != part.hash:
            raise UserError(
                f"{directory / FROZEN} holds another {name} than {CONFIG} names (hash {part.hash[:12]}); restore it "
                "from the run that wrote it"
            )


def hash_of(module: nnx.Module) -> str:
    """SHA-256 of the weights of a module; of a tokenizer with another decoder that of the one whose codes it reads."""
    module = module.coder if isinstance(module, Tokenizer) else module
    return hash_weights(nnx.to_pure_dict(nnx.state(module)))


def _exported(modules: dict[str, nnx.Module]) -> dict[str, Any]:
    _, params, variables = split(modules)
    return {"params": params, "variables": variables}


def export_safetensors(loaded: Loaded, out: epath.PathLike) -> None:
    """Writes a directory that ``load`` reads: modules, config and text tokenizer, without what only training needs.

    An export that is there already is replaced.

    Raises:
      UserError: ``out`` holds a run, or cannot be written.
    """
    out = epath.Path(out)
    _check_export_directory(out)
    trained = {name: loaded.modules[name] for name in loaded.task.exported}
    config = loaded.config.copy_and_resolve_references()
    config.exported_step = loaded.step
    save_weights(out / MODEL, _exported(trained))
    left_out = {*loaded.task.losses, *loaded.task.training_only}
    save_frozen({n: m for n, m in loaded.modules.items() if n not in left_out}, out)
    if loaded.text is not None:
        save_text_tokenizer(loaded.text, out)
    save_config(out / CONFIG, config)


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


def load_frozen(task: tasks.Task, directory: epath.PathLike) -> dict[str, nnx.Module]:
    """The frozen modules of a run directory or export."""
    modules = {}
    for name, module in nnx.eval_shape(lambda: task.frozen(None)).items():
        graph, state = nnx.split(module)
        path = epath.Path(directory) / FROZEN / f"{name}.safetensors"
        if name in task.training_only and not path.exists():
            continue
        modules[name] = nnx.merge(graph, load_weights(path, nnx.to_pure_dict(state)))
    return modules


def holds_frozen(task: tasks.Task, directory: epath.PathLike) -> bool:
    """Whether a directory holds every frozen module of a task."""
    names = nnx.eval_shape(lambda: task.frozen(None))
    return all((epath.Path(directory) / FROZEN / f"{name}.safetensors").exists() for name in names)


def new_frozen(task: tasks.Task, read: Callable[[str], Loaded] = load) -> dict[str, nnx.Module]:
    """The frozen modules of a run, from where its config says; ``read`` reads a run or export."""
    return task.frozen(lambda directory, what: getattr(read(directory), what))
