"""A text model that is a rule: it stands in for a language model in prompt programs about clips of shapes."""

import json
from collections.abc import Callable

from videogen.data.questions import objects_of, parts_of
from videogen.errors import UserError
from videogen.language.parsing import read_list
from videogen.language.programs import CONCRETE, DECOMPOSE, NEEDED, OBJECTS, Program, decouple

NO_OBJECTS = ("shape", "symbol")
"""What a question about shapes may name and no frame can be searched for: any of them is one."""


def shape_rules(prompt: str) -> str:
    """What a language model would say to a prompt of ``decompose`` or ``decouple`` about a question about shapes.

    Raises:
      UserError: another prompt, or a question that does not follow the grammar of ``data.questions``.
    """
    for template, rule in _RULES.items():
        begin = template[: template.index("{")]
        if prompt.startswith(begin):
            return rule(prompt[len(begin) :])
    raise UserError(f"the rule for shapes answers prompts of decompose and decouple, not {prompt[:60]!r}")


def decouple_shapes() -> Program:
    """``decouple`` with a question that a model of shapes has learned, of the kind ``presence``."""
    return decouple(shows="is there a {objects}?", suffices="")


def _concrete(listed: str) -> str:
    return json.dumps([word for word in read_list(listed) or listed.split(", ") if word and word not in NO_OBJECTS])


_RULES: dict[str, Callable[[str], str]] = {
    DECOMPOSE: lambda question: json.dumps(parts_of(question)),
    NEEDED: lambda question: "yes" if objects_of(question) else "no",
    OBJECTS: lambda question: json.dumps(objects_of(question)),
    CONCRETE: _concrete,
}
