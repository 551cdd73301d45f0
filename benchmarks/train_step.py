"""Times one training step of the C-ViViT tokenizer and of the masked transformer at two fixed sizes.

    python benchmarks/train_step.py [--peer]

Prints one JSON line per measurement: {"name", "seconds_per_step", "batch", "shape", "parameters", "dtype", "device"};
the median of at least 7 steps after compilation. With --peer the same steps of phenaki-pytorch follow in the same run
(`pip install phenaki-pytorch==0.5.0`), and a line with the ratio of each pair: ours over theirs.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import generators, tokenizers  # noqa: E402
from videogen.conditioning import Conditioning, EncodedText  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.shapes import TokenGrid  # noqa: E402
from videogen.tokens import Layout, SegmentLayout, Tokens  # noqa: E402
from videogen.training.state import parameter_count  # noqa: E402

PEER = flags.DEFINE_bool("peer", False, "Also time phenaki-pytorch, which must be installed.")
STEPS = flags.DEFINE_integer("steps", 9, "Timed steps.", lower_bound=7)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")

VIDEO = (4, 9, 64, 64, 3)
TOKENS = (4, 320)
CVIVIT = {
    "name": "cvivit",
    "patch": (2, 8, 8),
    "width": 128,
    "heads": 4,
    "mlp_width": 512,
    "encoder_layers": (4, 4),
    "decoder_layers": (4, 4),
    "quantizer": {"name": "vq", "size": 1024, "width": 32, "restart_threshold": 0.01},
}
TRANSFORMER = {"width": 512, "layers": 8, "heads": 8, "mlp_width": 2048, "null_keys": 2}
MASKED = {"name": "masked", "transformer": TRANSFORMER}


def median_seconds(step: Callable[[], None], steps: int) -> float:
    """Median wall time of ``steps`` calls, after one that is not counted."""
    step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def report(name: str, seconds: float, shape: tuple[int, ...], parameters: int, device: str) -> None:
    record = {"name": name, "seconds_per_step": round(seconds, 4), "batch": shape[0], "shape": list(shape[1:])}
    record |= {"parameters": parameters, "dtype": DTYPE.value, "device": device}
    print(json.dumps(record), flush=True)


def stepper(module: nnx.Module, loss: Callable, *inputs: jax.Array) -> tuple[Callable[[], None], int]:
    """A closure that runs one AdamW step of ``loss(module, *inputs)`` and waits for it."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    optimizer = optax.adamw(1e-4, b1=0.9, b2=0.99)
    count = parameter_count(params)

    def step(params: dict, state: tuple, rest: dict, *inputs: jax.Array) -> tuple:
        def value(params: dict) -> tuple:
            live = nnx.merge(graph, params, rest)
            return loss(live, *inputs), nnx.to_pure_dict(nnx.state(live, nnx.Not(nnx.Param)))

        grads, moved = jax.grad(value, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, moved

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    carried = [params, optimizer.init(params), rest]

    def run() -> None:
        carried[:] = compiled(*carried, *inputs)
        jax.block_until_ready(carried)

    return run, count


def ours(dtype: jnp.dtype) -> dict[str, tuple[Callable[[], None], tuple[int, ...], int]]:
    """Name -> (step, input shape, parameters)."""
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, VIDEO), jnp.float32)
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 1024, (4, 5, 8, 8, 1)), jnp.int32)
    features = jnp.asarray(np.random.default_rng(2).normal(size=(4, 16, 768)), jnp.float32)
    grid = TokenGrid(5, 8, 8)
    layout = Layout.of(video=SegmentLayout.on_grid(grid, (1024,)))

    def reconstruct(model: nnx.Module, video: jax.Array) -> jax.Array:
        latents, _, losses, _ = model.bottleneck(model.encode(video), key=jax.random.key(0), train=True)
        return jnp.mean((model.decode(latents) - video) ** 2) + sum(losses.values())

    def masked(model: nnx.Module, ids: jax.Array, features: jax.Array) -> jax.Array:
        conditioning = Conditioning(EncodedText(features, jnp.ones(features.shape[:2], bool)))
        return model.loss(Tokens.single(ids, layout), conditioning, jax.random.key(0))[0]

    tokenizer = tokenizers.build(CVIVIT, dtype=dtype, remat="none", rngs=nnx.Rngs(0))
    generator = generators.build(
        MASKED,
        vocabulary=(1024,),
        grid=grid.shape,
        context_width=768,
        classes=None,
        remat="none",
        dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    tokenizer_step, tokenizer_size = stepper(tokenizer, reconstruct, video)
    generator_step, generator_size = stepper(generator, masked, ids, features)
    return {
        "cvivit": (tokenizer_step, VIDEO, tokenizer_size),
        "masked_transformer": (generator_step, TOKENS, generator_size),
    }


def main(_: list[str]) -> None:
    device = jax.devices()[0].device_kind
    pairs = ours(jnp.dtype(DTYPE.value))
    theirs = {}
    if PEER.value:
        import phenaki_peer
        from common import peer_packages

        with peer_packages("torch transformers phenaki-pytorch==0.5.0"):
            theirs = phenaki_peer.steps(VIDEO, TOKENS)
    for name, (step, shape, parameters) in pairs.items():
        seconds = median_seconds(step, STEPS.value)
        report(f"videogen/{name}", seconds, shape, parameters, device)
        if name in theirs:
            step, parameters = theirs[name]
            peer = median_seconds(step, STEPS.value)
            report(f"phenaki-pytorch/{name}", peer, shape, parameters, device)
            print(json.dumps({"name": f"ratio/{name}", "ours_over_theirs": round(seconds / peer, 3)}), flush=True)


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
