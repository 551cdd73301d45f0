"""Measures Sparse VideoGen2's attention: error against density beside blocks by position, FLOPs, and time.

    nice -n 10 taskset -c 1 python benchmarks/sparse_attention.py --train=300 --weights=flow.safetensors   # trains only
    python benchmarks/sparse_attention.py --weights=flow.safetensors --out=FOLDER

A small flow transformer is trained on moving shapes, whose pixels are its latents: 8 × 24 × 24 in patches of
1 × 2 × 2 are 1,152 tokens. Then it prints one JSON line per measurement, and writes ``sparse_attention.json`` with all
of them and ``sparse_attention.png``, the curves, into ``--out``:

``curve``: mean density, relative error of the attention's output and recalled mass, over layers, heads, noise levels
    and clips, for each top-p; with clusters of k-means (``svg2``), with runs of neighbouring tokens (``runs``) and with
    boxes in space and time (``boxes``), as many of them; on planted clusters, of the trained model, and of random
    weights.
``video``: a video drawn sparsely or with cached layers beside the dense one of the same noise: PSNR, SSIM, density, and
    seconds without compilation.
``attention``: seconds of an attention, dense and sparse, clustering included.
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import app  # noqa: E402
from videogen.conditioning import Conditioning  # noqa: E402
from videogen.data import Clip  # noqa: E402
from videogen.data.shapes_source import ShapesSource  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.generators import FlowSampler, FlowTransformer  # noqa: E402
from videogen.metrics import psnr, ssim, to_unit  # noqa: E402
from videogen.nn.block_sparse import floating_point_operations, masked, pairs  # noqa: E402
from videogen.nn.clustering import Clusters, cluster_sizes, drawn_centroids, kmeans  # noqa: E402
from videogen.nn.sparse_attention import SparseStream, plan_of  # noqa: E402
from videogen.shapes import TokenGrid  # noqa: E402
from videogen.tokens import Layout, SegmentLayout, Tokens  # noqa: E402
from videogen.weights import load_weights, save_weights  # noqa: E402

TRAIN = flags.DEFINE_integer("train", 0, "Train for so many steps, write --weights, and measure nothing.")
WEIGHTS = flags.DEFINE_string("weights", None, "File of the trained weights.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for the results and the picture.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 20, "Steps of the drawn videos.", lower_bound=1)

GRID, PATCH = TokenGrid(8, 24, 24), (1, 2, 2)
BOX = {36: (2, 4, 4), 72: (2, 2, 4)}
"""Number of clusters -> tokens of a box along time, height and width of the 8 × 12 × 12 tokens."""

QUERIES, KEYS = 36, 72
TOP_P = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
TIMES = (0.2, 0.5, 0.8)
CLIPS = 2


def model_of(seed: int) -> FlowTransformer:
    transformer = {"width": 64, "layers": 3, "heads": 2, "mlp_width": 256}
    return FlowTransformer(3, GRID.shape, transformer, patch=PATCH, rngs=nnx.Rngs(seed))


def clips(split: str) -> Callable[[int, int], np.ndarray]:
    """``(first, count) -> videos`` in [-1, 1]."""
    source = ShapesSource(clip=Clip(*GRID.shape, 8.0), seed=0, split=split)
    return lambda first, count: np.stack([source[i]["video"] for i in range(first, first + count)]) / 127.5 - 1


def tokens_of(videos: np.ndarray) -> Tokens:
    return Tokens.single(jnp.asarray(videos, jnp.float32), layout())


def layout() -> Layout:
    return Layout.of(video=SegmentLayout.on_grid(GRID, (), 3))


def train(steps: int, path: str) -> None:
    """Trains with a batch of 2 and writes the weights."""
    model, read = model_of(0), clips("train")
    model.statistics.update(model.statistics.sums(jnp.asarray(read(0, 64), jnp.float32)))
    graph, params, others = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, 3e-3, 50, steps, 1e-4))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, videos, key):
        def loss(params):
            return nnx.merge(graph, params, others).loss(tokens_of(videos), Conditioning(), key)[0]

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    start, losses = time.perf_counter(), []
    for number in range(steps):
        videos = jnp.asarray(read(2 * number, 2), jnp.float32)
        params, state, loss = step(params, state, videos, jax.random.fold_in(jax.random.key(0), number))
        losses.append(float(loss))
        if number % 10 == 9:
            report("train", step=number + 1, loss=float(np.mean(losses[-10:])), seconds=time.perf_counter() - start)
            save_weights(path, nnx.to_pure_dict(nnx.merge_state(params, others)))


def trained(path: str) -> FlowTransformer:
    graph, state = nnx.split(model_of(0))
    nnx.replace_by_pure_dict(state, load_weights(path, nnx.to_pure_dict(state)))
    return nnx.merge(graph, state)


def shaken(model: FlowTransformer) -> FlowTransformer:
    """A fresh model gives every token the same: with random numbers in place of its zeros it is the null."""
    graph, params, others = nnx.split(model, nnx.Param, ...)
    random = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + jnp.asarray(0.05 * random.normal(size=x.shape), x.dtype), params)
    return nnx.merge(graph, moved, others)


class Recorder(SparseStream):
    """Keeps the queries, keys and values of every layer, and attends densely."""

    def __init__(self, cache):
        super().__init__(cache, None, None, None)

    def inner(self, past):
        return Recorder(past)

    def attend(self, query, key, value, key_mask, dense):
        self.keep((query, key, value))
        return dense()


@dataclasses.dataclass
class Recording:
    """Stands for a call of a shortcut: its layers leave what they attend with in ``kept``."""

    kept: tuple = ()

    def run(self, stack, x, **call):
        stream = Recorder((((),),))
        y = stack(x, sparse=stream, **call)
        self.kept = stream.cache[0][0]
        return y


def features(model: FlowTransformer) -> tuple[np.ndarray, ...]:
    """Scaled queries, keys and values ``[items, tokens, head_width]`` of all layers, heads, clips and noise levels."""
    clean = model.statistics.normalise(jnp.asarray(clips("eval")(0, CLIPS), jnp.float32))
    found = []
    for t in TIMES:
        noise = jax.random.normal(jax.random.key(1), clean.shape)
        recording = Recording()
        noisy = model.process.add_noise(clean, noise, jnp.full(CLIPS, t))
        model.predict(noisy, jnp.full(CLIPS, t), model.prepare(Conditioning()), shortcut=recording)
        found.append([np.asarray(x) for x in recording.kept])
    joined = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
    return tuple(x.swapaxes(2, 3).reshape(-1, x.shape[2], x.shape[4]) for x in joined)


def planted(items: int, tokens: int, width: int, groups: int, noise: float) -> tuple[np.ndarray, ...]:
    """Queries and keys in groups of random order; the queries of a group look for the keys of the same one."""
    random = np.random.default_rng(0)
    centres = np.linalg.qr(random.normal(size=(width, width)))[0][:groups]
    draw = lambda: centres[random.integers(0, groups, (items, tokens))]  # noqa: E731
    q, k = (draw() + noise * random.normal(size=(items, tokens, width)) for _ in range(2))
    return np.float32(14 * q), np.float32(k), np.float32(random.normal(size=(items, tokens, width)))


def by_kmeans(points: jax.Array, count: int) -> Clusters:
    return kmeans(points, drawn_centroids(points, count, jax.random.key(0)), 50)


def by_labels(labels: np.ndarray, points: jax.Array, count: int) -> Clusters:
    labels = jnp.broadcast_to(jnp.asarray(labels, jnp.int32), points.shape[:2])
    sums = jax.vmap(lambda x, label: jax.ops.segment_sum(x, label, count))(points, labels)
    sizes = cluster_sizes(labels, count)
    return Clusters(labels, sums / sizes[..., None], sizes, jnp.zeros(len(points)), jnp.zeros(len(points), int))


def by_runs(points: jax.Array, count: int) -> Clusters:
    return by_labels(np.arange(points.shape[1]) * count // points.shape[1], points, count)


def by_boxes(points: jax.Array, count: int) -> Clusters:
    sides = [side // part for side, part in zip(GRID.shape, PATCH, strict=True)]
    place = np.indices(sides) // np.array(BOX[count])[:, None, None, None]
    number = np.array([-(-side // part) for side, part in zip(sides, BOX[count], strict=True)])
    return by_labels(np.ravel_multi_index(place, number).reshape(-1), points, count)


GROUPINGS = {"svg2": by_kmeans, "runs": by_runs, "boxes": by_boxes}


@functools.partial(jax.jit, static_argnums=(3, 4))
def measure(q: jax.Array, k: jax.Array, v: jax.Array, grouping: str, top_p: float) -> tuple[jax.Array, ...]:
    """Density, relative error and recalled mass of each item."""
    group = GROUPINGS[grouping]
    plan = plan_of(group(q, QUERIES), group(k, KEYS), top_p, 0.0)
    weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k), axis=-1)
    dense = jnp.einsum("nqk,nkd->nqd", weights, v)
    error = jnp.linalg.norm(masked(q, k, v, plan) - dense, axis=(1, 2)) / jnp.linalg.norm(dense, axis=(1, 2))
    return plan.density(), error, jnp.where(plan.elements(), weights, 0).sum(-1).mean(-1)


def curves(name: str, arrays: tuple[np.ndarray, ...]) -> Iterator[dict]:
    """The measurements of all groupings and all p, in small batches."""
    for grouping in GROUPINGS if name != "planted" else ("svg2", "runs"):
        for top_p in TOP_P:
            parts = [
                measure(*(jnp.asarray(x[i : i + 8]) for x in arrays), grouping, top_p)
                for i in range(0, len(arrays[0]), 8)
            ]
            density, error, recall = (float(np.concatenate(part).mean()) for part in zip(*parts, strict=True))
            yield report(
                "curve", features=name, grouping=grouping, top_p=top_p, density=density, error=error, recall=recall
            )


def seconds_of(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least time of each call, after one that compiles. They take turns, so that what else the machine does
    disturbs all alike."""
    times = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


