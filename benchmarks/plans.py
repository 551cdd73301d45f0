"""Makes the plans of a file again: runs the command of each of its rows and writes down what it says now.

    python benchmarks/plans.py [--file=docs/results/plans.json] [--only=v6e,h100]

Prints one JSON line per plan: the row without its shares. A new row is a row with nothing but its command.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import app  # noqa: E402
from videogen.parallel.topology import GIB  # noqa: E402

FILE = flags.DEFINE_string("file", "docs/results/plans.json", "The file with the rows.")
ONLY = flags.DEFINE_list("only", [], "Parts of commands; rows with none of them stay as they are.")

SHARES = 10
"""Operations of a plan that its row keeps."""


def run(command: str) -> dict[str, Any]:
    """The row of the plan that a command makes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        program, *rest = shlex.split(command)
        assert program == "python", command
        subprocess.run([sys.executable, *rest, f"--out={out}"], check=True, stdout=subprocess.DEVNULL)
        plan = json.loads(out.read_text())
    row = {"command": command, **{key: plan[key] for key in ("topology", "slices", "chips")}}
    row["mesh"] = {axis: size for axis, size in plan["mesh"].items() if size > 1}
    row |= {key: plan[key] for key in ("remat", "frozen", "fits", "mfu", "bound")}
    row["gib_per_chip"] = plan["bytes_per_chip"]["total"] / GIB
    row |= {key: plan[key] for key in ("seconds", "flops_per_step", "recomputed_flops", "parameters", "plan_seconds")}
    return row | {"assumptions": plan["assumptions"], "shares": plan["shares"][:SHARES]}


def main() -> None:
    path = Path(FILE.value)
    record = json.loads(path.read_text())
    for i, row in enumerate(record["rows"]):
        if ONLY.value and not any(part in row["command"] for part in ONLY.value):
            continue
        record["rows"][i] = run(row["command"])
        shown = {key: value for key, value in record["rows"][i].items() if key not in ("shares", "assumptions")}
        print(json.dumps(shown), flush=True)
        # Long files are written as they grow.
        record["versions"] = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "libtpu"))
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
