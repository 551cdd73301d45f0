"""Towers of things and of tubes: what a thing is, that padding, order and names of things change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.language.towers import VIDEO_TOWERS
from videogen.language.trajectory_tower import WAVES, Stages, sines
from videogen.reducers.trajectories import shares_of_things
from videogen.shapes import VideoShape

CLIP = VideoShape(3, 8, 8)
LAYERS = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}
RNG = np.random.default_rng(0)
VIDEO = jnp.asarray(RNG.uniform(-1, 1, (2, 3, 8, 8, 3)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(1, 4, (2, 3, 8, 8)), jnp.int16)
LINKS = jnp.asarray([[[1, 1, 1], [2, 0, 3], [3, 2, 2]], [[3, 3, 3], [1, 2, 0], [0, 0, 0]]], jnp.int16)


def made(name="things", clip=CLIP, **settings):
    own = {"widths": (4, 8), "latents": 1, "things": 3} if name == "things" else {"size": (3, 4, 4)}
    return VIDEO_TOWERS[name](clip, 5, **{**own, "transformer": LAYERS, **settings}, rngs=nnx.Rngs(0))


def run(model, video, exists=None, **beside):
    graph, state = nnx.split(model)
    seconds = jnp.zeros(video.shape[:2])
    return jax.jit(lambda state, *a: nnx.merge(graph, state)(*a))(state, video, seconds, exists, None, beside)


def test_shares_of_a_label_map_that_leaves_nothing_out_sum_to_all():
    links = jnp.asarray([[1] * 3, [2] * 3, [3] * 3])
    shares = shares_of_things(LABELS[0], links, (2, 2))
    assert shares.shape == (3, 3, 2, 2)
    np.testing.assert_allclose(shares.sum(0), 1.0, rtol=1e-6)
    # 16 pixels of a place: the sum of all areas is frames · height · width.
    assert float(shares.sum() * 16) == pytest.approx(3 * 8 * 8)
    none = shares_of_things(LABELS[0], jnp.zeros((1, 3), int), (2, 2))
    assert float(jnp.abs(none).max()) == 0
    first = np.asarray(LABELS[0, 0, :4, 4:]) == 1
    assert float(shares[0, 0, 0, 1]) == pytest.approx(first.mean())


def test_things_that_are_places_are_tubes():
    """With the number of the place as label, and the same in every frame, a thing is a tube of features."""
    model = made()
    features = jax.random.normal(jax.random.key(0), (1, 3, 2, 2, 8))
    labels = jnp.broadcast_to(jnp.repeat(jnp.repeat(jnp.array([[1, 2], [3, 4]]), 4, 0), 4, 1), (1, 3, 8, 8))
    links = jnp.broadcast_to(jnp.arange(1, 5)[:, None], (1, 4, 3))
    means, middles, there = model.of_things(features, labels, links)
    np.testing.assert_allclose(means.mean(2), features.mean(1).reshape(1, 4, 8), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(middles[0, :, 0], [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]], rtol=1e-6)
    assert bool(there.all())


def test_padding_order_and_names_of_things_change_nothing():
    model = made()
    expected = run(model, VIDEO, segments=LABELS, links=LINKS)
    assert expected.shape == (2, 5) and bool(jnp.isfinite(expected).all())
    padded = jnp.pad(LINKS, ((0, 0), (0, 4), (0, 0)))
    np.testing.assert_allclose(run(model, VIDEO, segments=LABELS, links=padded), expected, rtol=1e-4, atol=1e-5)
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(
        run(model, VIDEO, segments=LABELS, links=LINKS[:, order]), expected, rtol=1e-4, atol=1e-5
    )
    names = jnp.asarray([0, 30, 10, 20])
    found = run(model, VIDEO, segments=names[LABELS], links=names[LINKS])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # A thing less is seen, and so is where things are.
    fewer = run(model, VIDEO, segments=LABELS, links=LINKS.at[:, 0].set(0))
    assert float(jnp.abs(fewer - expected).max()) > 1e-4
    moved = run(model, jnp.ones_like(VIDEO), segments=LABELS, links=LINKS)
    turned = run(model, jnp.ones_like(VIDEO), segments=LABELS[:, :, ::-1], links=LINKS)
    assert float(jnp.abs(moved - turned).max()) > 1e-5


def test_a_picture_is_a_clip_of_one_frame():
    model = made(clip=VideoShape(1, 8, 8))
    found = run(model, VIDEO[:, :1], segments=LABELS[:, :1], links=LINKS[:, :, :1])
    assert found.shape == (2, 5) and bool(jnp.isfinite(found).all())
    # Frames that do not exist are in no thing.
    whole = made()
    there = jnp.array([[True, False, False]] * 2)
    one = run(whole, VIDEO, there, segments=LABELS, links=LINKS)
    other = run(whole, VIDEO.at[:, 1:].set(0.5), there, segments=LABELS, links=LINKS)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns():
    for name in ("things", "tubes"):
        model = made(name)
        graph, state = nnx.split(model)
        beside = {"segments": LABELS, "links": LINKS}

        def loss(state, graph=graph, beside=beside):
            return jnp.sum(nnx.merge(graph, state)(VIDEO, jnp.zeros((2, 3)), beside=beside) ** 2)

        slopes = nnx.to_flat_state(jax.jit(jax.grad(loss))(state))
        still = ["/".join(map(str, path)) for path, x in slopes if not float(jnp.abs(x.get_value()).max()) > 0]
        # With one value to attend to, queries and keys of [CLS] may rest; nothing else does.
        assert [name for name in still if "query" not in name and "key" not in name] == []


def test_sines_and_stages():
    found = sines(jnp.array([[0.5]]))
    angles = np.pi * 0.5 * 2.0 ** np.arange(WAVES)
    np.testing.assert_allclose(found[0], np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-3)
    stages = Stages((4, 8), 6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert stages(VIDEO).shape == (2, 3, 2, 2, 6)
    # Frames are apart.
    other = stages(VIDEO.at[:, 1].set(0.0))
    np.testing.assert_allclose(other[:, 0], stages(VIDEO)[:, 0], rtol=1e-5, atol=1e-6)


def test_tubes_tile_a_clip():
    model = made("tubes")
    assert model.tokens == 4 and run(model, VIDEO).shape == (2, 5)
    two = made("tubes", size=(1, 4, 4))
    there = jnp.array([[True, True, False]] * 2)
    np.testing.assert_allclose(run(two, VIDEO, there), run(two, VIDEO.at[:, 2].set(1.0), there), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="do not tile clips"):
        made("tubes", size=(2, 4, 4))
    with pytest.raises(UserError, match="2 stages of convolutions need sides that divide by 8"):
        made(clip=VideoShape(3, 8, 12))
    with pytest.raises(UserError, match="tokens of things have no order"):
        made(transformer={**LAYERS, "rotary": True})
