"""Times the drawing of codes: next-token against next-block decoding, both with cached keys and values.

    python benchmarks/sampling.py [--peer] [--layers=24 --width=512 --heads=8]

Prints one JSON line per measurement: {"name", "seconds", "frames_per_second", "passes", "batch", "tokens",
"parameters", "dtype", "device"}, the median of at least 3 after compilation, and a line with each ratio. A frame is one
latent frame: ``--grid=5,16,16`` holds 17 frames of video in 5. With --peer a plain PyTorch sampler of the same size
follows in the same run.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import app  # noqa: E402
from videogen.conditioning import Conditioning  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.generators import BlockSampler, NextBlockTransformer  # noqa: E402
from videogen.shapes import TokenGrid  # noqa: E402
from videogen.tokens import Layout, SegmentLayout  # noqa: E402
from videogen.training.state import parameter_count  # noqa: E402

GRID = flags.DEFINE_list("grid", ["5", "8", "8"], "Latent frames, rows and columns of a clip.")
BLOCKS = flags.DEFINE_multi_string("block", ["1,1,8"], "Sides of a block; may be repeated.")
START = flags.DEFINE_enum("start", "block", ["block", "tokens"], "How the first block is drawn.")
VOCABULARY = flags.DEFINE_integer("vocabulary", 1024, "Codes.")
WIDTH = flags.DEFINE_integer("width", 512, "Width of the transformer.")
LAYERS = flags.DEFINE_integer("layers", 11, "Layers of the transformer.")
HEADS = flags.DEFINE_integer("heads", 8, "Attention heads.")
BATCH = flags.DEFINE_integer("batch", 1, "Clips drawn at a time.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs.", lower_bound=3)
PEER = flags.DEFINE_bool("peer", False, "Also time a plain PyTorch sampler, next token by next token.")


def median_seconds(draw: Callable[[], object], repeats: int) -> float:
    """Median wall time of ``repeats`` calls, after one that is not counted."""
    draw()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        draw()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


GPT2 = {"norm": "layer", "qk_norm": False}


def sampler_of(grid: TokenGrid, block: tuple[int, ...]) -> tuple[Callable[[], object], int, int]:
    """(draws one batch, passes, parameters) of a model with these blocks."""
    model = NextBlockTransformer(
        (VOCABULARY.value,),
        grid.shape,
        {"width": WIDTH.value, "layers": LAYERS.value, "heads": HEADS.value, "mlp_width": 4 * WIDTH.value, **GPT2},
        block=block,
        start=START.value,
        dtype=jnp.dtype(DTYPE.value),
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(model)
    keys = jax.random.split(jax.random.key(0), BATCH.value)

    @jax.jit
    def draw(state: nnx.State) -> jax.Array:
        layout = Layout.of(video=SegmentLayout.on_grid(grid, (VOCABULARY.value,)))
        return nnx.merge(graph, state).sample(layout, Conditioning(), keys, BlockSampler()).only.values

    return lambda: jax.block_until_ready(draw(state)), model.passes(grid), parameter_count(nnx.to_pure_dict(state))


def report(name: str, grid: TokenGrid, seconds: float, passes: int, parameters: int) -> None:
    record = {"name": name, "seconds": round(seconds, 4)}
    record |= {"frames_per_second": round(BATCH.value * grid.time / seconds, 3), "passes": passes}
    record |= {"batch": BATCH.value, "tokens": grid.tokens, "parameters": parameters, "dtype": DTYPE.value}
    print(json.dumps(record | {"device": jax.devices()[0].device_kind}), flush=True)


def ratio(name: str, seconds: float, reference: float) -> None:
    print(json.dumps({"name": f"ratio/{name}", "times_as_fast": round(reference / seconds, 2)}), flush=True)


def main() -> None:
    grid = TokenGrid(*map(int, GRID.value))
    draw, passes, parameters = sampler_of(grid, (1, 1, 1))
    token = median_seconds(draw, REPEATS.value)
    report("videogen/next_token", grid, token, passes, parameters)
    for text in BLOCKS.value:
        draw, passes, parameters = sampler_of(grid, tuple(map(int, text.split(","))))
        seconds = median_seconds(draw, REPEATS.value)
        report(f"videogen/next_block_{text}", grid, seconds, passes, parameters)
        ratio(f"next_block_{text}_over_next_token", seconds, token)
    if PEER.value:
        from common import peer_packages

        with peer_packages("torch"):
            import cached_peer

        settings = (VOCABULARY.value, WIDTH.value, LAYERS.value, HEADS.value, grid.tokens, BATCH.value)
        draw, parameters = cached_peer.next_token_sampler(*settings)
        peer = median_seconds(draw, REPEATS.value)
        report("pytorch/next_token", grid, peer, grid.tokens, parameters)
        ratio("next_token_over_pytorch", token, peer)


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
