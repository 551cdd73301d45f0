"""What evaluations have found wrong with checkpoints of a run: a mark beside them that every reader is told of."""

import json
from collections.abc import Sequence

from etils import epath

from videogen.configuration import replace_text

MARKS = "marked_checkpoints.json"
"""In the run directory: step of an evaluation -> what it found wrong, in words; an empty list where all was well."""


def mark(workdir: epath.PathLike, step: int, reasons: Sequence[str]) -> None:
    """Notes what the evaluation after ``step`` steps found; a later evaluation of the same step replaces it."""
    path = epath.Path(workdir) / MARKS
    found = {**_read(path), str(step): list(reasons)}
    replace_text(path, json.dumps(dict(sorted(found.items(), key=lambda entry: int(entry[0]))), indent=1) + "\n")


def marks_at(workdir: epath.PathLike, step: int) -> list[str]:
    """What the last evaluation up to ``step`` found wrong; empty where nothing was, or there was none."""
    found = {int(at): reasons for at, reasons in _read(epath.Path(workdir) / MARKS).items() if int(at) <= step}
    return found[max(found)] if found else []


def _read(path: epath.Path) -> dict[str, list[str]]:
    try:
        found = json.loads(path.read_text())
        return {str(int(step)): [str(reason) for reason in reasons] for step, reasons in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
