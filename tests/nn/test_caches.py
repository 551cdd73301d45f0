"""Decoding over cached keys and values equals the whole forward: padded, compacted, evicted, merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import (
    Attention,
    Block,
    Causal,
    CausalWindow,
    Equal,
    First,
    Same,
    SlidingWindow,
    Stack,
    Stream,
    angles_at,
    attend,
)

WIDTH, HEADS, LAYERS = 16, 2, 3


def stack() -> Stack:
    return Stack(lambda r: Block(WIDTH, {"heads": HEADS}, {"hidden": 32}, rngs=r), LAYERS, rngs=nnx.Rngs(0))


def tokens(count: int, batch: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, count, WIDTH))


def angles(positions) -> jax.Array:
    return angles_at(jnp.asarray(positions)[..., None], WIDTH // HEADS)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


def decode(module: Stack, caches: tuple, x: jax.Array, steps, **call) -> tuple[jax.Array, tuple]:
    """``x`` in parts that end at ``steps``; arrays of ``call`` with an entry for every token are cut alike."""

    def one(caches, x, arrays):
        stream = Stream((caches,))
        y = module(x, stream=stream, **static, **arrays)
        return y, stream.cache[0]

    static = {name: value for name, value in call.items() if name == "mask"}
    arrays = {name: value for name, value in call.items() if name != "mask"}
    one, start, parts = jax.jit(one), 0, []
    for stop in steps:
        y, caches = one(caches, x[:, start:stop], jax.tree.map(lambda a, s=start, e=stop: a[:, s:e], arrays))
        parts.append(y)
        start = stop
    return jnp.concatenate(parts, axis=1), caches


def test_a_cache_of_stacked_layers_is_the_whole_forward():
    module, x = stack(), tokens(7)
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    whole = module(x, mask=Causal(), rotary=angles(positions))
    for tags in (None, ()):
        out, caches = decode(
            module, module.begin(2, 9, tags=tags), x, (3, 4, 5, 7), mask=Causal(), rotary=angles(positions)
        )
        close(out, whole)
        np.testing.assert_array_equal(caches[0].length, [7] * LAYERS)


def test_left_padding_is_as_if_there_were_none():
    """Prompts of 2, 5 and 3 tokens end together; every example is what it would be alone."""
    module, lengths, prompt, count = stack(), np.array([2, 5, 3]), 5, 9
    x = tokens(count, batch=3)
    exists = jnp.arange(count)[None] >= prompt - lengths[:, None]
    positions = jnp.arange(count)[None] - (prompt - lengths[:, None])
    call = dict(mask=Causal(), rotary=angles(positions), key_mask=exists)
    out, caches = decode(module, module.begin(3, count, tags=()), x, (5, 6, 7, 9), **call)
    np.testing.assert_array_equal(caches[0].places.end[0], count - (prompt - lengths))
    for example, length in enumerate(lengths):
        own = x[example : example + 1, prompt - length :]
        alone = module(own, mask=Causal(), rotary=angles(np.arange(own.shape[1])[None]))
        close(out[example, prompt - length :], alone[0])


def test_positions_count_tokens_that_exist():
    """A window that reaches over padding: positions, not places of the buffer, are compared."""
    module, x = stack(), tokens(8)
    exists = jnp.array([[0, 1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]], bool)
    mask = CausalWindow(3)
    out, _ = decode(module, module.begin(2, 8, tags=()), x, (5, 6, 8), mask=mask, key_mask=exists)
    for example in range(2):
        alone = module(x[example : example + 1, exists[example]], mask=mask)
        close(out[example, exists[example]], alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [False, True])
def test_layers_that_keep_different_numbers_of_tokens(ragged):
    """After the prompt every layer, and every example in it, forgets other tokens; the rest is decoded."""
    module, prompt, count = stack(), 6, 10
    x, positions = tokens(count), jnp.broadcast_to(jnp.arange(count), (2, count))
    keep = jnp.array(
        [
            [[1, 0, 0, 1, 0, 1], [1, 1, 0, 1, 1, 1]],
            [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
            [[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1]],
        ],
        bool,
    )
    caches = module.begin(2, count, tags=())
    call = dict(mask=Causal(), rotary=angles(positions[:, :prompt]))
    first, (cache,) = decode(module, caches, x[:, :prompt], (prompt,), **call)
    places = jnp.pad(keep, ((0, 0), (0, 0), (0, count - prompt)))
    cache = jax.vmap(lambda c: c.ragged())(cache) if ragged else cache
    cache = jax.jit(jax.vmap(lambda cache, keep: cache.compact(keep)))(cache, places)
    expected_lengths = keep.sum(-1) if ragged else keep.sum(-1).max(-1)
    np.testing.assert_array_equal(cache.length, expected_lengths)
    call = dict(mask=Causal(), rotary=angles(positions[:, prompt:]))
    rest, _ = decode(module, (cache,), x[:, prompt:], (1, 2, 4), **call)

    # The whole forward: a layer's later queries see of the prompt what the layer keeps.
    mask = Causal() & (Equal("kept", 1) | Equal("prompt", 1, "query"))
    whole, own = x, {"prompt": np.int32(np.arange(count) < prompt)}
    for layer, kept in zip(module.unstacked(), keep, strict=True):
        tags = own | {"kept": jnp.pad(kept, ((0, 0), (0, count - prompt)), constant_values=True).astype(jnp.int32)}
        whole = layer(whole, mask=mask, tags=tags, rotary=angles(positions))
    close(jnp.concatenate([first, rest], axis=1), whole)


def test_a_sliding_window_with_sinks_in_a_buffer_of_its_size():
    module, count, rule = stack(), 14, SlidingWindow(4, sinks=2)
    x, positions = tokens(count), jnp.broadcast_to(jnp.arange(count), (2, count))
    mask = Causal() & (CausalWindow(4) | First(2))
    whole = module(x, mask=mask, rotary=angles(positions))
    # Two sinks, three of the window, and the next two tokens.
    caches, parts = module.begin(2, 7, tags=()), []
    evict = jax.jit(jax.vmap(lambda cache: cache.evict(rule)))
    for start in range(0, count, 2):
        part = slice(start, start + 2)
        call = dict(mask=mask, rotary=angles(positions[:, part]))
        out, (cache,) = decode(module, caches, x[:, part], (2,), **call)
        parts.append(out)
        caches = (evict(cache),)
        assert int(caches[0].length.max()) == min(5, start + 2)
    close(jnp.concatenate(parts, axis=1), whole)


def test_tags_are_kept_with_the_keys():
    """A prefix that sees itself both ways, in packed samples."""
    module, x = stack(), tokens(8)
    tags = {
        "sample": jnp.array([[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]]),
        "kind": jnp.array([[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]]),
    }
    mask = Same("sample") & (Causal() | Equal("kind", 1))
    whole = module(x, mask=mask, tags=tags)
    out, _ = decode(module, module.begin(2, 8, tags=("sample", "kind")), x, (4, 5, 8), mask=mask, tags=tags)
    close(out, whole)


def test_merged_keys_carry_their_size():
    attention = Attention(WIDTH, HEADS, rngs=nnx.Rngs(0))
    x, y = tokens(6), tokens(8)[:, 6:]
    _, k, v = attention.project(x, None)
    k, v = (a.reshape(2, 3, 2, HEADS, -1).mean(2) for a in (k, v))
    size = jnp.log(jnp.full((2, 3), 2.0))
    cache = attention.empty(2, 6, ()).append(k, v, bias=size, tags={"index": jnp.arange(1, 6, 2)})
    stream = Stream((cache,))
    out = attention(y, mask=Causal(), stream=stream)
    np.testing.assert_array_equal(stream.cache[0].places.index[:, :5], [[1, 3, 5, 6, 7]] * 2)
    q, new_k, new_v = attention.project(y, None)
    k, v = jnp.concatenate([k, new_k], 1), jnp.concatenate([v, new_v], 1)
    bias = jnp.pad(size, ((0, 0), (0, 2)))
    index = {"index": jnp.broadcast_to(jnp.array([1, 3, 5, 6, 7]), (2, 5))}
    queries = {"index": index["index"][:, 3:]}
    scaled = q * (WIDTH // HEADS) ** -0.5
    expected = attend(scaled, k, v, mask=Causal(), key_bias=bias, tags=queries, key_tags=index)
    close(out, attention.out(expected.reshape(2, 2, WIDTH)))


def test_what_a_cache_does_not_keep_is_refused():
    module, x = stack(), tokens(4)
    plain = module.begin(2, 4)
    with pytest.raises(UserError, match="begin it with tags"):
        jax.vmap(lambda c: c.evict(SlidingWindow(2)))(plain[0])
    with pytest.raises(UserError, match="'sample'.*does not keep"):
        decode(module, plain, x, (4,), mask=Same("sample"), tags={"sample": jnp.zeros((2, 4), int)})
    with pytest.raises(UserError, match="'kind', which the next tokens lack"):
        decode(module, module.begin(2, 4, tags=("kind",)), x, (4,), mask=Causal())
