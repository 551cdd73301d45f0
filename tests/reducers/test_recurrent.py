"""Reducers that go on with a stream: segment by segment as the whole clip at once, with memory of fixed size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import reducers
from videogen.errors import UserError
from videogen.reducers import TokenSet, of_grid

SEGMENT, SEGMENTS, SIDES, CHANNELS = 2, 3, (4, 2), 8
SECTIONS = {
    "bridge": {"name": "bridge", "memory": 3, "frames": SEGMENT, "heads": 2},
    "summaries": {"name": "summaries", "frames": SEGMENT, "each": 2, "heads": 2, "layers": 1},
}


def built(name, **settings):
    section = {**SECTIONS[name], **settings}
    reducer = reducers.build(section, inputs=CHANNELS, rngs=nnx.Rngs(0), dtype=jnp.float32, remat="none")
    leaves, tree = jax.tree.flatten(nnx.state(reducer, nnx.Param))
    noisy = [x + 0.1 * jnp.cos(7.0 * jnp.arange(x.size).reshape(x.shape)) for x in leaves]
    nnx.update(reducer, jax.tree.unflatten(tree, noisy))
    return reducer


def clip(frames, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(1, frames, *SIDES, CHANNELS)), jnp.float32)


def segment(x, start, there=SEGMENT):
    """A segment of a clip, of which the first frames may be all there is."""
    part = x[:, start : start + SEGMENT]
    part = jnp.pad(part, ((0, 0), (0, SEGMENT - part.shape[1]), *((0, 0),) * 3))
    return of_grid(part, jnp.arange(SEGMENT)[None] < there)


def folded(reducer, x, count=SEGMENTS, there=None):
    there = x.shape[1] if there is None else there
    carry, fold = reducer.begin(1, (SEGMENT, *SIDES), count), jax.jit(reducer.fold)
    for start in range(0, there, SEGMENT):
        carry = fold(carry, segment(x, start, there - start))
    return carry


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("frames", [6, 4, 5, 1])
def test_segments_one_by_one_are_the_clip_at_once(name, frames):
    reducer, x = built(name), clip(SEGMENT * SEGMENTS)
    whole, _ = reducer.reduce(of_grid(x, jnp.arange(6)[None] < frames))
    found, slot = reducer.remembered(folded(reducer, x, there=frames))
    assert found.x.shape == whole.x.shape and reducer.recurrent
    np.testing.assert_array_equal(found.mask, whole.mask)
    there = np.asarray(whole.mask)[0]
    np.testing.assert_allclose(np.asarray(found.x)[0, there], np.asarray(whole.x)[0, there], atol=1e-5)
    np.testing.assert_allclose(found.size, whole.size, atol=1e-6)
    last = (frames - 1) // SEGMENT
    if name == "bridge":
        # Memory tokens are of all segments, the others of the last one.
        assert slot.tolist() == [-1] * 3 + [0] * SEGMENT * 8
        of_segment = np.asarray(found.position)[0, 3:, 0] + SEGMENT * last
        np.testing.assert_allclose(of_segment[there[3:]], np.asarray(whole.position)[0, 3:, 0][there[3:]])
    else:
        assert slot.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        place = np.asarray(found.position)[0, :, 0] + SEGMENT * np.asarray(slot)
        np.testing.assert_allclose(place[there], np.asarray(whole.position)[0, :, 0][there])


@pytest.mark.parametrize("name", SECTIONS)
def test_a_stream_goes_on_with_memory_of_one_size(name):
    reducer, x = built(name), clip(40, seed=1)
    carry, fold, sizes = reducer.begin(1, (SEGMENT, *SIDES), SEGMENTS), jax.jit(reducer.fold), set()
    for start in range(0, 40, SEGMENT):
        carry = fold(carry, segment(x, start))
        sizes.add(sum(leaf.nbytes for leaf in jax.tree.leaves(carry)))
    assert len(sizes) == 1 and fold._cache_size() == 1 and int(carry.count) == SEGMENTS + (name == "bridge")
    found, _ = reducer.remembered(carry)
    assert np.isfinite(np.asarray(found.x)).all() and bool(found.mask.all())


def test_what_was_long_ago_counts_through_the_memory():
    """Another first segment changes what is remembered after many more: nothing but the memory can tell."""
    for name in SECTIONS:
        reducer, x = built(name), clip(12, seed=2)
        other = x.at[:, :SEGMENT].set(3 * clip(SEGMENT, seed=3))
        a, b = (reducer.remembered(folded(reducer, each))[0].x for each in (x, other))
        assert float(jnp.abs(a - b).max()) > 1e-4, name


def test_a_missing_segment_leaves_the_memory_alone():
    for name in SECTIONS:
        reducer, x = built(name), clip(4)
        carry = folded(reducer, x)
        after = reducer.fold(carry, segment(x, 0, 0))
        own = "memory" if name == "bridge" else "before"
        np.testing.assert_array_equal(getattr(after, own), getattr(carry, own))
    with pytest.raises(UserError, match="leave clips out"):
        reducer = built("summaries", clips=1)
        reducer.fold(reducer.begin(1, (SEGMENT, *SIDES), 2), segment(clip(2), 0))
    assert not reducers.build({"name": "grid", "side": 2}).recurrent and isinstance(segment(clip(2), 0), TokenSet)
