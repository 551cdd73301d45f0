"""Reduction inside of a decoder: what stays, cached decoding, several clips, packed rows, lengths of caches, gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tasks.test_understanding import TOKENS, batch, built, few, scored
from videogen.errors import UserError
from videogen.language.hooks import Bipartite, MergeAttended
from videogen.language.spans import Notes, RowShape, Spans
from videogen.nn import Attention, Causal, ExtraKeys, Stream, rotary_angles
from videogen.nn.attention import Attended

HOOKS = {
    "merge": ({"layer": 1, "name": "merge_attended", "ratio": 0.5},),
    "bipartite": ({"layer": 0, "name": "bipartite", "removed": 5},),
    "depth": ({"layer": 1, "name": "depth", "share": 0.5},),
    "branch": ({"layer": 1, "name": "depth", "share": 0.3, "weight": "branch"},),
    "beside": ({"layer": 1, "name": "beside", "queries": "both"},),
    "several": (
        {"layer": 0, "name": "depth", "share": 0.5},
        {"layer": 1, "name": "bipartite", "removed": 4, "proportional": False},
        {"layer": 2, "name": "merge_attended", "ratio": 0.25},
    ),
}
WITHOUT_BESIDE = [name for name in HOOKS if name != "beside"]


POOLED = {"model.vision.reducers": ({"name": "windows", "window": (1, 2, 2)},)}


def hooked(name: str, clips: tuple[int, ...] = (1,), **changes):
    """The task of the understanding's tests with four layers and hooks; tokens beside are those before a pooling."""
    changes |= {"model.backbone.transformer.layers": 4, "model.backbone.hooks": HOOKS.get(name, ())}
    return built(clips, **changes, **(POOLED if name == "beside" else {}))


