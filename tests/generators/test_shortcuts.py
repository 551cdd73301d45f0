"""Sparse attention and cached layers in the sampling of a whole diffusion transformer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import layout_of
from videogen.conditioning import Conditioning, EncodedText
from videogen.errors import UserError
from videogen.generators import FlowSampler, FlowTransformer, shortcuts
from videogen.generators.public.wan import wan_transformer
from videogen.generators.shortcuts import ResidualCache, SparseVideoGen2, rounded_up
from videogen.nn import sparse_attention
from videogen.shapes import TokenGrid

GRID, CHANNELS = TokenGrid(2, 4, 8), 3
TRANSFORMER = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 16}
MODELS = {
    "cross": {},
    "joint": {"text": "joint", "modulation": "single"},
    "frames": {"times": "frame"},
    # Of Wan: norms over the full width, interleaved rotary positions, texts with zeros behind them.
    "wan": {
        **{"transformer": wan_transformer(16, 2, 2, 16), "modulation": "single"},
        "text": {"name": "cross", "length": 7},
    },
}
SPARSE = {"name": "svg2", "queries": 6, "keys": 8, "top_p": 0.6, "minimum": 0.0, "warmup": 0.0, "warmup_layers": 0.0}
SPARSE |= {"block": 4, "first_iterations": 5}


@functools.cache
def make(name: str, **settings) -> FlowTransformer:
    """With random numbers in place of the zeros of a fresh model."""
    settings = {"context_width": 8, "patch": (1, 1, 1), "transformer": TRANSFORMER, **MODELS.get(name, {}), **settings}
    model = FlowTransformer(CHANNELS, GRID.shape, **settings, rngs=nnx.Rngs(0))
    graph, params, others = nnx.split(model, nnx.Param, ...)
    random = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + jnp.asarray(0.3 * random.normal(size=x.shape), x.dtype), params)
    return nnx.merge(graph, moved, others)


def told(batch: int, seed: int = 0) -> Conditioning:
    features = jax.random.normal(jax.random.key(seed), (batch, 5, 8))
    return Conditioning(EncodedText(features, jnp.arange(5)[None] < jnp.array([3, 5, 4, 2])[:batch, None]))


def keys(batch: int) -> jax.Array:
    return jax.random.split(jax.random.key(5), batch)


@functools.cache
def drawing(name: str, sampler: FlowSampler):
    graph = nnx.graphdef(make(name))
    layout = layout_of(GRID, channels=CHANNELS)

    def draw(state, conditioning, keys):
        tokens, measured = nnx.merge(graph, state).sample_and_measure(layout, conditioning, keys, sampler)
        return tokens.only.values, measured

    return jax.jit(draw)


def draw(name: str, batch: slice = slice(2), **settings):
    sampler = FlowSampler(**{"steps": 4, "guidance_scale": 2.0, **settings})
    conditioning = jax.tree.map(lambda x: x[batch], told(2))
    return drawing(name, sampler)(nnx.state(make(name)), conditioning, keys(2)[batch])


def away(one, other) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cross", "pairs"),
        ("joint", "reference"),
        ("wan", "pairs"),
        pytest.param("cross", "reference", marks=pytest.mark.slow),
        pytest.param("joint", "pairs", marks=pytest.mark.slow),
    ],
)
def test_keeping_all_is_dense_through_the_whole_model(name, path):
    right, nothing = draw(name)
    kept, measured = draw(name, attention=SPARSE | {"top_p": 1.0, "path": path})
    assert nothing == {}
    np.testing.assert_allclose(kept, right, atol=2e-5 * np.abs(right).max())
    np.testing.assert_array_equal(measured["density"], 1.0)


@pytest.mark.slow
def test_the_kernel_draws_what_the_reference_draws():
    sampler = {"steps": 2, "guidance_scale": 1.0}
    one, other = (draw("cross", **sampler, attention=SPARSE | {"path": path})[0] for path in ("kernel", "reference"))
    np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("name", ["cross", pytest.param("joint", marks=pytest.mark.slow)])
def test_two_examples_are_two_batches_of_one(name):
    both, measured = draw(name, attention=SPARSE)
    right, _ = draw(name)
    assert 0.1 < float(measured["density"].mean()) < 0.95 and away(both, right) > 1e-3
    for i in range(2):
        alone, own = draw(name, slice(i, i + 1), attention=SPARSE)
        np.testing.assert_allclose(both[i], alone[0], atol=2e-5 * np.abs(right).max())
        np.testing.assert_allclose(measured["density"][i], own["density"][0], rtol=1e-5)


@pytest.mark.slow
def test_padding_of_the_text_does_not_matter():
    graph, layout = nnx.graphdef(make("joint")), layout_of(GRID, channels=CHANNELS)
    sampler = FlowSampler(steps=2, guidance_scale=1.0, attention=SPARSE)
    text = told(2).text
    wild = EncodedText(jnp.where(text.mask[..., None], text.features, 50.0), text.mask)
    run = jax.jit(
        lambda said: nnx.merge(graph, nnx.state(make("joint"))).sample(layout, said, keys(2), sampler).only.values
    )
    np.testing.assert_allclose(run(Conditioning(wild)), run(Conditioning(text)), atol=1e-5)


def test_warm_up_counts_calls_and_layers_and_rounds_up():
    assert rounded_up(0.1, 50) == 5 and rounded_up(0.03, 30) == 1 and rounded_up(0.025, 40) == 1
    assert rounded_up(0.09, 50) == 5 and rounded_up(0.07, 100) == 7 and rounded_up(0.0, 50) == 0
    settings = SparseVideoGen2(warmup=0.1, warmup_layers=0.03)
    assert settings.dense_calls(50) == 5 and settings.dense_layers(30) == 1


@pytest.mark.slow
def test_the_warm_up_stands_in_the_density_and_a_lag_has_more_calls():
    """2 of 5 or 6 calls and 1 of 2 layers are dense."""
    attention = SPARSE | {"warmup": 0.33, "warmup_layers": 0.1}
    for name, calls, lag in (("cross", 5, 0), ("frames", 6, 1)):
        _, measured = draw(name, steps=5, guidance_scale=1.0, lag=lag, attention=attention)
        share = (calls - 2) / calls / 2
        expected = 1 - share * (1 - measured["density"])
        np.testing.assert_allclose(measured["density_with_warmup"], expected, rtol=1e-5)
        assert 0.1 < float(measured["density"].mean()) < 0.95


class _Watched(sparse_attention.SparseStream):
    """Counts dense and first calls of a layer as they run."""

    log = []

    def attend(self, query, key, value, key_mask, dense):
        jax.debug.callback(lambda *x: self.log.append(tuple(map(bool, x))), self.dense, self.first_call, ordered=True)
        return super().attend(query, key, value, key_mask, dense)

    def inner(self, past):
        return _Watched(past, self.clustering, self.first_call, self.dense, self.text)


@pytest.mark.parametrize(
    ("solver", "calls", "shift"),
    [
        ("euler", 10, 5.0),
        pytest.param("euler", 10, 1.0, marks=pytest.mark.slow),
        pytest.param("euler", 10, 8.0, marks=pytest.mark.slow),
        pytest.param("heun", 20, 5.0, marks=pytest.mark.slow),
    ],
)
def test_the_first_calls_are_dense_and_then_centroids_are_drawn_once(solver, calls, shift, monkeypatch):
    """Whatever the shift does to the times: with a shift of 5 most of them lie above 0.9."""
    monkeypatch.setattr(shortcuts, "SparseStream", _Watched)
    _Watched.log = []
    graph, layout = nnx.graphdef(make("cross")), layout_of(GRID, channels=CHANNELS)
    attention = SPARSE | {"warmup": 0.1, "warmup_layers": 0.1}
    sampler = FlowSampler(steps=10, guidance_scale=1.0, shift=shift, solver={"name": solver}, attention=attention)
    run = jax.jit(lambda s: nnx.merge(graph, s).sample(layout, told(1), keys(1), sampler).only.values)
    jax.block_until_ready(run(nnx.state(make("cross"))))
    jax.effects_barrier()
    dense = [entry[0] for entry in _Watched.log]
    first = [number for number, entry in enumerate(_Watched.log) if entry[1]]
    assert len(dense) == calls and dense == [True] * (calls // 10) + [False] * (calls - calls // 10)
    assert first == [calls // 10]


def test_centroids_belong_to_layer_and_head_and_both_branches_begin_with_them():
    """The memory has one entry for each layer, example and head, not for each branch, and is new in every video."""
    model, settings = make("cross"), SparseVideoGen2(**{k: v for k, v in SPARSE.items() if k != "name"})
    memory = settings.begin(model, 3, GRID.tokens, branches=2, text=0)
    assert memory.kept.queries.shape == (2, 3, 2, 6, 8) and memory.kept.keys.shape == (2, 3, 2, 8, 8)
    one, other = (draw("cross", attention=SPARSE)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_a_branch_without_its_condition_shares_the_centroids_of_the_branch_with_it():
    clustering = sparse_attention.Clustering(4, 4, 0.5, 0.0, iterations=1, path="reference")
    q, k, v = jax.random.normal(jax.random.key(0), (3, 4, 32, 2, 8))
    past = sparse_attention.Centroids(q[:2, :4].swapaxes(1, 2), k[:2, :4].swapaxes(1, 2), jnp.zeros((2, 2)))
    no = jnp.array(False)

    def attended(rows, start):
        stream = sparse_attention.SparseStream((start,), clustering, no, no)
        return stream.attend(q[rows], k[rows], v[rows], None, lambda: v[rows]), stream.cache[0]

    both, kept = attended(slice(4), past)
    conditional, own = attended(slice(2), past)
    null, _ = attended(slice(2, 4), past)
    np.testing.assert_allclose(both, jnp.concatenate([conditional, null]), atol=1e-6)
    np.testing.assert_allclose(kept.queries, own.queries, atol=1e-6)
    assert np.abs(kept.queries - past.queries).max() > 0.1


def test_keys_and_values_of_the_text_are_computed_once_and_change_nothing():
    model, x, t = make("cross"), jax.random.normal(jax.random.key(0), (2, *GRID.shape, CHANNELS)), jnp.full(2, 0.5)
    prepared = model.prepare(told(2))
    known = model.read(prepared)
    assert known.read.key.shape == (2, 2, 5, 2, 8)
    plain, cached = model.predict(x, t, prepared), model.predict(x, t, known)
    np.testing.assert_allclose(cached, plain, atol=1e-6 * np.abs(plain).max())
    # The layers no longer ask for the text.
    assert make("joint").read(make("joint").prepare(told(2))).read is None


def test_layers_are_computed_in_every_second_call_and_the_loss_is_measured():
    assert ResidualCache(every=3, warmup=0.2).computed(10).tolist() == [1, 1, 1, 0, 0, 1, 0, 0, 1, 0]
    right, _ = draw("cross", steps=6)
    every, measured = draw("cross", steps=6, cache={"name": "residual", "every": 1})
    np.testing.assert_allclose(every, right, atol=1e-5 * np.abs(right).max())
    assert measured["computed_calls"] == 1.0
    loss = []
    for n in (2, 4):
        drawn, measured = draw("cross", steps=6, cache={"name": "residual", "every": n, "warmup": 0.3})
        loss.append(away(drawn, right))
        assert float(measured["computed_calls"][0]) == pytest.approx(
            ResidualCache(every=n, warmup=0.3).computed(6).mean()
        )
    assert min(loss) > 1e-4
    alone, _ = draw("cross", slice(1, 2), steps=6, cache={"name": "residual", "every": 2})
    both, _ = draw("cross", steps=6, cache={"name": "residual", "every": 2})
    np.testing.assert_allclose(both[1:], alone, atol=1e-5 * np.abs(right).max())


def test_a_cached_call_adds_what_the_last_computed_one_added():
    """One computed call, then only cached ones: the layers' residual stays that of the first call."""
    model, settings = make("cross"), ResidualCache(every=100, warmup=0.0)
    memory = settings.begin(model, 2, GRID.tokens, branches=1, text=0)
    prepared, t = model.prepare(told(2)), jnp.full(2, 0.5)
    x, y = jax.random.normal(jax.random.key(0), (2, 2, *GRID.shape, CHANNELS))
    first = settings.call(memory, 10)
    np.testing.assert_allclose(model.predict(x, t, prepared, shortcut=first), model.predict(x, t, prepared), atol=1e-5)
    again = settings.call(first.memory, 10)
    same = model.predict(x, t, prepared, shortcut=again)
    np.testing.assert_allclose(same, model.predict(x, t, prepared), atol=1e-5)
    other = model.predict(y, t, prepared, shortcut=settings.call(again.memory, 10))
    assert away(other, model.predict(y, t, prepared)) > 1e-3


