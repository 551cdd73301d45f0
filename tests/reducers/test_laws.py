"""Every reducer obeys the laws that it declares: with padding, odd sizes, several examples, bf16, under ``jit``."""

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import reducers
from videogen.reducers import LAWS, TokenSet, of_grid
from videogen.reducers.tokens import restore

TIME, HEIGHT, WIDTH, CHANNELS, BATCH = 6, 4, 4, 8, 3
COUNT = TIME * HEIGHT * WIDTH

REDUCERS = {
    "frames": {"name": "frames", "frames": 3},
    "frames_query": {"name": "frames", "frames": 2, "rule": "query", "window": 2},
    "frames_diverse": {"name": "frames", "frames": 4, "rule": "diverse", "share": 0.5},
    "frames_random": {"name": "frames", "frames": 3, "rule": "random"},
    "uniform": {"name": "tokens", "budget": 7},
    "random": {"name": "tokens", "budget": 7, "rule": "random"},
    "norm": {"name": "tokens", "budget": 7, "rule": "norm"},
    "score": {"name": "tokens", "budget": 7, "rule": "score"},
    "question": {"name": "tokens", "budget": 7, "rule": "question"},
    "indicator": {"name": "tokens", "budget": 7, "rule": "indicator"},
    "change": {"name": "tokens", "budget": 7, "rule": "change"},
    "attention": {"name": "tokens", "budget": 7, "rule": "attention"},
    "of_frames": {"name": "tokens", "budget": 7, "rule": "frames"},
    "learned": {"name": "learned", "budget": 7, "hidden": 6},
    "clips": {"name": "clips", "anchors": 2, "pairs": ((1, 1), (4, 2))},
    "key_frames": {"name": "key_frames", "budget": 40, "key": 4, "other": 2, "longest": 3},
    "changes": {"name": "changes", "budget": 60, "share": 0.5},
    "changes_kept": {"name": "changes", "budget": COUNT, "by": "feature", "reference": "kept"},
    "bipartite": {"name": "bipartite", "removed": 30, "protected": 1},
    "bipartite_rounds": {"name": "bipartite", "removed": 80, "rounds": 4},
    "greedy": {"name": "greedy", "budget": 20, "threshold": 0.5},
    "medoids": {"name": "medoids", "budget": 5, "segments": 2},
    "spectrum": {"name": "medoids", "budget": 5, "by": "spectrum"},
    "density_peaks": {"name": "density_peaks", "budget": 9},
    "density_means": {"name": "density_peaks", "budget": 9, "output": "mean"},
    "density_blend": {"name": "density_peaks", "budget": 9, "output": "blend"},
    "kmeans": {"name": "kmeans", "budget": 9},
    "kmeans_elbow": {"name": "kmeans", "budget": 9, "choices": (3, 6, 9), "rule": "elbow"},
    "kmeans_silhouette": {"name": "kmeans", "budget": 9, "choices": (3, 6, 9)},
    "token_hash": {"name": "token_hash", "places": COUNT, "budget": 9, "hidden": 6, "heads": 2},
    "progressive": {"name": "progressive", "heads": 2},
    "still": {"name": "still", "budget": COUNT, "threshold": 0.3},
    "windows": {"name": "windows", "window": (2, 2, 2)},
    "carriers": {"name": "carriers"},
    "grid": {"name": "grid", "side": 3},
    "grid_and_mean": {"name": "grid_and_mean", "side": 2},
    "question_pooling": {"name": "question_pooling", "window": (2, 2, 2)},
    "budgeted_grids": {"name": "budgeted_grids", "budget": 40, "ladder": (0, 1, 2, 3, 4)},
    "sparse_dense": {"name": "sparse_dense", "frames": 2},
    "thumbnails": {"name": "thumbnails", "picks": 10, "tiles": (2, 2)},
    "region": {"name": "region", "share": 0.5},
    "scenes": {"name": "scenes", "budget": 60, "floor": 4},
    "trajectories": {"name": "trajectories", "budget": 4},
    "conditional_queries": {"name": "conditional_queries", "side": 2, "frames": 3, "heads": 2},
    "bank": {"name": "bank", "budget": 10},
    "bank_merge": {"name": "bank", "budget": 10, "evict": "merge"},
    "bridge": {"name": "bridge", "memory": 3, "frames": 2, "heads": 2},
    "summaries": {"name": "summaries", "frames": 2, "each": 1, "layers": 1, "heads": 2},
    "summaries_asked": {
        "name": "summaries",
        "frames": 2,
        "each": 2,
        "layers": 1,
        "heads": 2,
        "clips": 2,
        "question_width": 5,
    },
    "perceiver": {"name": "perceiver", "queries": (5,), "width": 8, "depth": 1, "heads": 2, "head_width": 4},
}
ROOM = {
    "frames": {"frames": TIME},
    "tokens": {"budget": COUNT},
    "learned": {"budget": COUNT},
    "changes": {"budget": COUNT, "share": 0.0},
    "bipartite": {"removed": 0},
    "greedy": {"budget": COUNT, "threshold": 1.01},
    "medoids": {"budget": COUNT},
    "density_peaks": {"budget": COUNT},
    "kmeans": {"budget": COUNT},
    "still": {"budget": COUNT, "threshold": 1.01},
    "windows": {"window": (1, 1, 1)},
    "grid": {"side": HEIGHT},
    "question_pooling": {"window": (1, 1, 1)},
    "region": {"share": 1.0},
    "scenes": {"budget": COUNT, "share": 1.0},
    "bank": {"budget": COUNT},
}
"""Name -> settings with room for all tokens."""


