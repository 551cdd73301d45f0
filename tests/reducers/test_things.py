"""Trajectories, scenes, conditional queries, layouts of clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import reducers
from videogen.data.segments import linked, stand_in_segments
from videogen.errors import UserError
from videogen.reducers import TokenSet, of_grid
from videogen.reducers.memory import Bridge, Recovery
from videogen.reducers.queries import ConditionalQueries, LayoutAttention, layout_of
from videogen.reducers.scenes import SceneDrop
from videogen.reducers.trajectories import Trajectories, labels_on_grid, mean_of_things


def moving_squares():
    """A red square that goes right and a green one that stands still, on grey; their true maps."""
    frames = np.full((4, 24, 24, 3), 120, np.uint8)
    truth = np.ones((4, 24, 24), np.int32)
    for t in range(4):
        frames[t, 3:9, 2 + 4 * t : 8 + 4 * t], truth[t, 3:9, 2 + 4 * t : 8 + 4 * t] = (220, 40, 40), 2
        frames[t, 15:22, 4:11], truth[t, 15:22, 4:11] = (40, 200, 60), 3
    return frames, truth


def test_things_are_followed_though_their_labels_change():
    _, truth = moving_squares()
    shuffled = truth.copy()
    shuffled[1], shuffled[2] = np.array([0, 3, 1, 2])[truth[1]], np.array([0, 2, 3, 1])[truth[2]]
    table = linked(shuffled, 5)
    assert table[:3].tolist() == [[1, 3, 2, 1], [2, 1, 3, 2], [3, 2, 1, 3]] and not table[3:].any()
    # The largest things alone, in the order in which they appear.
    assert linked(truth, 2).tolist() == [[1] * 4, [3] * 4]


def test_a_thing_that_leaves_and_one_that_comes_are_two():
    labels = np.ones((3, 12, 12), np.int32)
    labels[0, :5, :5] = 2
    labels[2, 7:, 7:] = 2
    assert linked(labels, 3).tolist() == [[1, 1, 1], [2, 0, 0], [0, 0, 2]]


def test_the_stand_in_finds_plain_things():
    frames, truth = moving_squares()
    found = stand_in_segments(frames)
    for t in range(4):
        for k in (2, 3):
            inside = found[t][truth[t] == k]
            label = np.bincount(inside).argmax()
            overlap = ((found[t] == label) & (truth[t] == k)).sum() / ((found[t] == label) | (truth[t] == k)).sum()
            assert overlap > 0.9
    smallest = min(np.bincount(frame.ravel())[1:].min() for frame in found)
    assert smallest >= 16


def test_means_of_things_are_those_of_their_pixels():
    _, truth = moving_squares()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 24, 24, 3)), jnp.float32)
    links = jnp.asarray(linked(truth, 4))
    means, there = mean_of_things(x, jnp.asarray(truth), links)
    assert there.tolist() == [[True] * 4] * 3 + [[False] * 4]
    expected = [np.asarray(x[t])[truth[t] == 2].mean(0) for t in range(4)]
    np.testing.assert_allclose(means[1], expected, atol=1e-5)
    assert not means[3].any()


def test_a_token_for_every_thing_whatever_their_order():
    _, truth = moving_squares()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 6, 6, 3)), jnp.float32)
    labels = labels_on_grid(truth, (4, 6, 6))
    links = linked(truth, 4)
    found, said = Trajectories(4).reduce(of_grid(x), {"labels": labels[None], "links": links[None]})
    assert found.mask[0].tolist() == [True, True, True, False] and float(said["lost"]) == 0
    np.testing.assert_allclose(found.x[0, 1], np.asarray(x).reshape(-1, 3)[labels == 2].mean(0), atol=1e-5)
    turned, _ = Trajectories(4).reduce(of_grid(x), {"labels": labels[None], "links": links[None, ::-1]})
    np.testing.assert_allclose(turned.x[0, ::-1], found.x[0], atol=1e-6)
    names = np.array([0, 7, 5, 6])
    other, _ = Trajectories(4).reduce(of_grid(x), {"labels": names[labels][None], "links": names[links][None]})
    np.testing.assert_allclose(other.x, found.x, atol=1e-6)


def test_labels_that_are_places_make_tubes():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 2, 4)), jnp.float32)
    labels = np.tile(np.arange(1, 5), 3)
    links = np.repeat(np.arange(1, 5)[:, None], 3, axis=1)
    found, _ = Trajectories(4).reduce(of_grid(x), {"labels": labels[None], "links": links[None]})
    tubes, _ = reducers.build({"name": "windows", "window": (0, 1, 1)}).reduce(of_grid(x))
    np.testing.assert_allclose(found.x, tubes.x, atol=1e-6)


def test_a_still_scene_falls_to_its_floor_and_a_cut_keeps_all():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(1, 1, 4, 4, 8)), 6, axis=1).astype(np.float32)
    x[:, 3:] += 20.0 * np.eye(8, dtype=np.float32)[3]
    reducer = SceneDrop(96, share=0.25, floor=6)
    clip = of_grid(jnp.asarray(x))
    assert reducer.scenes(clip)[0].tolist() == [0, 0, 0, 1, 1, 1]
    found, said = reducer.reduce(clip)
    assert int(found.mask.sum()) == 2 * 16 + 4 * 6 and float(said["scenes"]) == 2.0


def test_a_chunk_of_one_frame_is_that_frame():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 4, 8)), jnp.float32)
    reducer = ConditionalQueries(8, side=2, frames=1, heads=2, rngs=nnx.Rngs(0))
    found, said = reducer.reduce(of_grid(x))
    np.testing.assert_array_equal(found.x, of_grid(x).x)
    assert float(said["asked"]) == 48


def test_queries_of_a_frame_read_that_frame_and_the_text():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 4, 8)), jnp.float32)
    reducer = ConditionalQueries(8, side=2, frames=2, heads=2, rngs=nnx.Rngs(0))
    text, words = jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32), jnp.array([[True, False, False], [False] * 3])
    plain, said = reducer.reduce(of_grid(x))
    assert float(said["asked"]) == 2 * (16 + 4) == plain.shape[1]
    np.testing.assert_array_equal(plain.x[:, :16], of_grid(x).x[:, :16])
    np.testing.assert_allclose(np.linalg.norm(plain.x[:, 16:20], axis=-1), 1.0, atol=1e-5)
    told, _ = reducer.reduce(of_grid(x), {"text": text, "text_mask": words})
    # No word of the second example counts.
    np.testing.assert_allclose(told.x[1], plain.x[1], atol=1e-6)
    assert np.abs(told.x[0] - plain.x[0]).max() > 1e-3
    other, _ = reducer.reduce(of_grid(x.at[:, 3].multiply(jnp.arange(8.0))))
    np.testing.assert_array_equal(other.x[:, :36], plain.x[:, :36])
    assert np.abs(other.x[:, 36:] - plain.x[:, 36:]).max() > 1e-3


def test_renumbering_clusters_renumbers_what_they_say():
    rng = np.random.default_rng(0)
    clusters, _ = reducers.build({"name": "kmeans", "budget": 5}).reduce(
        TokenSet(jnp.asarray(rng.normal(size=(2, 12, 6)), jnp.float32))
    )
    model = LayoutAttention(6, 12, 16, 4, rngs=nnx.Rngs(0))
    order = np.array([3, 1, 4, 0, 2])
    inverse = np.argsort(order)
    turned = TokenSet(
        clusters.x[:, order],
        clusters.mask[:, order],
        None,
        clusters.size[:, order],
        jnp.asarray(inverse)[clusters.source],
    )
    np.testing.assert_allclose(model(turned), model(clusters)[:, order], atol=1e-5)
    layout = layout_of(clusters.source, 5)
    np.testing.assert_array_equal(layout.sum(1), np.ones((2, 12)))
    np.testing.assert_array_equal(layout.sum(2), clusters.size)


def test_the_numbering_of_clusters_is_what_an_mlp_of_indices_reads():
    rng = np.random.default_rng(0)
    clip = of_grid(jnp.asarray(rng.normal(size=(2, 3, 2, 2, 8)), jnp.float32))
    settings = {"name": "token_hash", "places": 12, "budget": 5, "hidden": 7, "heads": 2, "outputs": 6}
    model = reducers.build({**settings, "layout": "indices"}, inputs=8, rngs=nnx.Rngs(0))
    found, said = model.reduce(clip)
    clusters, _ = model.clusters.reduce(clip)
    assert found.x.shape == (2, 5, 6) and float(said["asked"]) == 5
    np.testing.assert_array_equal(found.source, clusters.source)
    attention = model.attention
    rows = attention.outer(jax.nn.gelu(attention.inner(clusters.source.astype(jnp.float32)))).reshape(2, 5, 8)
    values = np.asarray(attention.value(rows)).reshape(2, 5, 2, 3)
    query, key = (np.asarray(part(clusters.x)).reshape(2, 5, 2, 4) for part in (attention.query, attention.key))
    weights = jax.nn.softmax(jnp.asarray(np.einsum("bkhd,bjhd->bhkj", query, key) / 2.0), axis=-1)
    np.testing.assert_allclose(found.x, np.einsum("bhkj,bjhd->bkhd", weights, values).reshape(2, 5, 6), atol=1e-5)
    with pytest.raises(UserError, match="layouts of 24 tokens do not fit the 12"):
        model.reduce(of_grid(jnp.zeros((1, 6, 2, 2, 8))))
    with pytest.raises(UserError, match="unknown layout of reducer 'token_hash' 'index'"):
        reducers.build({**settings, "layout": "index"}, inputs=8, rngs=nnx.Rngs(0))


def test_what_follows_does_not_change_a_memory_and_padding_leaves_it():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 6, 2, 2, 8)), jnp.float32)
    bridge = Bridge(8, memory=3, frames=2, heads=2, rngs=nnx.Rngs(0))
    first, _ = bridge.reduce(of_grid(x[:, :4]))
    there = jnp.array([[True] * 4 + [False] * 2])
    padded, _ = bridge.reduce(of_grid(x, there))
    np.testing.assert_allclose(padded.x, first.x, atol=1e-5)
    np.testing.assert_array_equal(padded.mask, first.mask)
    whole, _ = bridge.reduce(of_grid(x))
    assert np.abs(whole.x - first.x).max() > 1e-3
    # One segment: a plain layer over the memory, which has read itself, and the segment.
    one, _ = bridge.reduce(of_grid(x[:, :2]))
    memory = jnp.broadcast_to(bridge.start.get_value(), (1, 3, 8))
    asked = memory + bridge.recall(bridge.recall_norm(memory), memory)
    expected = bridge.layer(jnp.concatenate([asked, x[:, :2].reshape(1, 8, 8)], axis=1), jnp.ones((1, 11), bool))
    np.testing.assert_allclose(one.x, expected, atol=1e-5)


def test_recovery_gives_every_place_a_vector_of_its_own():
    rng = np.random.default_rng(0)
    kept = TokenSet(
        jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32), jnp.array([[True] * 4, [True, True, False, False]])
    )
    model = Recovery(8, 10, 2, rngs=nnx.Rngs(0))
    found = model.restore(kept)
    assert found.shape == (2, 10, 8)
    assert min(np.abs(found[0, i] - found[0, j]).max() for i in range(10) for j in range(i)) > 1e-3
    wild = TokenSet(kept.x.at[1, 2:].set(1e3), kept.mask)
    np.testing.assert_allclose(model.restore(wild), found, atol=1e-5)


@pytest.mark.parametrize(("frames", "message"), [(4, "6 frames do not divide into chunks of 4")])
def test_chunks_must_divide_the_clip(frames, message):
    with pytest.raises(UserError, match=message):
        ConditionalQueries(8, frames=frames, heads=2, rngs=nnx.Rngs(0)).reduce(of_grid(jnp.zeros((1, 6, 2, 2, 8))))
