"""Turns a config section ``{name: …, keyword: value, …}`` into an object, with errors that teach."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from ml_collections import ConfigDict

from videogen.errors import UserError, near_matches, shown
from videogen.ranges import Number


def build(table: Mapping[str, Callable], config: Mapping[str, Any], what: str, **shared: Any) -> Any:
    """Calls ``table[config["name"]]`` with the rest of ``config`` and ``shared`` as keyword arguments.

    Args:
      table: public name -> class or function.
      config: a mapping with ``name`` and keyword arguments.
      what: what is being built ("tokenizer", "quantizer", …), for messages.
      **shared: arguments every entry takes (``rngs``, ``dtype``, …); they are not user input.

    Raises:
      UserError: unknown ``name`` or keyword, with the near matches; or a value that is not of the declared type or out
        of the declared range (``videogen.ranges``).
    """
    arguments, target = {key: config[key] for key in config}, look_up(table, config, what)
    name = arguments.pop("name")
    # A class is asked for its __init__: the metaclass of nnx modules hides the signature.
    parameters = dict(inspect.signature(target.__init__ if inspect.isclass(target) else target).parameters)
    parameters.pop("self", None)
    known = {key for key, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    for key in arguments:
        if key not in known or key in shared:
            raise UserError(f"{what} {name!r} has no setting {key!r}{near_matches(key, known - set(shared))}")
    missing = [
        key for key in known - set(arguments) - set(shared) if parameters[key].default is inspect.Parameter.empty
    ]
    if missing:
        raise UserError(f"{what} {name!r} needs the setting {sorted(missing)[0]!r}")
    for key, value in arguments.items():
        check_value(f"{key} of {what} {name!r}", parameters[key].annotation, value)
    return target(**arguments, **shared)


def look_up(table: Mapping[str, Any], config: Mapping[str, Any], what: str) -> Any:
    """``table[config["name"]]``; raises ``UserError`` with the near matches where there is no such name."""
    name = config.get("name")
    if name is None:
        raise UserError(f"the {what} config has no 'name'; known: {', '.join(sorted(table))}")
    if not isinstance(name, str) or name not in table:
        raise UserError(f"unknown {what} {shown(name)}{near_matches(name, table)}")
    return table[name]


def check_value(name: str, declared: Any, value: Any) -> None:
    """Refuses a value that does not fit the annotation it is declared with.

    Numbers, words, sequences and sections are checked; other annotations take any value. A ``float`` may be whole, a
    tuple may be written as a list.

    Args:
      name: what to call it in the message.
      declared: a type annotation.
      value: from a config.

    Raises:
      UserError: names the setting, what it may be, and the value.
    """
    origin, inner = typing.get_origin(declared), typing.get_args(declared)
    if origin is Annotated:
        for rule in inner[1:]:
            rule.check(name, value)
    elif origin in (types.UnionType, typing.Union):
        _check_union(name, inner, value)
    elif declared in (int, float):
        Number(declared).check(name, value)
    elif declared in (bool, str):
        if not isinstance(value, declared):
            raise UserError(f"{name} must be {_KINDS[declared]}, got {shown(value)}")
    elif declared is Sequence or origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            raise UserError(f"{name} must be a sequence such as (1, 2), got {shown(value)}")
        if origin is tuple and ... not in inner and inner and len(inner) != len(value):
            raise UserError(f"{name} must have {len(inner)} entries, got {shown(value)}")
        for i, entry in enumerate(value if inner else ()):
            check_value(f"{name}, entry {i},", inner[i] if origin is tuple and ... not in inner else inner[0], entry)
    elif (origin or declared) in (dict, Mapping) and not isinstance(value, Mapping | ConfigDict):
        raise UserError(f"{name} must be a section with keys of its own, got {shown(value)}")


def check_fields(part: Any) -> None:
    """Refuses a dataclass with a field that does not fit its annotation (see ``check_value``)."""
    for field in dataclasses.fields(part):
        check_value(f"{field.name} of {type(part).__name__}", field.type, getattr(part, field.name))


_KINDS = {bool: "True or False", str: "a word"}


def _check_union(name: str, choices: Sequence[Any], value: Any) -> None:
    """One of the choices must take the value; the message is that of the first that is not ``None``."""
    if value is None and type(None) in choices:
        return
    errors = []
    for choice in choices:
        if choice is not type(None):
            try:
                return check_value(name, choice, value)
            except UserError as error:
                errors.append(error)
    raise errors[0]
