"""How the launchers read the configs of a system and the settings given to them."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from videogen.app import override_error, with_found_config
from videogen.configuration import find_config, flatten
from videogen.errors import UserError, near_matches


def module_of(file: str) -> ModuleType:
    """A config file, given by path or by name, as a module.

    Raises:
      UserError: no such config.
    """
    path = Path(find_config(file))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stages_of(file: str, module: ModuleType) -> tuple[str, ...]:
    """The ``STAGES`` of a config file."""
    if not hasattr(module, "STAGES"):
        raise UserError(f"{file} has no STAGES, so it describes no system")
    return module.STAGES


def read_config(arguments: list[str]) -> Any:
    """The config that ``--config=… --config.key=value …`` gives, as the commands read it."""
    values = flags.FlagValues()
    argv = ["launch", *with_found_config(arguments)]
    holder = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise override_error(error, argv) from error
    return holder.value


def settings_of(
    settings: Sequence[str], stage: str, stages: Sequence[str], configs: dict[str, Any], flag: str = "--set"
) -> list[str]:
    """The ``--config.KEY=VALUE`` of one stage among ``settings``.

    Args:
      settings: ``STAGE.KEY=VALUE``, or ``KEY=VALUE`` for every stage that has the key.
      stage: whose they are.
      stages: all of the system.
      configs: the config of every stage, without settings.
      flag: that they were given with, for messages.

    Raises:
      UserError: a setting names no stage and no key of any.
    """
    known = {name: _keys(config) for name, config in configs.items()}
    chosen = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        first, _, rest = key.partition(".")
        if not equals or not key or (first in stages and not rest):
            raise UserError(f"{flag}={setting} must be KEY=VALUE or STAGE.KEY=VALUE, e.g. {flag}={stages[0]}.steps=100")
        if first in stages:
            if first == stage:
                chosen.append(f"--config.{rest}={value}")
        elif not any(key in keys for keys in known.values()):
            near = near_matches(first, stages) if rest and first not in {k.split(".")[0] for k in known[stage]} else ""
            everything = sorted(set().union(*known.values()))
            raise UserError(f"{flag}={setting} names no stage and no setting{near or near_matches(key, everything)}")
        elif key in known[stage]:
            chosen.append(f"--config.{key}={value}")
    return chosen


def _keys(config: Any) -> set[str]:
    """Dotted keys of settings and sections."""
    leaves = list(flatten(config))
    return {".".join(key.split(".")[: i + 1]) for key in leaves for i in range(key.count(".") + 1)}
