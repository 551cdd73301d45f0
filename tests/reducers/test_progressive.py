"""Progressive compression: pictures as they are at first, no future, a still clip whose frames say different things."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from videogen.errors import UserError
from videogen.nn import build_transformer
from videogen.reducers import of_grid
from videogen.reducers.progressive import Progressive, ProgressiveHook, as_still, relative

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 4, 4, 4, 8)), jnp.float32)


def fresh():
    return Progressive(8, side=2, layers=2, heads=2, outputs=6, rngs=nnx.Rngs(0))


def learned():
    return with_random_parameters(nnx.eval_shape(fresh))


def codes(model, x):
    graph, state = nnx.split(model)
    return jax.jit(lambda x: nnx.merge(graph, state).reduce(of_grid(x)))(x)


def test_at_first_every_frame_is_a_picture():
    model = fresh()
    found, said = codes(model, X)
    assert found.x.shape == (2, 4 * 4, 6) and found.grid == (4, 2, 2) and float(said["asked"]) == 16
    for frame in range(4):
        alone, _ = codes(model, X[:, frame : frame + 1])
        np.testing.assert_allclose(found.x[:, 4 * frame : 4 * frame + 4], alone.x, atol=1e-6)
    # A window is one linear layer over its four tokens, row by row.
    windows = np.asarray(model.norm(X)).reshape(2, 4, 2, 2, 2, 2, 8).transpose(0, 1, 2, 4, 3, 5, 6).reshape(2, 16, 32)
    np.testing.assert_allclose(found.x, model.compress(jnp.asarray(windows)), atol=1e-5)


def test_256_tokens_of_a_frame_become_64():
    model = Progressive(2, side=2, layers=0, rngs=nnx.Rngs(0))
    found = jax.eval_shape(lambda x: model.reduce(of_grid(x))[0], jnp.zeros((1, 3, 16, 16, 2)))
    assert found.x.shape == (1, 3 * 64, 2)


def test_a_frame_knows_the_past_alone():
    model = learned()
    found, _ = codes(model, X)
    other, _ = codes(model, X.at[:, 2].multiply(-1.0))
    np.testing.assert_allclose(other.x[:, :8], found.x[:, :8], atol=1e-5)
    assert (np.abs(other.x[:, 8:] - found.x[:, 8:]).reshape(2, 2, -1).max(-1) > 1e-3).all()
    # A place knows its own past: the last window of frame 3 does not see what another place of frame 2 was.
    elsewhere, _ = codes(model, X.at[:, 2, 0, 0].multiply(-1.0))
    np.testing.assert_allclose(elsewhere.x[:, 13:], found.x[:, 13:], atol=1e-5)


def test_frames_of_a_still_clip_say_different_things_once_it_has_learned():
    still = as_still(X[:, 0])
    assert still.shape == X.shape and (still == X[:, :1]).all()
    _, said = codes(fresh(), still)
    assert float(said["alike"]) == pytest.approx(1.0, abs=1e-5)
    found, said = codes(learned(), still)
    first, later = np.split(np.asarray(found.x).reshape(2, 4, 4, 6), [1], axis=1)
    cosine = (first * later).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(later, axis=-1)
    assert float(said["alike"]) == pytest.approx(cosine.mean(), abs=1e-5) and cosine.mean() < 0.99
    one, said = codes(learned(), X[:, :1])
    assert one.x.shape == (2, 4, 6) and np.isfinite(one.x).all() and float(said["alike"]) == 0.0


def test_relative_times_run_from_the_first_frame_to_the_last_that_exists():
    times = jnp.array([[2.0, 4.0, 10.0, 99.0], [5.0, 6.0, 7.0, 8.0]])
    exists = jnp.array([[True, True, True, False], [True, False, False, False]])
    np.testing.assert_allclose(relative(times, exists), [[0, 0.25, 1, 0], [0, 0, 0, 0]])


def test_windows_must_tile_a_frame():
    with pytest.raises(UserError, match="windows of 2 do not tile frames of 3×4"):
        fresh().reduce(of_grid(jnp.zeros((1, 2, 3, 4, 8))))


def test_a_hook_in_a_vision_transformer_leaves_pictures_as_they_are_at_first():
    config = {"width": 8, "layers": 3, "heads": 2, "mlp_width": 12}
    x = X.reshape(8, 16, 8)

    def tower(hooks):
        return build_transformer(config, hooks=hooks, rngs=nnx.Rngs(0))

    hook = ProgressiveHook(8, 2, rngs=nnx.Rngs(1))
    notes = {"frames": 4}
    run = jax.jit(lambda hook, x: tower({2: hook})(x, notes=notes))
    np.testing.assert_allclose(run(hook, x), tower({})(x), atol=1e-6)
    trained = with_random_parameters(nnx.eval_shape(lambda: ProgressiveHook(8, 2, rngs=nnx.Rngs(1))))
    a, b = (
        run(trained, v).reshape(2, 4, 16, 8) for v in (x, x.reshape(2, 4, 16, 8).at[:, 2].set(1.0).reshape(x.shape))
    )
    np.testing.assert_allclose(a[:, :2], b[:, :2], atol=1e-5)
    assert np.abs(a[:, 3] - b[:, 3]).max() > 1e-3
