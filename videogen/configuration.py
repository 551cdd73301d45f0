"""Config arguments (``stage=tokenizer,size=debug``) and the JSON form a run directory keeps."""

import ast
import contextlib
import copy
import json
import os
import runpy
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from videogen.errors import UserError, near_matches, shown
from videogen.formats import FORMAT, to_present


def parse_argument(argument: str | None, **allowed: Sequence[str]) -> dict[str, str]:
    """Reads ``key=value,key=value`` as given after the colon of ``--config=FILE:ARGUMENT``.

    Args:
      argument: the text; empty means all defaults.
      **allowed: key -> allowed values, the first of which is the default.

    Raises:
      UserError: an unknown key or value.
    """
    chosen = {key: values[0] for key, values in allowed.items()}
    for part in filter(None, (argument or "").split(",")):
        key, _, value = part.partition("=")
        if key not in allowed:
            raise UserError(f"unknown config argument {key!r}{near_matches(key, allowed)}")
        if value not in allowed[key]:
            raise UserError(f"unknown {key} {value!r}{near_matches(value, allowed[key])}")
        chosen[key] = value
    return chosen


CONFIGS = Path(__file__).parent / "configs"
"""Where the files of ``videogen.configs`` are."""


def find_config(text: str) -> str:
    """``FILE:ARGUMENTS`` with the path of the file.

    Args:
      text: a path, or the name of a file of ``videogen.configs``: ``phenaki:size=debug``, ``phenaki.py:size=debug`` or
        ``phenaki:size=debug``.

    Raises:
      UserError: no such config; the message lists the near matches.
    """
    name, colon, arguments = text.partition(":")
    path = Path(name)
    if path.expanduser().is_file():
        return f"{path.expanduser()}{colon}{arguments}"
    packaged = CONFIGS / f"{path.stem}.py"
    # A path into another folder is no name.
    if packaged.is_file() and str(path.parent) in (".", "configs"):
        return f"{packaged}{colon}{arguments}"
    near = near_matches(path.stem, [file.stem for file in CONFIGS.glob("[!_]*.py")])
    raise UserError(f"no config {name!r}, neither a file nor a name of videogen.configs{near}")


def stage_config(text: str) -> ConfigDict:
    """The config of one stage that ``FILE:ARGUMENTS`` names, for commands without ``--config``.

    Raises:
      UserError: no such config, or no such arguments.
    """
    file, _, arguments = find_config(text).partition(":")
    return runpy.run_path(file)["get_config"](arguments)


def short_config(text: str) -> str:
    """``FILE:ARGUMENTS`` by name where the file is one of ``videogen.configs``, so that it is the same everywhere.

    Raises:
      UserError: no such config.
    """
    file, colon, arguments = find_config(text).partition(":")
    path = Path(file).resolve()
    return f"{path.stem if path.parent == CONFIGS.resolve() else file}{colon}{arguments}"


def save_config(path: epath.PathLike, config: ConfigDict) -> None:
    """Writes a config as JSON, with its format; an old file is replaced as a whole."""
    replace_text(path, json.dumps({"format": FORMAT, **config.to_dict()}, indent=2, sort_keys=True) + "\n")


def replace_text(path: epath.PathLike, text: str) -> None:
    """Writes a text file as a whole: a reader, or a start after a kill, finds the old one or the new one."""
    path = epath.Path(path)
    unfinished = path.parent / f"{path.name}.part"
    unfinished.write_text(text)
    unfinished.replace(path)


