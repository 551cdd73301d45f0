"""Runs a program of this folder: python run.py NAME INPUT.npz OUTPUT.npz; needs jax, flatbuffers and safetensors alone.

INPUT.npz has the arrays that manifest.json names for the program. From Python: ``run("encode", video=video)``. This
file stands beside the programs that ``videogen.export --format=stablehlo`` writes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jax import export
from safetensors.numpy import load_file

HERE = Path(__file__).parent


def run(name: str, **arrays: Any) -> dict[str, Any]:
    """Arrays by name -> the results by name; ``SystemExit`` with one line where they are not what the program takes."""
    manifest = json.loads((HERE / "manifest.json").read_text())
    if name not in manifest["programs"]:
        sys.exit(f"error: no program {name!r} here; there are: {', '.join(manifest['programs'])}")
    wanted = manifest["programs"][name]["arguments"]
    if set(arrays) != set(wanted):
        sys.exit(f"error: {name} takes {', '.join(wanted)}, got {', '.join(arrays) or 'nothing'}")
    for key, rule in wanted.items():
        found = np.asarray(arrays[key])
        if list(found.shape) != rule["shape"] or str(found.dtype) != rule["dtype"]:
            sys.exit(
                f"error: {key} of {name} must be {rule['dtype']} of shape {rule['shape']}, "
                f"got {found.dtype} of shape {list(found.shape)}"
            )
    program = export.deserialize(bytearray((HERE / f"{name}.jax").read_bytes()))
    return program.call(load_file(HERE / "weights.safetensors"), **arrays)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    np.savez(sys.argv[3], **run(sys.argv[1], **np.load(sys.argv[2], allow_pickle=False)))