NETWORKS = ("perceiver", "bridge", "conditional_queries", "token_hash", "progressive", "summaries")
"""Reducers that compute with parameters, which are float32."""


def build(config):
    return reducers.build(config, inputs=CHANNELS, rngs=nnx.Rngs(0), dtype=jnp.float32, remat="none")


def clip(batch=BATCH, padded=True, dtype=jnp.float32) -> TokenSet:
    x = np.random.default_rng(0).normal(size=(batch, TIME, HEIGHT, WIDTH, CHANNELS))
    x[:, 1:] = 0.7 * x[:, :-1] + 0.3 * x[:, 1:]
    there = np.ones((batch, TIME), bool)
    if padded:
        there[0, 4:] = False
    return of_grid(jnp.asarray(x, dtype), jnp.asarray(there))


def aux(batch=BATCH):
    rng = np.random.default_rng(1)
    return {
        "key": jax.random.split(jax.random.key(0), BATCH)[:batch],
        "frames": jnp.asarray(rng.normal(size=(BATCH, TIME, 5)), jnp.float32)[:batch],
        "question": jnp.asarray(rng.normal(size=(BATCH, 5)), jnp.float32)[:batch],
        "joint": jnp.asarray(rng.normal(size=(BATCH, COUNT, 5)), jnp.float32)[:batch],
        "score": jnp.asarray(rng.normal(size=(BATCH, COUNT)), jnp.float32)[:batch],
        "change": jnp.asarray(rng.random(size=(BATCH, TIME)), jnp.float32)[:batch],
        "weights": jnp.asarray(rng.random(size=(BATCH, TIME)), jnp.float32)[:batch],
        "indicator": jnp.asarray(rng.normal(size=(BATCH, CHANNELS)), jnp.float32)[:batch],
        "mass": jnp.asarray(rng.random(size=(BATCH, COUNT)), jnp.float32)[:batch],
        "teacher": jnp.asarray(rng.normal(size=(BATCH, COUNT, CHANNELS)), jnp.float32)[:batch],
        "labels": jnp.asarray(rng.integers(0, 4, size=(BATCH, COUNT)))[:batch],
        "links": jnp.broadcast_to(jnp.array([1, 0, 3, 2])[:, None], (BATCH, 4, TIME))[:batch],
    }


@functools.cache
def compiled(settings: str):
    """The reducer of a config as one program, compiled once for clips of one shape."""
    graph, state = nnx.split(build(ast.literal_eval(settings)))
    return jax.jit(lambda tokens, given: nnx.merge(graph, state).reduce(tokens, given))


def run(config, tokens, given):
    return compiled(repr(config))(tokens, given)


@pytest.fixture(scope="module", params=sorted(REDUCERS))
def case(request):
    config, tokens = REDUCERS[request.param], clip()
    found, said = run(config, tokens, aux())
    return config, build(config), tokens, found, said


def test_the_report_counts_what_is_there(case):
    _, _, tokens, found, said = case
    mask = found.filled().mask
    assert float(said["kept"]) == pytest.approx(float(mask.sum(1).mean()))
    assert float(said["tokens"]) == pytest.approx(float(tokens.mask.sum(1).mean()))
    assert float(said["asked"]) >= float(said["kept"]) - 1e-4
    assert set(case[1].laws) <= set(LAWS)


