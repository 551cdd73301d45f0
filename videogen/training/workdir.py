"""A run's directory: the config it is run with, checked against an earlier start."""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from videogen import encoders, tasks
from videogen.configuration import differences, load_config, remote_errors, replace_text, save_config, take_data
from videogen.errors import UserError
from videogen.runs.checkpoints import latest_step
from videogen.runs.stops import storage_errors
from videogen.tasks.base import DTYPES, PUBLISHED
from videogen.training.checks import check_config
from videogen.training.loading import CONFIG, MODEL, Loaded, hash_of, load
from videogen.training.optimizers import learning_rate
from videogen.training.published import is_published

DATA = "data.json"
"""In the run directory: what the training source held at the last start."""

FREE_KEYS = (
    "steps",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "checkpoint",
    "stall_seconds",
    "data.workers",
    "data.frame_rate",
    "data.made_from",
    "data.held_out",
    "data.own",
    "parallel.mesh",
)
"""Config keys that may change between two starts of one run, beside every ``optimizer.GROUP.horizon`` and every
``parts.NAME.checkpoint``."""


def complete_config(config: Any, workdir: epath.Path, read: Callable[[str], Loaded] = load) -> None:
    """Writes into a config what its frozen parts are, and what else its task reads from other files.

    Args:
      config: the stage config; changed in place.
      workdir: its run directory, where an earlier start has said what the parts are.
      read: how a run or export is read.

    Raises:
      UserError: a part is neither named by the config nor known from an earlier start, or does not fit the task.
    """
    task, origins = tasks.class_of(config), {}
    parts = task.parts_of(config)
    # A part that nothing asks for stays empty: the encoder of a text that is switched off.
    idle = {name for name, part in config.parts.items() if name not in parts and not part.checkpoint}
    if wrong := (set(config.parts) - idle) ^ set(parts):
        name, known = sorted(wrong)[0], ", ".join(parts) or "none"
        missing = "" if name in config.parts else " is missing"
        raise UserError(f"config.parts.{name}{missing}: the frozen parts of a {config.task} are: {known}")
    before = load_config(workdir / CONFIG).parts if (workdir / CONFIG).exists() else {}
    for name, what in sorted(parts.items()):
        part, earlier = config.parts[name], before.get(name)
        if what == PUBLISHED and earlier and earlier.hash and part.checkpoint in ("", earlier.checkpoint):
            # Its files, which are large, are read once.
            part.model, part.hash = earlier.model, earlier.hash
        elif what == PUBLISHED and encoders.folder_of(part.model.get("name", ""), part.checkpoint):
            part.model, part.hash = _read_published(part, config.parallel.dtype)
        elif part.checkpoint:
            origin = read(part.checkpoint)
            part.model, part.hash = origin.model_of(what), hash_of(getattr(origin, what))
            origins[name] = origin.config
        elif earlier:
            part.model, part.hash = earlier.model, earlier.hash
        else:
            where = "FOLDER" if what == PUBLISHED else "RUN_OR_EXPORT"
            raise UserError(f"a {config.task} needs its {name}: pass --config.parts.{name}.checkpoint={where}")
    task.complete(config, origins)


def _read_published(part: ConfigDict, dtype: str) -> tuple[dict[str, Any], str]:
    """What a published network is, and the hash of its weights."""
    folder = encoders.folder_of(part.model.name, part.checkpoint)
    network = encoders.load(part.model.name, folder, dtype=DTYPES[dtype])
    return encoders.describe(part.model.name, folder), hash_of(network)


def data_of_tokenizer(config: Any, workdir: epath.PathLike, given: Iterable[str]) -> None:
    """Takes what the command does not say of source and clip from the tokenizer's run, and says so in one line.

    Args:
      config: of the stage; those without a tokenizer stay as they are.
      workdir: its run directory: an earlier start there knows the data, too.
      given: dotted keys that the command says.
    """
    part = config.parts.get("tokenizer")
    if not isinstance(part, ConfigDict):
        return
    checkpoint = part.get("checkpoint")
    if checkpoint and is_published(checkpoint):
        return  # it was made for clips of any size, of no source that is at hand
    origin = epath.Path(checkpoint or workdir) / CONFIG
    with remote_errors(origin):
        if not origin.exists():
            return  # complete_config says what is missing
    loaded = load_config(origin)
    check_config(loaded)
    if taken := take_data(config, loaded, given):
        whose = f"the tokenizer {checkpoint}" if checkpoint else "the earlier start"
        logging.info("data of %s: %s (--config.data.KEY=VALUE gives others)", whose, ", ".join(taken))


