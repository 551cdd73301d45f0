"""Nothing asks for the name or class of a part of another room: it asks the part (read from the syntax trees)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

FILES = sorted(path for room in ("videogen", "launch") for path in (REPOSITORY / room).rglob("*.py"))

OWNERS = {
    "task": ("videogen/tasks/__init__.py",),
    "source": ("videogen/data/", "videogen/configuration.py"),
    "encoder": ("videogen/data/inputs.py", "videogen/planning/programs.py", "videogen/tasks/generator.py"),
    **dict.fromkeys(("model", "sampler", "quantizer", "tokenizer", "teacher", "decoder", "head"), ()),
}
"""Section of a config -> where the name in it may be compared with words."""

PROBES = ("launch/children.py", "launch/systems.py")
"""Where ``hasattr`` asks something of a config file or of a library of the system."""


def compared(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """``(section, line)`` of every comparison of ``section.name``, or of ``config.task``, with words or a table."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        for side in (node.left, *node.comparators):
            if isinstance(side, ast.Attribute) and side.attr == "name" and isinstance(side.value, ast.Attribute):
                yield side.value.attr, node.lineno
            if isinstance(side, ast.Attribute) and side.attr == "task":
                yield "task", node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_names_are_compared_where_they_are_owned(path: Path):
    name, tree = str(path.relative_to(REPOSITORY)), ast.parse(path.read_text())
    wrong = [
        f"line {line}: the name of {section!r} is compared"
        for section, line in compared(tree)
        if section in OWNERS and not any(name.startswith(owner) for owner in OWNERS[section])
    ]
    probes = [
        f"line {node.lineno}: hasattr"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
    ]
    assert wrong + (probes if name not in PROBES else []) == []
