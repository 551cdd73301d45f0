"""Streaming summaries: one clip after another, what reaches them, and the clips that a question asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from videogen.errors import UserError
from videogen.nn import rotary_angles
from videogen.nn.structured_masks import CARRIER, CLIP, KIND, VISUAL, summary_flow
from videogen.reducers import of_grid
from videogen.reducers.summaries import StreamingSummaries

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 6, 4, 4, 8)), jnp.float32)


def made(**settings):
    settings = {"frames": 2, "each": 2, "about": 1, "layers": 1, "heads": 2, **settings}
    return with_random_parameters(nnx.eval_shape(lambda: StreamingSummaries(8, **settings, rngs=nnx.Rngs(0))))


def of(model, x, exists=None, **aux):
    graph, state = nnx.split(model)
    return jax.jit(lambda x, exists, aux: nnx.merge(graph, state).reduce(of_grid(x, exists), aux))(x, exists, aux)


def test_one_clip_is_a_plain_stack():
    model = made()
    found, said = of(model, X[:, :2])
    assert found.x.shape == (2, 4, 8) and float(said["asked"]) == 4
    boxes = np.asarray(X[:, :2]).reshape(2, 2, 2, 2, 2, 2, 8).transpose(0, 1, 2, 4, 3, 5, 6).reshape(2, 8, 32)
    read = model.read(jnp.asarray(boxes))
    places = jnp.concatenate([model.places.get_value(), model.last_places.get_value()]) + model.time(jnp.zeros(1))
    both = [jnp.broadcast_to(v, (2, *v.shape)) for v in (model.start.get_value(), places)]
    whole = jnp.concatenate([both[0], read, both[1]], axis=1)
    tags = {KIND: np.full(17, CARRIER, np.int32), CLIP: np.repeat([-1, 0], [4, 13]).astype(np.int32)}
    tags[KIND][4:12] = VISUAL
    y = model.stack(whole, mask=summary_flow(), tags=tags, rotary=rotary_angles([17], 4))
    np.testing.assert_allclose(found.x, model.norm(y[:, 12:16]), atol=1e-5)
    np.testing.assert_allclose(found.position[0, :, 0], [0, 0, 1, 1])
    np.testing.assert_allclose(found.position[0, :, 1:], 1.5)
    np.testing.assert_allclose(found.size, 8.0)


def test_the_scan_is_a_loop_over_clips_and_what_follows_changes_nothing():
    model = made()
    found, _ = of(model, X)
    first, _ = of(model, X[:, :4])
    np.testing.assert_allclose(found.x[:, :8], first.x, atol=1e-5)
    boxes = np.asarray(X).reshape(2, 6, 2, 2, 2, 2, 8).transpose(0, 1, 2, 4, 3, 5, 6).reshape(2, 3, 8, 32)
    before, there = jnp.broadcast_to(model.start.get_value(), (2, 4, 8)), jnp.ones((2, 8), bool)
    one = jax.jit(lambda before, x, number: model.clip(before, model.read(x), there, number)[0])
    for number in range(3):
        before = one(before, jnp.asarray(boxes[:, number]), jnp.asarray(number))
        np.testing.assert_allclose(found.x[:, 4 * number : 4 * number + 4], before, atol=1e-5)
    # Earlier clips do reach later summaries, through those before.
    other, _ = of(model, X.at[:, :2].multiply(-1.0))
    assert float(jnp.abs(other.x - found.x)[:, 8:].max()) > 1e-3


def test_clips_that_are_missing_leave_the_summaries_as_they_are():
    model = made()
    exists = jnp.array([[True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    found, _ = of(model, X, exists)
    assert found.mask.sum(1).tolist() == [8, 4]
    for example, frames in ((0, 4), (1, 2)):
        alone, _ = of(model, X[example : example + 1, :frames])
        np.testing.assert_allclose(found.x[example, : 2 * frames], alone.x[0], atol=1e-5)
    # In the middle, too: what comes behind reads the summaries before the gap.
    gap = jnp.array([[True] * 2 + [False] * 2 + [True] * 2] * 2)
    held, _ = of(model, X, gap)
    wild, _ = of(model, X.at[:, 2:4].set(9.0), gap)
    np.testing.assert_allclose(wild.x, held.x, atol=1e-5)


def test_frames_are_reached_through_summaries_alone():
    """Without what is read of frames, nothing that is left depends on them."""
    model = made()
    model.read.kernel.set_value(jnp.zeros_like(model.read.kernel.get_value()))
    np.testing.assert_allclose(of(model, X)[0].x, of(model, -2 * X)[0].x, atol=1e-6)


def test_the_clips_that_a_question_asks_for_stay():
    model = made(clips=2, question_width=5)
    graph, state = nnx.split(model)
    x, about, _ = jax.jit(lambda x: nnx.merge(graph, state).summaries(of_grid(x)))(X)
    question = jnp.asarray(RNG.normal(size=(2, 5)), jnp.float32)
    asked = np.asarray(model.question(question))
    a, q = (np.asarray(v) / np.linalg.norm(v, axis=-1, keepdims=True) for v in (about, asked))
    best = np.sort(np.argsort(-np.einsum("bkd,bd->bk", a, q), axis=1)[:, :2], axis=1)
    found, said = of(model, X, question=question)
    assert found.shape == (2, 2 * 4) and float(said["asked"]) == 8
    expected = np.take_along_axis(np.asarray(x), best[:, :, None, None], 1).reshape(2, 8, 8)
    np.testing.assert_allclose(found.x, expected, atol=1e-5)
    np.testing.assert_allclose(found.position[:, ::4, 0], 2 * best)
    # The choice learns: gradient reaches the question's layer.
    gradient = jax.jit(jax.grad(lambda s: nnx.merge(graph, s).reduce(of_grid(X), {"question": question})[0].x.sum()))(
        state
    )
    assert np.abs(gradient["question"]["kernel"].get_value()).max() > 0
    drawn, _ = of(model, X, question=question, key=jax.random.split(jax.random.key(1), 2))
    assert drawn.shape == (2, 8)


def test_clips_and_windows_divide_the_video():
    with pytest.raises(UserError, match=r"6 frames of 4×4 tokens do not divide into clips of 4 and windows of 2"):
        made(frames=4).reduce(of_grid(X))