SVG2 = {"name": "svg2", "queries": QUERIES, "keys": KEYS, "minimum": 0.0, "block": 16, "warmup": 0.2}
SHORTCUTS = {
    **{f"svg2 p={p}": {"attention": SVG2 | {"top_p": p}} for p in (0.98, 0.95, 0.9, 0.7, 0.5)},
    "svg2 p=0.9 without warm-up": {"attention": SVG2 | {"top_p": 0.9, "warmup": 0.0, "warmup_layers": 0.0}},
    "svg2 keep all": {"attention": SVG2 | {"top_p": 1.0}},
    **{f"residual every {n}": {"cache": {"name": "residual", "every": n}} for n in (2, 3)},
}


def videos(model: FlowTransformer) -> Iterator[dict]:
    """One video with every shortcut, beside the dense one."""
    graph, state = nnx.split(model)
    keys = jax.random.split(jax.random.key(0), 1)

    def drawing(settings: dict) -> Callable[[], tuple]:
        sampler = FlowSampler(steps=STEPS.value, guidance_scale=1.0, **settings)

        @jax.jit
        def draw(state):
            tokens, measured = nnx.merge(graph, state).sample_and_measure(layout(), Conditioning(), keys, sampler)
            return tokens.only.values, measured

        return lambda: draw(state)

    dense = drawing({})
    right = to_unit(dense()[0])
    for name, settings in SHORTCUTS.items():
        draw = drawing(settings)
        seconds, (drawn, measured) = seconds_of({"dense": dense, "own": draw}, REPEATS.value), draw()
        far = {"psnr": float(psnr(to_unit(drawn), right)[0]), "ssim": float(ssim(to_unit(drawn), right)[0])}
        numbers = {label: float(np.mean(value)) for label, value in measured.items()}
        times = {"seconds": seconds["own"], "seconds_dense": seconds["dense"]}
        ratio = seconds["dense"] / seconds["own"]
        yield report("video", shortcut=name, steps=STEPS.value, **far, **numbers, **times, times_as_fast=ratio)


