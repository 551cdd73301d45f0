"""What a run's settings are checked for before anything of it is written."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from videogen.building import check_value
from videogen.configuration import flatten
from videogen.errors import UserError, shown
from videogen.nn import REMAT_POLICIES
from videogen.parallel.distributed import from_process_zero
from videogen.ranges import Count, Decay, Natural, Number, OneOf, Positive, Weight
from videogen.schedules import DECAYS
from videogen.tasks.base import DTYPES
from videogen.training.optimizers import OPTIMIZERS
from videogen.training.state import FROZEN_LAYOUTS, State

SECTIONS = (
    "checkpoint",
    "checkpoint.keep_best",
    "data",
    "data.clip",
    "data.source",
    "ema",
    "losses",
    "model",
    "model.quantizer",
    "optimizer",
    "parallel",
    "parallel.mesh",
    "parts",
    "sampler",
    "start_from",
    "text",
    "text.encoder",
    "text.tokenizer",
    "distillation",
)
"""Keys that hold keys of their own, in the stages that have them."""

REQUIRED = (
    *("task", "seed", "steps", "log_every", "eval_every", "checkpoint_every", "stall_seconds", "accumulate"),
    *("checkpoint.keep", "checkpoint.keep_best.metric", "checkpoint.keep_best.mode", "ema.decay"),
    *("model", "parts", "optimizer", "start_from.run", "start_from.inflate"),
    *("parallel.mesh", "parallel.remat", "parallel.frozen", "parallel.dtype"),
    *("data.source.name", "data.clip.frames", "data.clip.height", "data.clip.width", "data.clip.fps", "data.workers"),
    *("data.batch_size", "data.image_batch_size", "data.eval_batch_size", "data.buckets"),
)
"""Keys without which no stage works; ``videogen.defaults`` has them all."""

OF_TEXT = (*("text.encoder.name", "text.tokenizer.name", "text.tokenizer.path", "text.tokenizer.length"),)
"""Keys that a stage with a section ``text`` has, too."""

SETTINGS = {
    "task": str,
    "seed": Annotated[int, Number(int, 0, 2**32 - 2)],
    "steps": Count,
    "log_every": Count,
    "eval_every": Count,
    "checkpoint_every": Count,
    "checkpoint.keep": Count,
    "checkpoint.keep_best.metric": str,
    "checkpoint.keep_best.mode": Annotated[str, OneOf("max", "min")],
    "stall_seconds": Positive,
    "accumulate": Count,
    "ema.decay": Decay,
    "start_from.run": str,
    "start_from.inflate": str,
    "start_from.paths": Sequence[tuple[str, str]] | None,
    "parallel.remat": Annotated[str, OneOf(*REMAT_POLICIES)],
    "parallel.frozen": Annotated[str, OneOf(*FROZEN_LAYOUTS)],
    "parallel.dtype": Annotated[str, OneOf(*DTYPES)],
    "data.clip.frames": Count,
    "data.clip.height": Count,
    "data.clip.width": Count,
    "data.clip.fps": Annotated[float, Number(float, 0, 1000)] | None,
    "data.buckets": Sequence[Sequence[float]],
    "data.phases": Sequence[tuple[int, Sequence[float]]] | None,
    "data.frame_rate": Annotated[float, Number(float, 0, 1000)] | None,
    "data.held_out": bool | None,
    "data.own": Sequence[str],
    "data.batch_size": Count,
    "data.image_batch_size": Natural,
    "data.eval_batch_size": Count,
    "data.workers": Annotated[int, Number(int, 0, 1024)],
    "classes": Natural | None,
    "text.encoder.name": str,
    "text.tokenizer.name": str,
    "text.tokenizer.path": str,
    "text.tokenizer.length": Count,
    "text.tokenizer.vocabulary_size": Count,
}
"""Key of a stage config -> what its value may be. Settings of parts are checked where the parts are declared."""

OPTIMIZER = {
    "name": Annotated[str, OneOf(*OPTIMIZERS)],
    "learning_rate": Weight,
    "warmup": Natural,
    "schedule": Annotated[str, OneOf(*DECAYS)],
    "final": Weight,
    "horizon": Count | None,
    "b1": Decay,
    "b2": Decay,
    "weight_decay": Weight,
    "clip": Weight,
    "adam_share": Weight,
    "freeze": Sequence[str],
}
"""Key of ``config.optimizer.GROUP`` -> what its value may be."""


def check_config(config: Any) -> None:
    """Refuses missing sections, and values of another type or out of range.

    Raises:
      UserError: names the key, the value and what it may be.
    """
    _check_sections(config, SECTIONS)
    for key in (*REQUIRED, *(OF_TEXT if "text" in config else ())):
        names = key.split(".")
        for key in (".".join(names[: i + 1]) for i in range(len(names))):
            if _find(config, key) is not _ABSENT:
                continue
            raise UserError(f"config.{key} is missing; videogen/defaults.py has the base of every stage")
    parts = [f"parts.{name}" for name in config.parts]
    _check_sections(config, [*parts, *(f"{part}.model" for part in parts)])
    optimizers = [f"optimizer.{group}" for group in config.optimizer]
    _check_sections(config, optimizers)
    rules = dict(SETTINGS)
    rules |= {f"{part}.{key}": str for part in parts for key in ("checkpoint", "hash")}
    rules |= {f"{optimizer}.{key}": rule for optimizer in optimizers for key, rule in OPTIMIZER.items()}
    rules |= {f"parallel.mesh.{axis}": Annotated[int, Number(int, -1)] for axis in config.parallel.mesh}
    for key, rule in rules.items():
        if (value := _find(config, key)) is not _ABSENT:
            check_value(f"config.{key}", rule, value)
    for key, value in flatten(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{key} must be a finite number, got {value}")


def _check_sections(config: Any, keys: Iterable[str]) -> None:
    for key in keys:
        if not isinstance(value := _find(config, key), ConfigDict) and value is not _ABSENT:
            raise UserError(f"config.{key} must be a section with keys of its own, got {shown(value)}")


_ABSENT = object()


def _find(config: Any, key: str) -> Any:
    """The value of a dotted key; ``_ABSENT`` where there is none, or a value stands in the place of a section."""
    for part in key.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return _ABSENT
        config = config[part]
    return config


def check_same_everywhere(config: Any) -> None:
    """Refuses a job whose processes were started with different settings, which would wait for each other for ever.

    Raises:
      UserError: names the first setting that differs from process 0's.
    """
    if jax.process_count() == 1:
        return
    mine = flatten(config)
    theirs = json.loads(from_process_zero(json.dumps(mine)))
    if changed := sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)):
        key = changed[0]
        raise UserError(
            f"config.{key} is {mine.get(key)!r} in process {jax.process_index()} and {theirs.get(key)!r} in process 0; "
            "start every process with the same settings"
        )


@contextlib.contextmanager
def building(what: str) -> Iterator[None]:
    """Turns whatever Python or a library raises in the body into one line: nothing but the config decides there.

    The stack is logged with --verbosity=1, for those who write the parts.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        logging.debug("%s cannot be built", what, exc_info=True)
        reason = " ".join(str(error).split()) or "no reason given"
        if len(reason) > 300:
            reason = f"{reason[:300]} …"
        raise UserError(
            f"{what} cannot be built from these settings ({type(error).__name__}: {reason}); --verbosity=1 shows where"
        ) from error


