"""Mixture of depths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.nn.depth_mixture import DepthRouter

FRAMES, EACH, TEXT, WIDTH = 3, 5, 2, 4
COUNT = FRAMES * EACH + TEXT


def router(share, weight="output", bias=None):
    made = DepthRouter(WIDTH, share, EACH, weight=weight, rngs=nnx.Rngs(0))
    if bias is not None:
        made.score.kernel.set_value(jnp.zeros((WIDTH, 1)))
        made.score.bias.set_value(jnp.full(1, bias))
    return made


def tokens(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, COUNT, WIDTH)), jnp.float32)


def layer(x, places):
    return x + jnp.tanh(x) + 0.1 * places[..., None]


def test_without_a_share_the_tokens_of_frames_pass_and_text_goes_through():
    x = tokens()
    y = router(0.0)(x, layer, FRAMES)
    np.testing.assert_array_equal(y[:, : FRAMES * EACH], x[:, : FRAMES * EACH])
    whole = layer(x, jnp.broadcast_to(jnp.arange(COUNT), x.shape[:2]))
    np.testing.assert_allclose(y[:, FRAMES * EACH :], whole[:, FRAMES * EACH :], rtol=1e-6)


@pytest.mark.parametrize("weight", ["output", "branch"])
def test_with_all_tokens_of_weight_one_it_is_the_layer(weight):
    x = tokens()
    y = router(1.0, weight, bias=100.0)(x, layer, FRAMES)
    np.testing.assert_allclose(y, layer(x, jnp.broadcast_to(jnp.arange(COUNT), x.shape[:2])), rtol=1e-6)


@pytest.mark.parametrize(("weight", "factor"), [("output", 0.5), ("branch", 1.0)])
def test_what_half_a_weight_means(weight, factor):
    """A layer that adds nothing: the token is halved, or left."""
    x = tokens()
    y = router(1.0, weight, bias=0.0)(x, lambda x, places: x, FRAMES)
    np.testing.assert_allclose(y[:, : FRAMES * EACH], factor * x[:, : FRAMES * EACH], rtol=1e-6)
    np.testing.assert_array_equal(y[:, FRAMES * EACH :], x[:, FRAMES * EACH :])


def test_the_best_of_every_frame_go_through_and_the_others_keep_every_bit():
    x, made = tokens(), router(0.4)
    scores = np.asarray(made.score(x)[..., 0])[:, : FRAMES * EACH].reshape(2, FRAMES, EACH)
    y = np.asarray(made(x, layer, FRAMES))
    same = (y == np.asarray(x)).all(-1)[:, : FRAMES * EACH].reshape(2, FRAMES, EACH)
    assert (same.sum(-1) == EACH - 2).all()  # ceil(0.4 · 5) = 2
    best = np.argsort(-scores, axis=-1)[..., :2]
    assert not np.take_along_axis(same, best, -1).any()


def test_a_frame_does_not_depend_on_later_ones():
    x, made = tokens(), router(0.4)
    other = x.at[:, 2 * EACH : FRAMES * EACH].set(tokens(1)[:, 2 * EACH : FRAMES * EACH])
    a, b = (made(v, layer, FRAMES) for v in (x, other))
    np.testing.assert_array_equal(a[:, : 2 * EACH], b[:, : 2 * EACH])


def test_permuting_a_frame_permutes_the_result():
    x, made = tokens(), router(0.4)
    turned = x.at[:, :EACH].set(x[:, :EACH][:, ::-1])
    plain = lambda x, places: x + jnp.tanh(x)  # noqa: E731
    a, b = (made(v, plain, FRAMES) for v in (x, turned))
    np.testing.assert_allclose(b[:, :EACH], a[:, :EACH][:, ::-1], rtol=1e-6)


def test_padding_goes_last_and_the_router_learns():
    x, made = tokens(), router(0.4)
    mask = jnp.ones((2, COUNT), bool).at[0, 1:EACH].set(False)
    index, _ = made.chosen(x[:, :EACH].reshape(2, 1, EACH, WIDTH), mask[:, :EACH].reshape(2, 1, EACH))
    assert 0 in index[0, 0].tolist()
    gradient = nnx.grad(lambda made: jnp.sum(made(x, layer, FRAMES) ** 2))(made)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(nnx.to_pure_dict(gradient)))