@pytest.mark.parametrize(
    ("settings", "sampler", "message"),
    [
        ({"causal": True, "times": "frame"}, {}, "model.causal is set"),
        ({"text": "deep"}, {}, "does not go with model.text=deep"),
        ({"times": "frame"}, {"extension": "queue"}, "does not go with a queue of frames"),
        ({"times": "frame"}, {"extension": "adaptive_queue"}, "does not go with a queue of frames"),
        ({}, {"cache": {"name": "residual"}}, "sampler.attention and sampler.cache do not go together"),
        ({}, {"attention": SPARSE | {"keys": 65}}, "sampler.attention.keys=65: a clip of this model has 64 tokens"),
        ({}, {"attention": SPARSE | {"top_p": 0.0}}, "top_p of attention 'svg2' must be a number above 0"),
        ({}, {"attention": {"name": "svg3"}}, "did you mean 'svg2'"),
        ({}, {"attention": SPARSE | {"density": 0.3}}, "attention 'svg2' has no setting 'density'"),
        ({}, {"attention": SPARSE | {"path": "pair"}}, "did you mean 'pairs'"),
    ],
)
def test_what_does_not_go_together_is_one_line(settings, sampler, message):
    with pytest.raises(UserError, match=message) as refused:
        model = FlowTransformer(
            CHANNELS,
            GRID.shape,
            TRANSFORMER,
            context_width=8,
            **{"patch": (1, 1, 1), **settings},
            rngs=nnx.Rngs(0),
        )
        FlowSampler(**{"attention": SPARSE, **sampler}).check(model)
    assert "\n" not in str(refused.value)