def attention_times(arrays: tuple[np.ndarray, ...]) -> Iterator[dict]:
    """Two attentions of two heads, of the trained model's features and of four times as many tokens in clusters."""
    for name, (q, k, v), count in (
        ("trained", (x[:4] for x in arrays), (QUERIES, KEYS)),
        ("planted", planted(4, 4608, 32, 24, 0.05), (72, 144)),
    ):
        q, k, v = (jnp.asarray(x) for x in (q, k, v))
        starts = by_kmeans(q, count[0]).centroids, by_kmeans(k, count[1]).centroids

        def sparse(q, k, v, starts=starts, clusters_only=False):
            found = [kmeans(x, start, 2) for x, start in zip((q, k), starts, strict=True)]
            plan = plan_of(*found, 0.9, 0.0)
            return plan if clusters_only else pairs(q, k, v, plan, 32)

        whole = jax.jit(
            lambda q, k, v: jnp.einsum("nqk,nkd->nqd", jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k), -1), v)
        )
        plans, kept = jax.jit(functools.partial(sparse, clusters_only=True)), jax.jit(sparse)
        arguments, width = (q, k, v), q.shape[-1]
        calls = {"dense": whole, "clustering": plans, "sparse": kept}
        times = seconds_of({name: functools.partial(call, *arguments) for name, call in calls.items()}, REPEATS.value)
        density = float(plans(*arguments).density().mean())
        tokens = (q.shape[1], k.shape[1])
        flops = {
            "flops_dense": floating_point_operations(tokens, width, len(q), 1.0),
            "flops_sparse": floating_point_operations(tokens, width, len(q), density),
        }
        yield report(
            "attention",
            features=name,
            tokens=tokens[0],
            density=density,
            **flops,
            **{f"seconds_{n}": s for n, s in times.items()},
        )


