"""Masks by kinds of tokens: counts in closed form, nobody without a key, and what deleting keys changes: nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import Block, Causal, Full, Stack, Stream, angles_at, mask_array
from videogen.nn.structured_masks import (
    CARRIER,
    CLASS,
    CLIP,
    FRAME,
    KIND,
    LEVEL,
    PATCH,
    TEXT,
    VISUAL,
    by_kind,
    multi_scale,
    multi_scale_tags,
    semantic_flow,
    summary_flow,
)

WIDTH, HEADS, LAYERS = 16, 2, 3


def dense(mask, tags) -> np.ndarray:
    rows = {tag: jnp.asarray(values)[None] for tag, values in tags.items()}
    count = len(next(iter(tags.values())))
    return np.asarray(mask_array(mask, count, count, rows, rows))[0]


def stack() -> Stack:
    return Stack(lambda r: Block(WIDTH, {"heads": HEADS}, {"hidden": 24}, rngs=r), LAYERS, rngs=nnx.Rngs(0))


def tokens(count, seed=1):
    return jax.random.normal(jax.random.key(seed), (2, count, WIDTH))


def test_rows_and_columns_of_25_tokens_of_several_scales():
    """Four frames of three patches, three levels of four tokens."""
    tags = multi_scale_tags(4, 3, 3, 4)
    allowed, kind = dense(multi_scale(3), tags), tags[KIND]
    assert allowed.shape == (25, 25) and kind[0] == CLASS
    rows = allowed.sum(1)
    assert rows[0] == 25
    assert [set(rows[kind == LEVEL + u]) for u in range(3)] == [{16}, {14}, {15}]
    assert set(rows[kind == PATCH]) == {15}
    assert allowed[:, 0].sum() == 1 and allowed[0, 0]
    # Levels see levels up to their own, and every frame, every second, every fourth.
    for u in range(3):
        sees = allowed[np.flatnonzero(kind == LEVEL + u)[0]]
        assert set(kind[sees]) == {PATCH, *range(LEVEL, LEVEL + u + 1)}
        assert set(tags[FRAME][sees & (kind == PATCH)]) == set(range(0, 4, 2**u))


def test_without_levels_every_frame_is_a_picture_of_its_own():
    """What patches are behind a stack with this mask is what they are frame by frame."""
    tags = multi_scale_tags(3, 4, 0, 0)
    model, x = stack(), tokens(13)
    whole = model(x, mask=multi_scale(0), tags=tags)
    frames = model(x[:, 1:].reshape(6, 4, WIDTH)).reshape(2, 12, WIDTH)
    np.testing.assert_allclose(whole[:, 1:], frames, atol=1e-5)
    with pytest.raises(UserError, match="without a rule"):
        by_kind({})


def flow_tags(frames=3, each=2, before=2, after=3):
    """Words, frames of visual tokens with a carrier behind each, words."""
    kinds = [TEXT] * before + ([VISUAL] * each + [CARRIER]) * frames + [TEXT] * after
    places = [-1] * before + np.repeat(np.arange(frames), each + 1).tolist() + [-1] * after
    return {KIND: np.array(kinds, np.int32), FRAME: np.array(places, np.int32)}


def test_counts_of_the_semantic_flow():
    tags, before, each = flow_tags(), 2, 2
    allowed = dense(semantic_flow(), tags)
    rows, kind, frame = allowed.sum(1), tags[KIND], tags[FRAME]
    for t in range(3):
        own = rows[(frame == t) & (kind == VISUAL)]
        assert own.tolist() == [before + t + i + 1 for i in range(each)]
        assert rows[(frame == t) & (kind == CARRIER)] == before + t + each + 1
    assert rows[-3:].tolist() == [before + 3 + i + 1 for i in range(3)]
    assert rows.min() >= 1 and not np.triu(allowed, 1).any()


def test_visual_keys_of_past_frames_may_be_deleted():
    """Words behind the frames are what they were, to rounding, from a cache that has the carriers alone; the whole
    forward, and one frame after another with what the mask hides evicted, agree."""
    tags, model = flow_tags(), stack()
    count, prompt = len(tags[KIND]), len(tags[KIND]) - 3
    x, angles = tokens(count), angles_at(jnp.arange(count)[None, :, None].repeat(2, 0), WIDTH // HEADS)
    mask = semantic_flow()
    whole = model(x, mask=mask, tags=tags, rotary=angles)

    @jax.jit
    def go_on(caches, x, angles, tags):
        stream = Stream((caches,))
        return model(x, mask=mask, tags=tags, rotary=angles, stream=stream), stream.cache[0]

    @jax.jit
    def forget(caches):
        return jax.vmap(lambda c: c.compact(c.places.tags[KIND] != VISUAL))(caches[0])

    rows = {tag: jnp.broadcast_to(values, (2, count)) for tag, values in tags.items()}
    caches, parts, ends = model.begin(2, count, tags=(KIND, FRAME)), [], [0, 2, 5, 8, 11, count]
    for start, stop in zip(ends[:-1], ends[1:], strict=True):
        cut = {tag: values[:, start:stop] for tag, values in rows.items()}
        out, caches = go_on(caches, x[:, start:stop], angles[:, start:stop], cut)
        caches = (forget(caches),)
        parts.append(out)
        seen = [0, 2, 3, 4, 5, 8][ends.index(stop)]
        assert caches[0].length.tolist() == [seen] * LAYERS
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-5 * float(jnp.abs(whole).max()))
    # With a plain causal mask they are needed.
    plain = model(x, mask=Causal(), tags=tags, rotary=angles)
    assert float(jnp.abs(plain - whole)[:, prompt:].max()) > 1e-2


def summary_tags():
    """Two clips of three visual tokens and two summaries, then words."""
    kinds = ([VISUAL] * 3 + [CARRIER] * 2) * 2 + [TEXT] * 2
    clips = [0] * 5 + [1] * 5 + [-1] * 2
    return {KIND: np.array(kinds, np.int32), CLIP: np.array(clips, np.int32)}


def test_only_summaries_read_their_clip():
    tags = summary_tags()
    allowed, kind, clip = dense(summary_flow(), tags), tags[KIND], tags[CLIP]
    for key in np.flatnonzero(kind == VISUAL):
        readers = set(np.flatnonzero(allowed[:, key]).tolist())
        assert readers == {key, *np.flatnonzero((kind == CARRIER) & (clip == clip[key])).tolist()}
    # Rows: a visual token itself and all summaries before; a summary its clip and all summaries up to its own.
    assert allowed.sum(1).tolist() == [1, 1, 1, 4, 5, 3, 3, 3, 6, 7, 5, 6]
    assert not np.triu(allowed, 1).any()


def test_words_reach_frames_through_summaries_alone():
    """Cut off from its clip, a summary leaves no way: the words do not change with the frames."""
    tags, model = summary_tags(), stack()
    x = tokens(12)
    other = jnp.where((tags[KIND] == VISUAL)[:, None], -x, x)
    mask = summary_flow()
    reads = [model(v, mask=mask, tags=tags)[:, 10:] for v in (x, other)]
    assert float(jnp.abs(reads[0] - reads[1]).max()) > 1e-2
    blind = mask & (by_kind({(q, k): Full() for q in range(3) for k in range(3) if (q, k) != (CARRIER, VISUAL)}))
    cut = [model(v, mask=blind, tags=tags)[:, 10:] for v in (x, other)]
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-5)
