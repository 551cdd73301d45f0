"""What the first steps of every debug config give, to compare a change of the code with what was before it.

    python benchmarks/baseline.py --out=docs/results/baseline.json
    python benchmarks/baseline.py --against=docs/results/baseline.json [--only=phenaki,larp]

Every stage of every system takes 20 steps from its seed on one batch of noise. A row of the file holds the loss and the
gradient norm of each step and the parameters. Compare on one machine with one set of XLA_FLAGS, which the file names:
sums round differently on others.
``--against`` prints one line per stage: the relative difference of the first loss and of the first gradient norm, which
are that of rounding where nothing changed, and of the loss of step 20, where rounding has grown. It ends with code 1
where a stage is further off than 1e-6 at first or 1e-3 at last, or has other parameters.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.steps import run  # noqa: E402
from launch.systems import module_of, read_config  # noqa: E402
from videogen import app  # noqa: E402
from videogen.configuration import CONFIGS, short_config  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.errors import UserError  # noqa: E402
from videogen.planning.programs import complete_for_planning  # noqa: E402

OUT = flags.DEFINE_string("out", None, "File for the rows.")
AGAINST = flags.DEFINE_string("against", None, "File of rows that were written before.")
ONLY = flags.DEFINE_list("only", [], "Parts of NAME:stage; by default every stage of every system.")

STEPS = 20
FIRST, LAST = 1e-6, 1e-3


def every_stage() -> list[str]:
    """``NAME:stage=…,size=debug`` of every stage of every system."""
    found = []
    for path in sorted(CONFIGS.glob("[!_]*.py")):
        stages = getattr(module_of(str(path)), "STAGES", ())
        found += [f"{path.stem}:stage={stage},size=debug" for stage in stages]
    return found


def row_of(argument: str) -> dict[str, Any]:
    """The row of one stage."""
    config = read_config([f"--config={argument}"]).copy_and_resolve_references()
    complete_for_planning(config)
    done = run(config, STEPS)
    norms = [name for name in done["metrics"][0] if name.startswith("gradient_norm")]
    return {
        "config": argument,
        "parameters": done["parameters"],
        "losses": [step["loss"] for step in done["metrics"]],
        "gradient_norms": {name: [step[name] for step in done["metrics"]] for name in norms},
    }


def differences(row: dict[str, Any], before: dict[str, Any]) -> dict[str, float]:
    """How far a row is from the one before it, relative."""

    def relative(new: float, old: float) -> float:
        return abs(new - old) / max(abs(old), 1e-30)

    norms = [relative(row["gradient_norms"][n][0], old[0]) for n, old in before["gradient_norms"].items()]
    return {
        "loss_1": relative(row["losses"][0], before["losses"][0]),
        "gradient_norm_1": max(norms),
        f"loss_{STEPS}": relative(row["losses"][-1], before["losses"][-1]),
    }


def main() -> None:
    chosen = [a for a in every_stage() if not ONLY.value or any(part in a for part in ONLY.value)]
    if not chosen:
        raise UserError(f"--only={','.join(ONLY.value)} names no stage of any system")
    known = json.loads(Path(AGAINST.value).read_text())["rows"] if AGAINST.value else []
    before, rows, off = {short_config(row["config"]): row for row in known}, [], 0
    for argument in chosen:
        rows.append(row := row_of(argument))
        if argument in before:
            found = differences(row, before[argument])
            same = row["parameters"] == before[argument]["parameters"]
            good = same and max(found["loss_1"], found["gradient_norm_1"]) <= FIRST and found[f"loss_{STEPS}"] <= LAST
            off += not good
            print(
                argument, *(f"{name} {value:.2g}" for name, value in found.items()), "" if good else "OFF", flush=True
            )
        else:
            print(json.dumps(row), flush=True)
        if OUT.value:
            flags_of_xla = os.environ.get("XLA_FLAGS", "")
            record = {"command": f"python {' '.join(sys.argv)}", "XLA_FLAGS": flags_of_xla, "rows": rows}
            Path(OUT.value).write_text(json.dumps(record, indent=1) + "\n")
    if off:
        sys.exit(1)


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
