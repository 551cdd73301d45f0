"""Turns a config section ``{name: …, keyword: value, …}`` into an object, with errors that teach."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from videogen.errors import UserError, near_matches


def build(table: Mapping[str, Callable], config: Mapping[str, Any], what: str, **shared: Any) -> Any:
    """Calls ``table[config["name"]]`` with the rest of ``config`` and ``shared`` as keyword arguments.

    Args:
      table: public name -> class or function.
      config: a mapping with ``name`` and keyword arguments.
      what: what is being built ("tokenizer", "quantizer", …), for messages.
      **shared: arguments every entry takes (``rngs``, ``dtype``, …); they are not user input.

    Raises:
      UserError: unknown ``name`` or keyword; the message lists the near matches.
    """
    arguments = {key: config[key] for key in config}
    name = arguments.pop("name", None)
    if name is None:
        raise UserError(f"the {what} config has no 'name'; known: {', '.join(sorted(table))}")
    if name not in table:
        raise UserError(f"unknown {what} {name!r}{near_matches(name, table)}")
    target = table[name]
    # A class is asked for its __init__: the metaclass of nnx modules hides the signature.
    parameters = dict(inspect.signature(target.__init__ if inspect.isclass(target) else target).parameters)
    parameters.pop("self", None)
    known = {key for key, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    for key in arguments:
        if key not in known:
            raise UserError(f"{what} {name!r} has no setting {key!r}{near_matches(key, known - set(shared))}")
    missing = [
        key for key in known - set(arguments) - set(shared) if parameters[key].default is inspect.Parameter.empty
    ]
    if missing:
        raise UserError(f"{what} {name!r} needs the setting {sorted(missing)[0]!r}")
    return target(**arguments, **shared)
