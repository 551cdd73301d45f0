"""What a run's settings are checked for before anything of it is written."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging

from videogen.configuration import flatten
from videogen.errors import UserError
from videogen.nn import REMAT_POLICIES
from videogen.parallel.distributed import from_process_zero
from videogen.ranges import Number, OneOf
from videogen.tasks.base import DTYPES
from videogen.training.state import FROZEN_LAYOUTS, State

_COUNT, _NATURAL, _POSITIVE = Number(int, 1), Number(int, 0), Number(float, 0, above=True)
_WEIGHT, _SHARE = Number(float, 0), Number(float, 0, 1)

SETTINGS = {
    "seed": Number(int, 0, 2**32 - 2),
    "steps": _COUNT,
    "log_every": _COUNT,
    "eval_every": _COUNT,
    "checkpoint_every": _COUNT,
    "checkpoint.keep": _COUNT,
    "checkpoint.keep_best.mode": OneOf("max", "min"),
    "stall_seconds": _POSITIVE,
    "accumulate": _COUNT,
    "ema.decay": Number(float, 0, 1, below=True),
    "parallel.remat": OneOf(*REMAT_POLICIES),
    "parallel.frozen": OneOf(*FROZEN_LAYOUTS),
    "parallel.dtype": OneOf(*DTYPES),
    "data.clip.frames": _COUNT,
    "data.clip.height": _COUNT,
    "data.clip.width": _COUNT,
    "data.clip.fps": Number(float, 0, 1000, optional=True),
    "data.batch_size": _COUNT,
    "data.image_batch_size": _NATURAL,
    "data.eval_batch_size": _COUNT,
    "data.workers": Number(int, 0, 1024),
    "classes": Number(int, 0, optional=True),
    "text.tokenizer.length": _COUNT,
    "text.tokenizer.vocabulary_size": _COUNT,
    "losses.l1": _WEIGHT,
    "losses.l2": _WEIGHT,
    "losses.perceptual.weight": _WEIGHT,
    "losses.adversarial.weight": _WEIGHT,
    "losses.adversarial.start": _NATURAL,
    "losses.adversarial.every": _COUNT,
    "losses.adversarial.r1": _WEIGHT,
    "losses.adversarial.r1_every": _COUNT,
    "losses.adversarial.lecam": _WEIGHT,
    "losses.adversarial.label_smoothing": _SHARE,
    "losses.adversarial.channel_multiplier": _POSITIVE,
    "losses.prior.weight": _WEIGHT,
}
"""Key of a stage config -> what its value may be. Settings of parts are checked where the parts are declared."""

OPTIMIZER = {
    "learning_rate": _WEIGHT,
    "warmup": _NATURAL,
    "final": _WEIGHT,
    "horizon": Number(int, 1, optional=True),
    "b1": Number(float, 0, 1, below=True),
    "b2": Number(float, 0, 1, below=True),
    "weight_decay": _WEIGHT,
    "clip": _WEIGHT,
    "adam_share": _WEIGHT,
}
"""Key of ``config.optimizer.GROUP`` -> what its value may be."""

MESH = Number(int, -1)


def check_config(config: Any) -> None:
    """Refuses values of another type or out of range.

    Raises:
      UserError: names the key, the value and what it may be.
    """
    values = flatten(config)
    rules = dict(SETTINGS)
    rules |= {f"optimizer.{group}.{key}": rule for group in config.optimizer for key, rule in OPTIMIZER.items()}
    rules |= {f"parallel.mesh.{axis}": MESH for axis in config.parallel.mesh}
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{key} must be a finite number, got {value}")
        if key in rules:
            rules[key].check(f"config.{key}", value)
        else:
            _check_section(config, key, rules)


def _check_section(config: Any, key: str, rules: Mapping[str, Any]) -> None:
    """Refuses a plain value in the place of a section that has keys of its own."""
    below = [name for name in rules if name.startswith(f"{key}.")]
    if below:
        raise UserError(f"config.{key} is a section with keys such as {below[0].rpartition('.')[2]!r}, not one value")


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
            f"{what} cannot be built from these settings ({type(error).__name__}: {reason}); "
            "--verbosity=1 shows where"
        ) from error


def check_memory(state: State, placement: State) -> None:
    """Refuses a state that one device cannot hold, before it is allocated.

    Args:
      state: its (abstract) arrays.
      placement: their shardings.

    Raises:
      UserError: says how much is needed and how much there is.
    """
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, state, placement)
    needed, available = sum(jax.tree.leaves(sizes)), _memory_of_a_device()
    if needed > available:
        raise UserError(
            f"parameters and optimizer state need {_size(needed)} on each device, which has {_size(available)}; "
            "use a smaller model, or share the state out with parallel.mesh.fsdp"
        )


def _memory_of_a_device() -> float:
    """Bytes; virtual CPU devices share the machine's memory."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"
