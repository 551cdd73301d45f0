"""Claiming a run directory: the config it is run with, checked against an earlier start."""

from typing import Any

import jax
from etils import epath

from videogen import tasks
from videogen.configuration import differences, load_config, save_config
from videogen.errors import UserError
from videogen.training.loading import CONFIG, load
from videogen.training.stops import storage_errors

FREE_KEYS = (
    "steps",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "checkpoint",
    "stall_seconds",
    "data.workers",
    "parallel.mesh",
    "tokenizer.checkpoint",
    "teacher.checkpoint",
)
"""Config keys that may change between two starts of one run."""


def complete_config(config: Any, workdir: epath.Path) -> None:
    """Writes into the config of a generator or de-tokenizer what its tokenizer and text encoder decide.

    Raises:
      UserError: there is no tokenizer, neither named by the config nor known from an earlier start; or no teacher for a
        student, or one of another model.
    """
    if "tokenizer" not in config:
        return
    if config.tokenizer.checkpoint:
        loaded = load(config.tokenizer.checkpoint)
        model, digest = loaded.tokenizer_model, loaded.hash
    elif (workdir / CONFIG).exists():
        earlier = load_config(workdir / CONFIG).tokenizer
        model, digest = earlier.model, earlier.hash
    else:
        raise UserError(f"a {config.task} needs its tokenizer: pass --config.tokenizer.checkpoint=RUN_OR_EXPORT")
    tasks.TASKS[config.task].complete(config, model, digest)
    if "teacher" not in config:
        return
    if config.teacher.checkpoint:
        tasks.check_teacher(config, load_config(epath.Path(config.teacher.checkpoint) / CONFIG))
    elif not (workdir / CONFIG).exists():
        raise UserError("a student needs its teacher: pass --config.teacher.checkpoint=RUN_OR_EXPORT")


def claim_workdir(config: Any, workdir: epath.Path) -> None:
    """Writes ``config.json``, after a check against an earlier start of the run.

    Raises:
      UserError: the directory holds a run with other settings, or cannot be written.
    """
    if (workdir / CONFIG).exists():
        changed = differences(load_config(workdir / CONFIG), config, ignore=FREE_KEYS)
        if changed:
            raise UserError(
                f"{workdir} holds a run whose {changed[0]!r} differs; use another --workdir or the old settings"
            )
    if jax.process_index() == 0:
        with storage_errors(workdir, "choose another --workdir or make it writable", UserError):
            workdir.mkdir(parents=True, exist_ok=True)
            save_config(workdir / CONFIG, config)
