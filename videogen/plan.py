"""Says whether a run fits, how fast it can be and what bounds it, before any accelerator is paid for.

    python -m videogen.plan --config=phenaki:stage=generator,size=paper --topology=v5p:4x4x4 --search
    python -m videogen.plan --config=… --topology=v6e:16x16 --slices=2 --config.parallel.mesh.fsdp=64 --out=plan.json
    python -m videogen.plan --config=… --topology=local

Compiles the real train step for that hardware on this machine, which needs none of it. The quick plan stops before the
compiler generates code; --full goes to the end, which proves that it can.
"""

import json
import os
import time

from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from videogen import app
from videogen.configuration import check_writable

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE:stage=…,size=… of the stage to plan, e.g. phenaki:stage=generator,size=paper"
)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chips: v5p:4x4x4, v6e:16x16, v5e:…, v4:…, tpu7x:…, h100:64; or local: this machine."
)
SLICES = flags.DEFINE_integer("slices", 1, "How many such TPU slices; mesh axis replica runs over them.")
OUT = flags.DEFINE_string("out", None, "File for the plan as JSON.")
FULL = flags.DEFINE_bool("full", False, "Compile to the end; takes minutes.")
SEARCH = flags.DEFINE_bool("search", False, "Try meshes and remat policies, and plan the best.")
flags.mark_flags_as_required(["config", "topology"])


def main() -> None:
    """Runs the command."""
    # Imported late so that --help and bad flags answer at once.
    from videogen.parallel.topology import local_topology, parse_topology, require_compiler

    asked = local_topology() if TOPOLOGY.value == "local" else TOPOLOGY.value
    # Nothing is computed here; looking for accelerators would take seconds.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from videogen.planning.plans import plan_of, ranking, summary, table
    from videogen.planning.programs import Request, compile_for, complete_for_planning
    from videogen.planning.search import search

    started = time.monotonic()
    topology = parse_topology(asked, SLICES.value)
    require_compiler(topology)
    if OUT.value:
        check_writable(OUT.value, "--out")
    config = CONFIG.value
    assumed = complete_for_planning(config)
    try:
        if SEARCH.value:
            plans = search(config, topology, assumed)
            plan = plans[0] | {"candidates": [summary(plan) for plan in plans]}
            print(ranking(plans), end="\n\n")
        else:
            mesh = dict(config.parallel.mesh)
            if topology.slices > 1 and mesh["replica"] == 1:
                mesh["replica"] = topology.slices
            remat, frozen = config.parallel.remat, config.parallel.frozen
            request = Request(str(topology), topology.slices, mesh, remat, frozen, FULL.value)
            logging.info("compiling for %s …", topology)
            plan = plan_of(compile_for(config, request), topology, config, assumed)
    except RuntimeError as error:
        app.stop(error)
    plan["plan_seconds"] = time.monotonic() - started
    print(table(plan))
    if OUT.value:
        epath.Path(OUT.value).write_text(json.dumps(plan, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