def test_a_path_that_is_wrong_on_the_device_is_refused_before_anything_is_drawn(monkeypatch):
    sampler = FlowSampler(attention=SPARSE)
    sampler.prepare(make("cross"))
    monkeypatch.setattr(shortcuts, "_difference", lambda *_: 0.3)
    with pytest.raises(UserError, match="is 0.3 away from the reference; set sampler.attention.path=reference"):
        sampler.prepare(make("cross"))


ON_MESH = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from tests.generators.clips import layout_of
from tests.generators.test_shortcuts import GRID, CHANNELS, SPARSE, drawing, keys, make, told
from videogen.errors import UserError
from videogen.generators import FlowSampler
from videogen.parallel import make_mesh

for name in ("cross", "joint"):
    sampler = FlowSampler(steps=3, guidance_scale=2.0, attention=SPARSE)
    conditioning, own = told(2), keys(2)
    expected, measured = jax.device_get(drawing(name, sampler)(nnx.state(make(name)), conditioning, own))
    for sizes in ({"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2}):
        drawing.cache_clear()
        with jax.set_mesh(make_mesh(sizes)):
            actual, density = jax.device_get(drawing(name, sampler)(nnx.state(make(name)), conditioning, own))
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max(), err_msg=f"{name} {sizes}")
        np.testing.assert_allclose(density["density"], measured["density"], rtol=1e-4)
drawing.cache_clear()
with jax.set_mesh(make_mesh({"context": 4})):
    try:
        drawing("cross", sampler)(nnx.state(make("cross")), conditioning, own)
    except UserError as error:
        assert "whole sequences" in str(error)
    else:
        raise AssertionError("a sharded sequence was taken")
"""


@pytest.mark.slow
def test_a_mesh_draws_what_one_device_does(run_python):
    done = run_python(ON_MESH, devices=4)
    assert done.returncode == 0, done.stderr