class Earlier(NamedTuple):
    """What a directory holds of earlier starts of a run.

    Attributes:
      same: whether its text tokenizer and frozen modules are those of this run.
      step: of its last checkpoint; ``None`` where it has none.
      config: that it was started with; ``None`` where none is the same run.
    """

    same: bool
    step: int | None = None
    config: Any = None


def earlier_start(config: Any, workdir: epath.Path) -> Earlier:
    """Compares a run with what its directory holds. Without a checkpoint there, other settings may begin it anew.

    Raises:
      UserError: it holds an export, or a run with other settings that has a checkpoint.
    """
    with remote_errors(workdir):
        export = (workdir / MODEL).exists()
    if export:
        raise UserError(f"{workdir} holds an export; use another --workdir")
    if not (workdir / CONFIG).exists():
        return Earlier(False)
    earlier, step = load_config(workdir / CONFIG), latest_step(workdir)
    free = [*FREE_KEYS, *(f"optimizer.{group}.horizon" for group in config.optimizer)]
    free += [f"parts.{name}.checkpoint" for name in config.parts]
    # Runs of older formats have no hash of their text encoder.
    free += [f"parts.{name}.hash" for name, part in earlier.parts.items() if not part.hash]
    if changed := differences(earlier, config, ignore=free):
        if step is not None:
            raise UserError(
                f"{workdir} holds a run whose {changed[0]!r} differs; use the old settings, or another --workdir "
                f"(--config.start_from.run={workdir} begins a new run with the weights of this one)"
            )
        logging.info("%s holds no checkpoint yet: it begins anew with the settings of this command", workdir)
        return Earlier(False)
    return Earlier(True, step, earlier)


def say_new_rates(earlier: Earlier, config: Any, groups: Iterable[str]) -> None:
    """Says in one line where another number of steps, or another horizon, moves the learning rate of a resumed run."""
    for group in groups if earlier.step is not None else ():
        configs = earlier.config, config
        horizons = [c.optimizer[group].horizon or c.steps for c in configs]
        rates = [float(learning_rate(c.optimizer[group], c.steps)(earlier.step)) for c in configs]
        if rates[0] != rates[1]:
            logging.info(
                "the learning rate of %s goes from %.3g to %.3g at step %d: its schedule now ends at step %d, not %d "
                "(--config.optimizer.%s.horizon=%d keeps it)",
                *(group, *rates, earlier.step, horizons[1], horizons[0], group, horizons[0]),
            )


def say_changed_data(workdir: epath.Path, contents: str, samples: int) -> None:
    """Says where the training data are not those of the last start, and notes the present ones.

    Args:
      workdir: the run directory.
      contents: ``Source.contents`` of the training source.
      samples: how many it has.
    """
    path, present = workdir / DATA, {"contents": contents, "samples": samples}
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = present
    if before != present:
        logging.warning(
            "the training data have changed since the last start (%s samples then, %d now): the run goes on with them, "
            "and is no longer the run that it would have been",
            before.get("samples") if isinstance(before, dict) else "?",
            samples,
        )
    replace_text(path, json.dumps(present) + "\n")


def claim_workdir(config: Any, workdir: epath.Path) -> None:
    """Writes ``config.json``; to be called when everything has been checked.

    Raises:
      UserError: the directory cannot be written.
    """
    if jax.process_index() == 0:
        with storage_errors(workdir, "choose another --workdir or make it writable", UserError):
            workdir.mkdir(parents=True, exist_ok=True)
            save_config(workdir / CONFIG, config)
