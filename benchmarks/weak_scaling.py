"""Weak scaling by plan: the same work per chip on 1 to 4,096 chips, compiled for hardware that is not there.

    python benchmarks/weak_scaling.py --config=phenaki:stage=generator,size=paper [--out=FILE.json]

Prints one JSON line per size: {"topology", "chips", "mesh", "batch", "step_seconds", "mfu", "efficiency",
"gib_per_chip", "wire_gib_per_chip", "fits", "plan_seconds"}; efficiency is the MFU relative to the smallest size. Every
chip keeps the batch it has on 64 chips with the config's batch; weights are sharded over at most --fsdp chips, the rest
is data parallel.
"""

import json
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import app  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE:stage=…,size=…")
TOPOLOGIES = flags.DEFINE_list(
    "topologies",
    ["v5p:1x1x1", "v5p:2x2x2", "v5p:4x4x4", "v5p:8x8x8", "v5p:16x16x16"],
    "Slices to plan for, the smallest first.",
)
FSDP = flags.DEFINE_integer("fsdp", 64, "Most chips that share the weights.")
REMAT = flags.DEFINE_string("remat", "dots", "Rematerialisation policy.")
OUT = flags.DEFINE_string("out", None, "File for all lines as one JSON object, with the command.")
flags.mark_flags_as_required(["config"])

REFERENCE_CHIPS = 64


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from videogen.parallel.topology import GIB, parse_topology
    from videogen.planning.plans import plan_of
    from videogen.planning.programs import Request, compile_for, complete_for_planning

    rows = []
    for name in TOPOLOGIES.value:
        topology = parse_topology(name)
        config = CONFIG.value.copy_and_resolve_references()
        assumed = complete_for_planning(config)
        for key in ("batch_size", "image_batch_size"):
            config.data[key] = config.data[key] * topology.devices // REFERENCE_CHIPS
        fsdp = min(FSDP.value, topology.devices)
        mesh = {"data": topology.devices // fsdp, "fsdp": fsdp}
        compiled = compile_for(config, Request(name, 1, mesh, REMAT.value, "sharded"))
        plan = plan_of(compiled, topology, config, assumed)
        rows.append(
            {
                "topology": name,
                "chips": plan["chips"],
                "mesh": mesh,
                "batch": config.data.batch_size,
                "step_seconds": plan["seconds"] and plan["seconds"]["step"],
                "mfu": plan["mfu"],
                "efficiency": plan["mfu"] and plan["mfu"] / (rows[0]["mfu"] if rows else plan["mfu"]),
                "gib_per_chip": plan["bytes_per_chip"]["total"] / GIB,
                "wire_gib_per_chip": sum(c["wire_bytes"] for c in plan["collectives"]) / GIB,
                "fits": plan["fits"],
                "plan_seconds": plan["plan_seconds"],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if OUT.value:
        result = {"command": "python " + " ".join(sys.argv), "assumptions": plan["assumptions"], "rows": rows}
        Path(OUT.value).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
