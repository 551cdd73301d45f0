"""Results of ``videogen.evaluate`` side by side, where they were measured alike."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from videogen.errors import UserError
from videogen.reporting.page import METRICS, Section, Table, write_report

OF_THE_MODEL = ("weights", "step", "sampler", "held_out", "generated", "codec")
"""Fields of a protocol that say which model was measured; all others say how."""

Result = Mapping[str, Any]


def read_result(path: epath.PathLike) -> Result:
    """A file that ``videogen.evaluate`` wrote.

    Raises:
      UserError: it is none.
    """
    try:
        record = json.loads(epath.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; name a file that videogen.evaluate wrote") from error
    sections = [record.get(name) if isinstance(record, dict) else None for name in ("protocol", "metrics")]
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(f"{path} is no result of videogen.evaluate: it has no 'protocol' and 'metrics'")
    return record


def flattened(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name with dots, value) of nested sections."""
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check_alike(results: Mapping[str, Result], but: Sequence[str] = ()) -> None:
    """Refuses results whose protocols differ in anything but the model.

    Args:
      results: by what they are called.
      but: fields of protocols that may differ, too.

    Raises:
      UserError: it names the first field that differs, and both values.
    """
    (first, result), *others = results.items()
    expected = _how(result)
    for name, other in others:
        found = _how(other)
        fields = sorted((expected.keys() | found.keys()) - set(but), key=_order)
        for field in fields:
            a, b = (known.get(field, "nothing") for known in (expected, found))
            if a != b:
                raise UserError(
                    f"{first} and {name} were not measured alike: protocol.{field} is {a} in the first and {b} in the "
                    "other; evaluate both with the same protocol"
                )


def _order(field: str) -> tuple[bool, bool, str]:
    """The name first, and last what was measured beside."""
    return field != "name", field.startswith("beside."), field


def _how(result: Result) -> dict[str, Any]:
    kept = {name: value for name, value in result["protocol"].items() if name not in OF_THE_MODEL}
    return dict(flattened(kept)) | {"seed": result.get("seed")}


def rows(results: Mapping[str, Result]) -> list[list[str]]:
    """A row for each number: its name, its value in every result (``–`` where it was not measured), what is better."""
    numbers = [
        {name: value for name, value in flattened(result["metrics"]) if isinstance(value, int | float)}
        for result in results.values()
    ]
    names = list(dict.fromkeys(name for values in numbers for name in values))
    return [[name, *(_shown(values.get(name)) for values in numbers), _better(name)] for name in names]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _better(name: str) -> str:
    return METRICS[name][2] if name in METRICS else ""


def as_text(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """A table in columns of equal width, the first one to the left."""
    widths = [max(len(line[i]) for line in (header, *table)) for i in range(len(header))]
    lines = []
    for name, *values, better in (header, *table):
        columns = [name.ljust(widths[0]), *(v.rjust(w) for v, w in zip(values, widths[1:-1], strict=True)), better]
        lines.append("  ".join(columns).rstrip())
    return "\n".join(lines)


def compare(paths: Sequence[epath.PathLike], page: epath.PathLike | None = None) -> str:
    """The table of some results.

    Args:
      paths: files of ``videogen.evaluate``, at least two.
      page: HTML file to write as well.

    Raises:
      UserError: fewer than two, a file that is no result, or results that were not measured alike.
    """
    if len(paths) < 2:
        raise UserError("name at least two results: python -m videogen.compare A.json B.json")
    if len(set(map(str, paths))) < len(paths):
        raise UserError("the same result is named twice")
    results = {str(path): read_result(path) for path in paths}
    check_alike(results)
    header, table = ["metric", *short_names(results), ""], rows(results)
    if page is not None:
        first = next(iter(results.values()))
        fields = [f"{name}: {value}" for name, value in _how(first).items()]
        sections = [Section("Results", "Measured alike: " + ", ".join(fields) + ".", [Table(header, table)])]
        write_report(page, "Comparison", sections, ["python -m videogen.compare " + " ".join(results)])
    return as_text(header, table)


def short_names(paths: Mapping[str, Any]) -> list[str]:
    """The paths without what they all begin and end with."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    while all(len(path) > 1 for path in parts) and len({path[0] for path in parts}) == 1:
        parts = [path[1:] for path in parts]
    while all(len(path) > 1 for path in parts) and len({path[-1] for path in parts}) == 1:
        parts = [path[:-1] for path in parts]
    return ["/".join(path) for path in parts]