@contextlib.contextmanager
def remote_errors(path: epath.PathLike) -> Iterator[None]:
    """Turns what the libraries of object stores raise for a remote path (``gs://…``) into one line.

    Raises:
      UserError: such paths cannot be read here, or this one cannot be reached.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        unknown = isinstance(error, KeyError)
        reason = "no such kind of path" if unknown else shown(" ".join(str(error).split()) or type(error).__name__)
        raise UserError(f"{path} cannot be reached ({reason}); name a local path, or install what reads it") from error


def load_config(path: epath.PathLike) -> ConfigDict:
    """Reads what ``save_config`` wrote, also in an older format; data only, nothing in it is executed.

    Raises:
      UserError: no such file, no JSON object, or one of a later format.
    """
    path = epath.Path(path)
    with remote_errors(path):
        if not path.exists():
            raise UserError(f"{path.parent} is no run or export directory: it has no {path.name}")
        content = read_file(path)
    try:
        values = json.loads(content.decode())
        if not isinstance(values, dict):
            raise UserError(f"{path} does not hold a config object")
        return ConfigDict(to_present(values, str(path)))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = shown(str(error) or "nested too deeply")
        raise UserError(f"{path} cannot be read as JSON ({reason}); restore it from the run that wrote it") from error


def check_plain_file(path: epath.PathLike) -> None:
    """Refuses a local path that is neither missing nor a file, such as a pipe or a directory.

    Raises:
      UserError: names it.
    """
    if not is_remote(path) and os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"{path} is no plain file")


def read_file(path: epath.PathLike) -> bytes:
    """The content of a file.

    Raises:
      UserError: it is missing, cannot be read, or is no plain file: a pipe would be waited for without end.
    """
    path = epath.Path(path)
    try:
        check_plain_file(path)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def check_writable(path: epath.PathLike, flag: str, directory: bool = False) -> None:
    """Makes the folder that an output goes to and tries to write there, so that hours of work are not lost in the end.

    Args:
      path: the file, or the directory, that is to be written.
      flag: that named it, for the message.
      directory: whether ``path`` is a directory.

    Raises:
      UserError: nothing can be written there.
    """
    path = epath.Path(path)
    folder = path if directory else path.parent
    probe = folder / f".{os.getpid()}.probe"
    try:
        if not directory and path.exists() and path.is_dir():
            raise UserError(f"{flag}: {path} is a directory, and a file is to be written")
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{flag}: cannot write to {folder}: {error.strerror or error}; name another place") from error


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names an object store (``gs://…``), where files can be replaced but do not grow."""
    return "://" in str(path)


def differences(old: ConfigDict, new: ConfigDict, ignore: Sequence[str] = ()) -> list[str]:
    """Dotted keys whose values differ between two configs, outside the ``ignore`` prefixes."""
    old, new = flatten(old), flatten(new)
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [key for key in changed if not any(key == i or key.startswith(i + ".") for i in ignore)]


def flatten(config: ConfigDict) -> dict[str, Any]:
    """``{"a.b.c": value}`` of a nested config, in the JSON form of its values (tuples are lists)."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {k: v for key in value for k, v in walk(f"{prefix}.{key}" if prefix else key, value[key]).items()}

    return walk("", json.loads(json.dumps(config.to_dict())))


def read_settings(texts: Iterable[str], section: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of a section, written ``KEY=VALUE``, ``SECTION.KEY=VALUE`` in the sections in it.

    Args:
      texts: such settings; a value is a Python literal, or else a word.
      section: a section that is named in a setting is this one's with the setting in it.

    Raises:
      UserError: a text is no setting, or goes into what is no section.
    """
    words = {"none": None, "true": True, "false": False}
    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        names = key.strip().split(".")
        if not sign or not all(names):
            raise UserError(f"a setting is written KEY=VALUE, such as attention.name=svg2; got {text!r}")
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        if isinstance(value, str):
            value = words.get(value.lower(), value)
        inner, around = found, section
        for name in names[:-1]:
            if name not in inner:
                inner[name] = copy.deepcopy(dict((around or {}).get(name) or {}))
            inner, around = inner[name], {}
            if not isinstance(inner, dict):
                raise UserError(f"{text!r} goes into {name}, which is no section")
        inner[names[-1]] = value
    return found


def take_data(config: ConfigDict, origin: ConfigDict, given: Iterable[str]) -> list[str]:
    """Gives a stage the source and the clip of the stage whose codes it learns, but for what is given for itself.

    Args:
      config: of a generator or de-tokenizer; changed in place.
      origin: of its tokenizer.
      given: dotted keys that the command says; ``data.own`` names sections of ``data`` that the config decides itself.

    Returns:
      ``KEY=VALUE`` of the settings that are others now.
    """
    given, own = set(given), config.data.get("own", ())
    sections = [name for name in ("source", "clip") if name not in own]
    if config.data.source.name != origin.data.source.name and "data.source.name" in given:
        sections = [name for name in sections if name != "source"]
    taken = []
    with config.unlocked(), config.ignore_type():
        for section in sections:
            ours, theirs = config.data[section], origin.data[section]
            for key in sorted({*ours, *theirs}):
                parents = {f"data.{section}.{key}", f"data.{section}", "data"}
                value = theirs.get(key)
                # In the JSON form, where tuples are lists.
                if not parents & given and json.dumps(ours.get(key)) != json.dumps(value):
                    ours[key] = value
                    taken.append(f"{section}.{key}={value}")
    return taken


def shown_rate(config: ConfigDict) -> float:
    """Frames per second that samples and pictures are written with: what a run found its clips to have, or else 8."""
    return config.data.get("frame_rate") or config.data.clip.fps or 8.0
