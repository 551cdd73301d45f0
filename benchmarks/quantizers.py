"""Times quantizers, forward and backward, beside vector-quantize-pytorch in the same run.

    python benchmarks/quantizers.py [--width=64] [--steps=5] [--only=vq,lfq]

Latents are [8, 1024, width] and codebooks have 8192 codes (13 bits); EMA codebooks move as in training. Prints one JSON
line per quantizer: {"name", "seconds", "peer_seconds", "ratio", "shape", "codes", "device", "threads"}; medians after
one call that is not counted. The peer's figures are null where it is not installed (pip install
vector-quantize-pytorch) or has no such quantizer.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import quantizers  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402

WIDTH = flags.DEFINE_integer("width", 64, "Width of the latents; bit codes have 13.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 5, "Timed steps.", lower_bound=1)
ONLY = flags.DEFINE_list("only", [], "Names of the quantizers to time; all without it.")

BATCH, TOKENS, CODES, BITS, LEVELS = 8, 1024, 8192, 13, 4


def configs(width: int) -> dict[str, dict[str, Any]]:
    """Name -> quantizer config."""
    vq = {"name": "vq", "size": CODES, "width": width, "cosine": False, "decay": 0.8, "commitment_weight": 1.0}
    half = vq | {"width": width // 2}
    return {
        "vq": vq,
        "residual": {"name": "residual", "base": vq, "levels": LEVELS},
        "product": {"name": "product", "base": half, "groups": 2},
        "additive": {"name": "additive", "size": CODES, "width": width, "levels": LEVELS, "beam": 4},
        "simvq": {"name": "simvq", "size": CODES, "width": width},
        "ibq": {"name": "ibq", "size": CODES, "width": width},
        "stochastic": {"name": "stochastic", "size": CODES, "width": width},
        "fsq": {"name": "fsq", "levels": [8, 8, 8, 4, 4]},
        "lfq": {"name": "lfq", "bits": BITS},
        "bsq": {"name": "bsq", "bits": BITS},
    }


def peers(width: int) -> dict[str, Callable[[], Any]]:
    """Name -> constructor of the same quantizer in vector-quantize-pytorch; empty where it is not installed."""
    try:
        import vector_quantize_pytorch as library
    except ImportError:
        return {}
    vq = dict(codebook_size=CODES, rotation_trick=False)
    return {
        "vq": lambda: library.VectorQuantize(width, **vq),
        "residual": lambda: library.ResidualVQ(dim=width, num_quantizers=LEVELS, **vq),
        "product": lambda: library.GroupedResidualVQ(dim=width, num_quantizers=1, groups=2, **vq),
        "simvq": lambda: library.SimVQ(width, CODES),
        "fsq": lambda: library.FSQ([8, 8, 8, 4, 4]),
        "lfq": lambda: library.LFQ(dim=BITS),
        "bsq": lambda: library.LFQ(dim=BITS, spherical=True),
    }


def median_seconds(step: Callable[[], None], steps: int) -> float:
    step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ours(quantizer: quantizers.Quantizer, z: np.ndarray) -> Callable[[], None]:
    """A training step: gradients of a loss with respect to latents and parameters, and the moved state."""
    graph, params, rest = nnx.split(quantizer, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def loss(params: dict, rest: dict, z: jax.Array, key: jax.Array) -> tuple[jax.Array, dict]:
        live = nnx.merge(graph, params, rest)
        quantized = live(z, key=key, train=True)
        value = jnp.mean(quantized.latents**2) + sum(quantized.losses.values())
        live.update(*jax.lax.stop_gradient((quantized.update_sums, quantized.candidates)), key)
        return value, nnx.to_pure_dict(nnx.state(live, nnx.Not(nnx.Param)))

    step = jax.jit(jax.grad(loss, argnums=(0, 2), has_aux=True))
    latents, key, carried = jnp.asarray(z), jax.random.key(0), [rest]

    def run() -> None:
        gradients, carried[0] = step(params, carried[0], latents, key)
        jax.block_until_ready((gradients, carried))

    return run


def theirs(quantizer: Any, z: np.ndarray) -> Callable[[], None]:
    import torch

    leaf = torch.tensor(z, requires_grad=True)
    quantizer.train()

    def run() -> None:
        leaf.grad = None
        codes, _, *losses = quantizer(leaf)
        (codes.pow(2).mean() + sum(loss.sum() for loss in losses)).backward()

    return run


def main(_: list[str]) -> None:
    others = peers(WIDTH.value)
    for name, config in configs(WIDTH.value).items():
        if ONLY.value and name not in ONLY.value:
            continue
        quantizer = quantizers.build(config, rngs=nnx.Rngs(0))
        z = np.random.default_rng(0).normal(size=(BATCH, TOKENS, quantizer.width)).astype(np.float32)
        seconds = median_seconds(ours(quantizer, z), STEPS.value)
        peer = median_seconds(theirs(others[name](), z), STEPS.value) if name in others else None
        record = {"name": name, "seconds": round(seconds, 4), "peer_seconds": peer and round(peer, 4)}
        record |= {"ratio": peer and round(seconds / peer, 3), "shape": list(z.shape), "codes": CODES}
        record |= {"device": jax.devices()[0].device_kind, "threads": len(os.sched_getaffinity(0))}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