def report(name: str, **values) -> dict:
    record = {"name": name} | {key: float(f"{x:.4g}") if isinstance(x, float) else x for key, x in values.items()}
    print(json.dumps(record), flush=True)
    return record


def draw_curves(records: list[dict], path: Path) -> None:
    """Error against density, one panel for each kind of features."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ("planted", "trained", "random weights")
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(1, 3), names, strict=True):
        for colour, (grouping, label) in enumerate((("svg2", "k-means (SVG2)"), ("boxes", "boxes"), ("runs", "runs"))):
            points = [r for r in records if r.get("features") == name and r.get("grouping") == grouping]
            if points:
                x, y = ([point[key] for point in points] for key in ("density", "error"))
                axis.plot(x, y, marker="o", label=label, color=f"C{colour}")
        axis.set(title=name, xlabel="density", xlim=(0, 1), ylim=(0, None))
        axis.legend(frameon=False)
    figure.supylabel("relative error of the output")
    figure.savefig(path, dpi=110)


def main() -> None:
    if TRAIN.value:
        return train(TRAIN.value, WEIGHTS.value)
    model = trained(WEIGHTS.value)
    arrays = features(model)
    records = [*curves("planted", planted(8, 1152, 32, 24, 0.05)), *curves("trained", arrays)]
    records += [*curves("random weights", features(shaken(model_of(0))))]
    records += [*videos(model), *attention_times(arrays)]
    if OUT.value:
        folder = Path(OUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        device = {"device": jax.devices()[0].device_kind, "devices": len(jax.devices())}
        (folder / "sparse_attention.json").write_text(json.dumps(device | {"rows": records}, indent=1) + "\n")
        draw_curves(records, folder / "sparse_attention.png")


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
