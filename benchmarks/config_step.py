"""Times the train step of any config on the devices that are here, with random weights and random data.

    python benchmarks/config_step.py --config=phenaki:stage=generator,size=debug [--steps=9]
    python benchmarks/config_step.py --config=phenaki:stage=generator,size=paper \\
        --config.model.transformer.width=1536 --config.model.transformer.heads=12 \\
        --config.model.transformer.mlp_width=6144 --config.data.source.name=tokens

Prints one JSON line: {"command", "seconds_per_step", "videos_per_second", "tokens_per_second", "tflops_per_second",
"mfu", "parameters", "argument_bytes", "temporary_bytes", "batch", "dtype", "devices"}; the median after one step that
is not counted. MFU is of the vendor's bfloat16 peak and null where that is not known (CPUs); bytes are of one device,
as the compiler plans them. --out appends the line to a file.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.steps import run  # noqa: E402
from videogen import app  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.parallel.topology import peak_flops  # noqa: E402
from videogen.planning.programs import complete_for_planning  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE:stage=…,size=… of the stage to time.")
STEPS = flags.DEFINE_integer("steps", 9, "Timed steps.", lower_bound=3)
OUT = flags.DEFINE_string("out", None, "File that the line is appended to.")


def measure(config: Any, steps: int) -> dict[str, Any]:
    """The measurement of a completed config, without the first step."""
    done = run(config, steps + 1)
    seconds, work, memory, tokens = statistics.median(done["times"][1:]), done["work"], done["memory"], done["tokens"]
    videos, peak = config.data.batch_size, peak_flops(done["mesh"].devices.flatten())
    return {
        "seconds_per_step": round(seconds, 4),
        "videos_per_second": round(videos / seconds, 2),
        "tokens_per_second": round(videos * tokens / seconds) if tokens else None,
        "tflops_per_second": round(work / seconds / 1e12, 3),
        "mfu": round(work / seconds / peak, 4) if peak else None,
        "parameters": done["parameters"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "batch": videos,
        "dtype": str(jnp.dtype(config.parallel.dtype)),
        "devices": f"{done['mesh'].size} × {jax.devices()[0].device_kind}",
    }


def main() -> None:
    config = CONFIG.value.copy_and_resolve_references()
    complete_for_planning(config)
    line = json.dumps({"command": "python " + " ".join(sys.argv), **measure(config, STEPS.value)})
    print(line, flush=True)
    if OUT.value:
        with Path(OUT.value).open("a") as file:
            file.write(f"{line}\n")


if __name__ == "__main__":
    use_large_pages()
    flags.mark_flag_as_required("config")
    app.run(main)