def some(*quick: str):
    """The names of hooks, of which all but some are slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in HOOKS]


@pytest.mark.parametrize("name", some("merge"))
def test_cached_decoding_is_the_full_forward(name):
    """Likelihoods of options come out of caches that each layer holds its own number of tokens in."""
    task, modules = hooked(name)
    examples = batch()
    _, nats, counted, _ = scored(task, modules, examples)
    said = task.answering(modules).run(examples)
    np.testing.assert_allclose(said["nats"], np.where(counted, nats, 0).sum(1), rtol=2e-5)
    _, plain, also, _ = scored(*hooked("none"), examples) if name != "beside" else scored(task, modules, examples)
    assert name == "beside" or np.abs(plain[also] - nats[counted]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["merge", "several"])
def test_answers_do_not_depend_on_neighbours_in_batch_or_row(name):
    """Two different clips in a batch are as each alone, and so are those of a row (users 7)."""
    task, modules = hooked(name)
    examples = batch(4, seed=2)
    stream, nats, counted, _ = scored(task, modules, examples)
    alone = {}
    for row in range(4):
        _, own, also, _ = scored(task, modules, few(examples, [row]))
        np.testing.assert_allclose(nats[row][counted[row]], own[0][also[0]], rtol=2e-5)
        alone[tuple(stream.target[row][counted[row]])] = own[0][also[0]]
    other, packed, also, _ = scored(task, modules, examples, packed=2)
    for row in range(2):
        for sample in range(2):
            here = also[row] & (other.sample[row] == sample)
            np.testing.assert_allclose(packed[row][here], alone[tuple(other.target[row][here])], rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["merge", "several"])
def test_no_clip_one_clip_and_two_are_as_one_at_a_time(name):
    task, modules = hooked(name, (0, 1, 2))
    examples = batch(3, clips=2)
    examples["video_mask"] = np.arange(2) < np.array([[0], [1], [2]])
    _, nats, counted, _ = scored(task, modules, examples)
    for row in range(3):
        own = few(examples, [row])
        del own["video_mask"]
        own |= {kind: own[kind][:, :row] for kind in ("video", "times")}
        own = {kind: array for kind, array in own.items() if row or kind not in ("video", "times")}
        _, alone, also, _ = scored(task, modules, own)
        np.testing.assert_allclose(nats[row][counted[row]], alone[0][also[0]], rtol=2e-5)
        if row:
            np.testing.assert_allclose(task.answering(modules).run(own)["nats"], alone[0][also[0]].sum(), rtol=2e-5)


def rows(texts: int, clips: int = 1, each: int = 12, behind: int = 3, width: int = 4):
    """A row of ``texts`` words, clips with two words between them, and words behind them; and its spans."""
    clip = [-1] * texts
    for number in range(clips):
        clip += [number] * each + [-1] * 2
    clip = jnp.asarray([clip + [-1] * behind])
    exists = jnp.ones(clip.shape, bool)
    shape = RowShape(clips, each, clip.shape[1] - clips * each)
    spans = Spans.of_prompt(clip, exists, shape)
    # Every token is a vector of its own number, wherever it stands.
    own = jax.random.normal(jax.random.key(0), (clips, each, width))
    x = jnp.where((clip >= 0)[..., None], own[clip, spans.token], 7.0 + jnp.arange(clip.shape[1])[:, None])
    call = {"mask": Causal(), "tags": {"index": jnp.arange(clip.shape[1])[None]}, "key_mask": exists, "rotary": None}
    mass = jnp.where(clip >= 0, (5 * spans.token + 3 * clip) % each + 1.0, 100.0)[:, None]
    return x, {**call, "notes": Notes(spans)}, Attended(mass, x[:, :, None])


@pytest.mark.parametrize(("texts", "clips"), [(5, 1), (35, 1), (50, 1), (5, 2)])
def test_the_place_of_a_clip_in_the_prompt_does_not_change_what_stays_of_it(texts, clips):
    """Users 7: no fixed spans; text is untouched; tags move by the same index; for each token there is one."""
    hook = MergeAttended(0.5)
    x, call, attended = rows(texts, clips)
    y, after = hook(x, call, attended)
    spans, before = after["notes"].spans, call["notes"].spans
    assert y.shape[1] == x.shape[1] - clips * 6 and hook.behind(12) == 6
    for clip in range(clips):
        kept = np.flatnonzero(np.asarray(spans.clip[0]) == clip)
        ranked = np.argsort([-((5 * token + 3 * clip) % 12) for token in range(12)])
        assert sorted(np.asarray(spans.token[0])[kept]) == sorted(ranked[:6])
        # Written out: each of the others joins the one that it is most like.
        own = np.asarray(x[0])[np.asarray(before.clip[0]) == clip]
        alike = own @ own.T / np.linalg.norm(own, axis=1) / np.linalg.norm(own, axis=1)[:, None]
        groups = {token: [token] for token in ranked[:6]}
        for token in ranked[6:]:
            groups[max(groups, key=lambda k: alike[token, k])].append(token)
        for slot in kept:
            members = groups[int(spans.token[0, slot])]
            np.testing.assert_allclose(y[0, slot], own[members].mean(0), rtol=1e-5, atol=1e-6)
            assert spans.size[0, slot] == len(members)
    text = np.asarray(before.clip[0]) < 0
    np.testing.assert_array_equal(y[0][np.asarray(spans.clip[0]) < 0], x[0][text])
    index = np.asarray(after["tags"]["index"][0])
    assert (np.diff(index) > 0).all() and set(np.flatnonzero(text)) <= set(index)
    np.testing.assert_array_equal(index[np.asarray(spans.place[0])][text], np.flatnonzero(text))
    assert index[int(spans.asking[0, 0])] == x.shape[1] - 1
    assert float(spans.size.sum()) == x.shape[1]


def test_tokens_that_do_not_exist_take_no_place():
    """Of 8 tokens that there are of 12 the first half stays; padding is neither merged nor kept."""
    x, call, attended = rows(5)
    exists = call["key_mask"].at[0, 5 + 8 : 5 + 12].set(False)
    spans = Spans.of_prompt(call["notes"].spans.clip, exists, call["notes"].spans.shape)
    y, after = MergeAttended(0.5)(x, {**call, "key_mask": exists, "notes": Notes(spans)}, attended)
    assert int((after["notes"].spans.clip >= 0).sum()) == 4
    assert int(after["key_mask"].sum()) == 5 + 4 + 5 and y.shape[1] == x.shape[1] - 6


def test_bipartite_merging_weighs_by_size_and_says_so_to_the_attention():
    x, call, _ = rows(5)
    pairs = jnp.where(call["notes"].spans.clip[..., None] >= 0, x[:, 5 + 2 * ((jnp.arange(x.shape[1]) - 5) // 2)], x)
    y, after = Bipartite(6)(pairs, call, Attended(None, pairs[:, :, None]))
    here = np.asarray(after["notes"].spans.clip[0]) == 0
    np.testing.assert_allclose(y[0][here], pairs[0, 6:17:2], rtol=1e-6)
    np.testing.assert_allclose(after["key_bias"][0], np.where(here, np.log(2), 0), rtol=1e-6)
    assert np.asarray(after["notes"].spans.token[0])[here].tolist() == [1, 3, 5, 7, 9, 11]
    again, behind = Bipartite(3, proportional=False)(y, after, Attended(None, y[:, :, None]))
    sizes = np.asarray(behind["notes"].spans.size[0])[np.asarray(behind["notes"].spans.clip[0]) == 0]
    assert sorted(sizes.tolist()) == [4, 4, 4] and behind["key_bias"].max() == pytest.approx(np.log(4))
    assert again.shape[1] == x.shape[1] - 9


def test_ranking_makes_no_array_of_heads_by_tokens_by_tokens():
    x, call, attended = rows(5, each=300)
    wide = Attended(jnp.repeat(attended.mass, 8, axis=1), attended.key)
    program = jax.make_jaxpr(lambda x: MergeAttended(0.5)(x, call, wide)[0])(x)
    largest = max(np.prod(v.aval.shape) for eqn in program.eqns for v in eqn.outvars)
    assert largest <= 300 * 300


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WITHOUT_BESIDE, "none"])
def test_the_caches_of_every_layer_have_exactly_its_tokens(name):
    """Users 7 and 9: text + tokens kept at the layer; the next position is that of the unreduced prompt."""
    task, modules = hooked(name, **{"model.vision.together": False})
    examples = batch(3)
    answerer = task.answering(modules)
    begun = jax.jit(lambda states, batch: answerer.begun(states, answerer.see(states, batch), batch)[0])
    state = begun(answerer.states, examples).state
    # begin, begin_clip, end_clip, answer; the question.
    texts = 4 + examples["question_mask"].sum(1)
    kept = {"merge": [16, 16, 8, 8], "bipartite": [16, 11, 11, 11], "depth": [16, 8, 16, 16], "branch": [16, 8, 16, 16]}
    kept |= {"several": [8, 16, 12, 9], "none": [16] * 4}
    found, lengths = [], []
    for run in state.caches:
        for cache in run if isinstance(run, tuple) else (run,):
            places = cache.places.exists
            found += [places.sum(-1)] if places.ndim == 2 else [own.sum(-1) for own in places]
            lengths += [places.shape[-1]] * (1 if places.ndim == 2 else len(places))
    np.testing.assert_array_equal(found, [texts + count for count in kept[name]])
    np.testing.assert_array_equal(state.position, texts + TOKENS)
    longest = 1 + 4 + 5 + TOKENS + 6
    assert lengths == [longest - TOKENS + count for count in kept[name]]


def test_hooks_that_change_nothing_are_the_base_model_to_the_bit():
    idle = ({"layer": 1, "name": "merge_attended", "ratio": 0.0}, {"layer": 0, "name": "bipartite", "removed": 0})
    task, modules = built(**{"model.backbone.transformer.layers": 4, "model.backbone.hooks": idle})
    base, same = hooked("none")
    for one, other in zip(scored(task, modules, batch()), scored(base, same, batch()), strict=True):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_shut_gate_is_the_base_model_and_text_alone_sees_nothing():
    task, modules = hooked("beside", (0, 1))
    plain, same = hooked("none", (0, 1), **POOLED)
    graph, state = nnx.split(modules["language"])
    opening = state["stream"]["backbone"]["transformer"]["hooks"]["1_around"]["opening"]
    silent = {name: array for name, array in batch().items() if name not in ("video", "times")}
    for examples in (batch(), silent):
        _, nats, counted, _ = scored(plain, same, examples)
        for value in (0.0, 2.0):
            opening.set_value(jnp.full(1, value))
            found = scored(task, {"language": nnx.merge(graph, state)}, examples)[1]
            if value and "video" in examples:
                assert np.abs(found[counted] - nats[counted]).max() > 1e-3
            else:
                np.testing.assert_allclose(found[counted], nats[counted], rtol=1e-6)


def test_gated_keys_have_a_softmax_of_their_own():
    """A1: written out; any order; a mask is respected; without a key the gate is shut; the same with a cache."""
    attention = Attention(16, 4, key_value_heads=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    key, value = jax.random.normal(jax.random.key(1), (2, 2, 7, 2, 4))
    exists, gate = jnp.arange(7) < jnp.array([[5], [0]]), jnp.full((2, 5, 1), 0.3).at[:, 2].set(0.0)
    gated, call = ExtraKeys(key, value, exists, gate), dict(mask=Causal(), rotary=rotary_angles([5], 4))
    plain, found = attention(x, **call), attention(x, **call, extra_kv=gated)
    query = attention.project(x, None)[0] / 2
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, jnp.repeat(key, 2, axis=2))[:1, ..., :5]
    seen = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), jnp.repeat(value, 2, axis=2)[:1, :5])
    np.testing.assert_allclose(found[:1], plain[:1] + gate[:1] * attention.out(seen.reshape(1, 5, 16)), atol=1e-5)
    np.testing.assert_array_equal(found[1], plain[1])
    np.testing.assert_array_equal(found[:, 2], plain[:, 2])
    turned = ExtraKeys(key[:, ::-1], value[:, ::-1], exists[:, ::-1], gate)
    np.testing.assert_allclose(attention(x, **call, extra_kv=turned), found, atol=1e-6)
    stream = Stream((attention.empty(2, 5, ()),))
    np.testing.assert_allclose(attention(x, **call, extra_kv=gated, stream=stream), found, atol=1e-5)


def test_impossible_hooks_are_refused_when_the_task_is_built():
    layers = {"model.backbone.transformer.layers": 4}
    for hooks, changes, message in (
        (
            ({"layer": 1, "name": "bipartite", "removed": 9},),
            {},
            "layer 1 of the backbone: of 16 tokens of a clip at most 8",
        ),
        (({"layer": 4, "name": "merge_attended"},), {}, r"no layer 4 for a hook or tap; the stack has 0 … 3"),
        (({"name": "merge_attended"},), {}, "a hook names its layer"),
        (({"layer": 1, "name": "merge"},), {}, "unknown hook 'merge'"),
        (({"layer": 1, "name": "merge_attended", "ratio": 1.0},), {}, "ratio of hook 'merge_attended' must be"),
        (({"layer": 1, "name": "beside"},), {"model.packed": 2}, "set model.packed=1"),
        (HOOKS["merge"] + ({"layer": 2, "name": "depth"},), {}, "layer 2 of the backbone: depth needs clips of whole"),
        (
            ({"layer": 1, "name": "beside"},),
            {"model.vision.reducers": ({"name": "perceiver", "queries": (4,), "width": 6, "depth": 1, "heads": 1},)},
            "leave their channels as they are",
        ),
    ):
        with pytest.raises(UserError, match=message):
            built(**layers, **changes, **{"model.backbone.hooks": hooks})
