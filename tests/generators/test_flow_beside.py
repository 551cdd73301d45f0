"""Tokens beside a transformer: nothing at scale 0, an attention of their own, and windows anywhere in a clip."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import layout_of
from tests.parameters import with_random_parameters
from videogen.conditioning import ChunkTokens, Conditioning, EncodedText
from videogen.errors import UserError
from videogen.generators import FlowBesideTokens, FlowSampler, FlowTransformer
from videogen.nn import MicroBatch, lay_out, modulate, rotary_angles, rotate
from videogen.shapes import TokenGrid
from videogen.tokens import Tokens

CHUNK, CHANNELS, GRID = 3, 2, TokenGrid(6, 2, 4)
BASE = {"transformer": {"width": 24, "layers": 2, "heads": 2, "mlp_width": 16}, "patch": (1, 2, 2)}
BASE |= {"text": "joint", "times": "frame", "noise": {"prediction": "velocity"}}
RESAMPLER = {"name": "perceiver", "width": 12, "depth": 1, "heads": 1, "head_width": 12, "rotary": "both"}
SETTINGS = dict(resampler=RESAMPLER, queries=(2, 1, 2), chunk=CHUNK, context_width=4)


@functools.cache
def model_of(layers: int = 2, scale: float = 1.0) -> FlowBesideTokens:
    base = {**BASE, "transformer": {**BASE["transformer"], "layers": layers}}
    settings = dict(base=base, scale=scale, **SETTINGS)
    model = with_random_parameters(
        nnx.eval_shape(lambda: FlowBesideTokens(CHANNELS, GRID.shape, **settings, rngs=nnx.Rngs(0)))
    )
    model.statistics.mean.set_value(jnp.zeros(CHANNELS))
    model.statistics.square.set_value(jnp.ones(CHANNELS))
    return model


def told(batch: int = 2, **changes) -> Conditioning:
    random = np.random.default_rng(3)
    mask = jnp.arange(3)[None] < jnp.array([[2], [3]])[:batch]
    text = EncodedText(jnp.asarray(random.normal(size=(batch, 3, 4)), jnp.float32), mask)
    features = jnp.asarray(random.normal(size=(batch, 4, 1, 2, 12)), jnp.float32)
    beside = ChunkTokens(features, jnp.full(batch, 4), jnp.arange(batch, dtype=jnp.int32))
    return Conditioning(text, beside=dataclasses.replace(beside, **changes))


NOISY = jnp.asarray(np.random.default_rng(1).normal(size=(2, CHUNK, 2, 4, CHANNELS)), jnp.float32)
TIMES = jnp.array([[0.2, 0.5, 0.9], [0.3, 0.3, 1.0]])


def run(model: FlowTransformer, conditioning: Conditioning, t=TIMES) -> jax.Array:
    graph, state = nnx.split(model)

    @jax.jit
    def predict(state, conditioning, t):
        model = nnx.merge(graph, state)
        return model.predict(NOISY, t, model.prepare(conditioning))

    return predict(state, conditioning, t)


def base_of(model: FlowBesideTokens) -> FlowTransformer:
    base = FlowTransformer(CHANNELS, (CHUNK, 2, 4), **BASE, context_width=4, rngs=nnx.Rngs(0))
    own = nnx.to_pure_dict(nnx.state(model))
    state = nnx.state(base)
    nnx.replace_by_pure_dict(state, {name: own[name] for name in nnx.to_pure_dict(state)})
    nnx.update(base, state)
    return base


def test_at_scale_0_it_is_the_transformer_to_the_bit():
    """TokensGen, property 2; so it is without tokens, but for rounding."""
    base = run(base_of(model_of()), Conditioning(told().text))
    np.testing.assert_array_equal(run(model_of(scale=0.0), told()), base)
    with_tokens = run(model_of(), told())
    assert np.abs(with_tokens - base).max() > 0.05 * np.abs(base).max()
    none = run(model_of(), told(count=jnp.array([0, 4])))
    np.testing.assert_allclose(none[0], base[0], atol=1e-5 * np.abs(base).max())
    np.testing.assert_allclose(none[1], with_tokens[1], atol=1e-5 * np.abs(base).max())


def softmax_attention(q, k, v, exists) -> np.ndarray:
    """Plain attention of ``[batch, tokens, heads, width]``, without a scale."""
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    scores = np.where(exists[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


def test_a_block_with_the_branch_by_hand():
    """Queries of text and video see the tokens in a softmax of their own; the tokens see text, video and themselves."""
    model, conditioning = model_of(layers=1), told()
    prepared = model.prepare(conditioning)
    beside, grid = prepared.beside, model.tokens(model.grid)
    condition = model._condition(TIMES, prepared)
    rotary = rotary_angles(grid.shape, model.head_width)
    x, call = model._sequence(model.embedded(NOISY, grid), condition, rotary, prepared)
    block, layer = model.stack.layer(0), model.branch.stack.layer(0)
    tokens, mean = model.branch.input(beside.tokens), condition.mean(1, keepdims=True)
    random = np.random.default_rng(5)
    video, own = (jnp.asarray(random.normal(size=(2, n, 6)), jnp.float32) for n in (x.shape[1], tokens.shape[1]))
    found = layer(
        *(block, x, tokens),
        scale=0.7,
        call=call,
        angles=(video, own),
        condition=mean,
        exists=beside.exists,
    )
    first = lay_out(block.modulation(call["condition"]), x, call["group_of"])
    mine = lay_out(layer.modulation(mean), tokens)
    y = modulate(block.attention_norm(x), *first[:2])
    z = modulate(block.attention_norm(tokens), *mine[:2])
    (q, k, v), (oq, ok, ov) = block.attention.project(y, None), layer.attention.project(z, None)
    q, k, oq, ok = rotate(q, video), rotate(k, video), rotate(oq, own), rotate(ok, own)

    def out(values):
        return block.attention.out(jnp.asarray(values.reshape(*values.shape[:2], -1), jnp.float32))

    plain = block.attention(y, mask=call["mask"], key_mask=call["key_mask"], rotary=call["rotary"])
    x = x + (plain + 0.7 * out(softmax_attention(q, ok, ov, beside.exists))) * first[2]
    there = np.concatenate([call["key_mask"], beside.exists], 1)
    keys, values = np.concatenate([k, ok], 1), np.concatenate([v, ov], 1)
    tokens = tokens + out(softmax_attention(oq, keys, values, there)) * mine[2]
    x = x + block.mlp(modulate(block.mlp_norm(x), *first[3:5])) * first[5]
    tokens = tokens + block.mlp(modulate(block.mlp_norm(tokens), *mine[3:5])) * mine[5]
    for a, b in zip(found, (x, tokens), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_one_time_for_all_frames_is_the_time_of_the_clip():
    """Property 5, with the branch."""
    t = jnp.array([0.3, 0.8])
    whole = run(model_of(), told(), t)
    frames = run(model_of(), told(), jnp.broadcast_to(t[:, None], (2, CHUNK)))
    np.testing.assert_allclose(frames, whole, atol=1e-5 * np.abs(whole).max())


def test_tokens_lie_where_their_part_of_the_video_does():
    """Chunks of 3 frames with 2 slots: their middles are 0.25 and 1.75, of the next chunk 3.25 and 4.75; a window that
    begins with frame 2 sees from 1.75 on, and two columns of tokens lie over two of the video."""
    beside = model_of().beside(told(at=jnp.array([0, 2])).beside)
    assert beside.tokens.shape == (2, 3 * 2, 12) and beside.position.shape == (2, 6, 3)
    np.testing.assert_allclose(beside.position[0, ::2, 0], [0.25, 1.75, 3.25])
    np.testing.assert_allclose(beside.position[1, ::2, 0], [1.75, 3.25, 4.75])
    np.testing.assert_allclose(beside.position[0, :2, 1:], [[0.0, 0.0], [0.0, 1.0]])
    features = told().beside.features
    np.testing.assert_array_equal(beside.tokens[1].reshape(3, 1, 2, 12), features[1, 1:4])


def test_windows_are_told_the_tokens_of_their_chunks():
    """``condense`` sees chunks apart, and guidance keeps the tokens in both branches."""
    model = model_of()
    latents = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 2, 4, CHANNELS)), jnp.float32)
    tokens = jax.jit(model.condense)(latents)
    assert tokens.shape == (2, 4, 1, 2, 12)
    other = jax.jit(model.condense)(latents.at[:, :3].set(0.0))
    np.testing.assert_allclose(other[:, 2:], tokens[:, 2:], atol=1e-5)
    assert np.abs(other[:, :2] - tokens[:, :2]).max() > 1e-2
    both = told().with_null()
    np.testing.assert_array_equal(both.beside.features[:2], both.beside.features[2:])
    assert not both.text.mask[2:].any()


@pytest.mark.slow
def test_all_of_the_branch_learns_and_its_loss_is_that_of_a_window():
    model = model_of()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    latents = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 2, 4, CHANNELS)), jnp.float32)
    tokens, text = Tokens.single(latents, layout_of(GRID, channels=CHANNELS)), Conditioning(told().text)

    def loss(params):
        return nnx.merge(graph, params, rest).loss(tokens, text, jax.random.key(0), micro=MicroBatch())[0]

    found = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    still = [path for path, g in found if path[0] in ("branch", "resampler") and not np.any(g.get_value())]
    assert still == []


@pytest.mark.slow
def test_it_draws_windows_and_queues():
    layout = layout_of(GRID.with_time(7), channels=CHANNELS)
    conditioning = told(features=jnp.ones((2, 5, 1, 2, 12)), count=jnp.full(2, 5), at=jnp.zeros(2, jnp.int32))
    keys = jax.random.split(jax.random.key(0), 2)
    sampler = FlowSampler(steps=6, guidance_scale=2.0, extension="adaptive_queue")
    drawn = jax.jit(lambda: model_of().sample(layout, conditioning, keys, sampler).only.values)()
    assert drawn.shape == (2, 7, 2, 4, CHANNELS) and np.isfinite(drawn).all()
    window = jax.jit(lambda: model_of().sample(layout.with_time(3), conditioning, keys, sampler).only.values)()
    assert window.shape == (2, 3, 2, 4, CHANNELS) and np.isfinite(window).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {**BASE, "text": "cross"}}, "need text in its sequence"),
        ({"context_width": None}, "need text in its sequence"),
        ({"chunk": 4}, "clips of two or more chunks of as many, got 6"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    settings = {"base": BASE, **SETTINGS, **changes}
    with pytest.raises(UserError, match=message):
        nnx.eval_shape(lambda: FlowBesideTokens(CHANNELS, GRID.shape, **settings, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("sampler", [{"attention": {"name": "svg2"}}, {"cache": {"name": "residual"}}])
def test_shortcuts_through_the_layers_leave_no_branch_out(sampler):
    with pytest.raises(UserError, match="does not go with a branch beside the layers"):
        FlowSampler(**sampler).check(model_of())