def check_memory(state: State, placement: State, batch: Any) -> None:
    """Refuses a state or a batch that one device cannot hold, before it is allocated.

    Args:
      state: its (abstract) arrays.
      placement: their shardings.
      batch: abstract arrays that carry their shardings.

    Raises:
      UserError: says how much is needed and how much there is.
    """
    available = memory_of_a_device()
    if (needed := sum(jax.tree.leaves(jax.tree.map(_bytes, state, placement)))) > available:
        raise UserError(
            f"parameters and optimizer state need {_size(needed)} on each device, which has {_size(available)}; "
            "use a smaller model, or share the state out with parallel.mesh.fsdp"
        )
    if (needed := sum(_bytes(x, x.sharding) for x in jax.tree.leaves(batch))) > available:
        raise UserError(
            f"a batch needs {_size(needed)} on each device, which has {_size(available)}; use a smaller "
            "data.batch_size or data.image_batch_size, or more data-parallel devices"
        )


def check_held_out(count: int, fields: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
    """Refuses held-out clips that take more than a quarter of the machine's memory, before they are read.

    Args:
      count: clips that an evaluation during training uses.
      fields: the arrays of a clip, as ``Source.fields``.

    Raises:
      UserError: says how much is needed and how much there is.
    """
    needed = count * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in fields.values())
    if needed > (available := _memory_of_the_machine() / 4):
        raise UserError(
            f"the {count:,} clips of an evaluation need {_size(needed)}, more than a quarter of this machine's memory "
            f"({_size(available)}); use a smaller data.eval_batch_size"
        )


def _bytes(array: Any, sharding: Any) -> int:
    """Of an (abstract) array, on one device."""
    return math.prod(sharding.shard_shape(array.shape)) * array.dtype.itemsize


def memory_of_a_device() -> float:
    """Bytes; virtual CPU devices share the machine's memory."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return limit or _memory_of_the_machine() / jax.local_device_count()


def _memory_of_the_machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"
