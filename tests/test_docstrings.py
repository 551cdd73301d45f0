"""Every public definition says what it is."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [path.relative_to(ROOT) for folder in ("videogen", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def silent(tree: ast.Module) -> Iterator[str]:
    """Names of public functions, classes and methods that have no docstring of their own."""
    if not ast.get_docstring(tree):
        yield ""
    for node in tree.body:
        if not isinstance(node, DEFINITIONS) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef):
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
            yield from (f"{node.name}.{m.name}" for m in methods if m.name[0] != "_" and not ast.get_docstring(m))


def inherited(path: Path, name: str) -> bool:
    """Whether a method overrides one that has a docstring."""
    owner, _, method = name.rpartition(".")
    if not owner or path.parts[0] != "videogen":
        return False
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    return bool(inspect.getdoc(getattr(getattr(module, owner), method)))


def test_silent_definitions_are_found():
    tree = ast.parse(
        '"""A."""\nclass A:\n  def b(self): pass\n  def _c(self): pass\ndef d():\n  """D."""\ndef e(): pass'
    )
    assert list(silent(tree)) == ["A", "A.b", "e"]


def test_public_definitions_have_docstrings():
    missing = [(path, name) for path in FILES for name in silent(ast.parse((ROOT / path).read_text()))]
    assert not [f"{path}: {name}" for path, name in missing if not inherited(path, name)]