def test_budgets_are_kept_whatever_the_clip(case):
    _, reducer, _, found, said = case
    if "fixed_budget" not in reducer.laws:
        assert found.shape[1] <= COUNT
        return
    other, _ = run(case[0], clip(padded=False), aux())
    assert other.shape == found.shape and int(other.filled().mask.sum(1).max()) <= float(said["asked"]) + 1e-4


def test_mass_is_conserved_or_lost_by_what_is_dropped(case):
    _, reducer, tokens, found, said = case
    before, after = tokens.filled(), found.filled()
    lost = before.size.sum(1) - after.size.sum(1)
    assert float(said["lost"]) == pytest.approx(float(lost.mean()), abs=1e-3)
    if "conserved_mass" in reducer.laws:
        np.testing.assert_allclose(lost, 0.0, atol=1e-3)


def test_what_is_not_there_has_no_size_and_no_one_to_stand_for(case):
    _, _, tokens, found, _ = case
    given, count = found.filled(), found.shape[1]
    assert not np.asarray(given.size)[~np.asarray(given.mask)].any()
    source = np.asarray(given.source)
    assert (source < count).all()
    for example in range(BATCH):
        for original, at in enumerate(source[example]):
            assert at < 0 or given.mask[example, at]
            assert at < 0 or tokens.mask[example, original]


def test_padding_changes_nothing(case):
    config, _, tokens, found, _ = case
    wild = jnp.where(tokens.mask[..., None], tokens.x, 1e3)
    other, _ = run(config, TokenSet(wild, tokens.mask, tokens.position, grid=tokens.grid), aux())
    scale = float(jnp.abs(found.x).max())
    np.testing.assert_allclose(other.x, found.x, atol=1e-4 * scale)
    np.testing.assert_array_equal(other.filled().mask, found.filled().mask)


def test_an_example_does_not_depend_on_its_neighbours(case):
    config, _, tokens, found, _ = case
    alone = jax.tree.map(lambda a: a[:1], tokens.filled())
    given = {name: value[:1] for name, value in aux().items()}
    one, _ = run(config, alone, given)
    scale = float(jnp.abs(found.x).max())
    np.testing.assert_allclose(one.x, found.x[:1], atol=1e-4 * scale)
    np.testing.assert_array_equal(one.filled().mask, found.filled().mask[:1])
    np.testing.assert_array_equal(one.filled().source, found.filled().source[:1])


def test_narrow_floats_stay_and_choose_alike(case):
    config, _, tokens, _, _ = case
    narrow = TokenSet(tokens.x.astype(jnp.bfloat16), tokens.mask, tokens.position, grid=tokens.grid)
    wide = TokenSet(narrow.x.astype(jnp.float32), tokens.mask, tokens.position, grid=tokens.grid)
    found, expected = run(config, narrow, aux())[0], run(config, wide, aux())[0]
    if config["name"] in NETWORKS:
        return
    assert found.x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.filled().source, expected.filled().source)
    np.testing.assert_allclose(found.x.astype(jnp.float32), expected.x, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "name", [n for n in sorted(REDUCERS) if REDUCERS[n]["name"] in ROOM and "choices" not in REDUCERS[n]]
)
def test_with_room_for_all_tokens_stay_as_they_are(name):
    config = REDUCERS[name] | ROOM[REDUCERS[name]["name"]]
    if name == "changes_kept":
        config |= {"threshold": 1.01}
        config.pop("share")
    tokens = clip()
    if config["name"] == "medoids":
        config["budget"] = COUNT // config.get("segments", 1)
    assert "identity_at_full_budget" in build(config).laws
    found, said = run(config, tokens, aux())
    compare = found.filled()
    expected = np.where(tokens.mask[..., None], tokens.x, 0.0)
    np.testing.assert_allclose(restore(compare), expected, atol=1e-5)
    there = int(tokens.mask[0].sum())
    np.testing.assert_allclose(compare.x[0, :there], tokens.x[0, :there], atol=1e-5)
    np.testing.assert_allclose(compare.x[1], tokens.x[1], atol=1e-5)
    assert float(said["lost"]) == pytest.approx(0.0, abs=1e-4)
