"""Hooks, taps, extra keys of every layer and probes: equal to loops over layers and to attention written out."""

import functools

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
    Equal,
    ExtraKeys,
    Full,
    Hook,
    NotLater,
    Stream,
    Transformer,
    attend,
    block_stack,
    build_transformer,
    parameter,
    rotary_angles,
    truncated_normal,
)

WIDTH, LAYERS, LENGTH = 16, 5, 8
X = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH))
CONFIG = {"width": WIDTH, "layers": LAYERS, "heads": 2, "mlp_width": 24, "dropout": 0.3}
ROTARY = rotary_angles([LENGTH], WIDTH // 2)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


class Halve(Hook):
    """Means of neighbours, half as many, plus a learned vector."""

    def __init__(self, place: str, rngs: nnx.Rngs):
        self.place = place
        self.vector = parameter(rngs, (WIDTH,), (None,), truncated_normal(0.5))

    def halve(self, x, call):
        x = x.reshape(len(x), -1, 2, WIDTH).mean(2) + self.vector.get_value()
        return x, {**call, "rotary": call["rotary"][::2]}

    def __call__(self, x, call, aux):
        assert (aux is None) == (self.place != "around")
        if self.place == "around":
            return self.halve(x - aux(-x, **call), call)
        return self.halve(x, call)


def tower(hooks=(), taps=(), **settings) -> Transformer:
    return build_transformer({**CONFIG, **settings}, hooks=dict(hooks), taps=taps, rngs=nnx.Rngs(0))


def by_hand(module: Transformer, x, call, at: int, hook: Halve):
    """The same as a loop over layers; hidden states after each."""
    hidden = []
    for number, layer in enumerate(module.stack.unstacked()):
        here = number == at
        if here and hook.place == "before":
            x, call = hook.halve(x, call)
        if here and hook.place == "around":
            x, call = hook.halve(x - layer(-x, **call), call)
        elif here and hook.place == "between":
            x = x + layer.attention(layer.attention_norm(x), **call)
            x, call = hook.halve(x, call)
            x = x + layer.mlp(layer.mlp_norm(x))
        else:
            x = layer(x, **call)
        if here and hook.place == "after":
            x, call = hook.halve(x, call)
        hidden.append(x)
    return hidden


@pytest.mark.parametrize("place", ["before", "between", "around", "after"])
@pytest.mark.parametrize("at", [0, 2, LAYERS - 1])
def test_hooks_that_change_the_number_of_tokens(place, at):
    module = tower({at: Halve(place, nnx.Rngs(1))}, taps=(1, 4))
    call = {"mask": Causal(), "rotary": ROTARY}
    expected = by_hand(module, X, call, at, module.hooks[f"{at}_{place}"])
    x, after, tapped = module.trunk(X, **call)
    assert x.shape == (2, LENGTH // 2, WIDTH) and after["rotary"].shape[0] == LENGTH // 2
    close(x, expected[-1])
    assert set(tapped) == {1, 4}
    for layer, found in tapped.items():
        close(found, expected[layer])
    close(module(X, **call), module.norm(expected[-1]))


def test_several_hooks_and_gradients_reach_all_of_them():
    hooks = {1: [Halve("before", nnx.Rngs(1)), Halve("after", nnx.Rngs(2))], 3: Halve("between", nnx.Rngs(3))}
    graph, state = nnx.split(tower(hooks))
    call = {"mask": Causal(), "rotary": ROTARY}

    def loss(state):
        out = nnx.merge(graph, state)(X, **call)
        return jnp.sum(jnp.sin(out)), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(state)
    assert out.shape == (2, 1, WIDTH)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["hooks"]):
        assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_without_hooks_it_is_the_stack_and_the_norm():
    module, key = tower(taps=(0, 2)), jax.random.key(5)
    plain = Transformer(module.stack, module.norm)
    for call in ({}, {"key": key}):
        expected = module.norm(module.stack(X, **call))
        close(plain(X, **call), expected)
        # Runs between taps give every layer the key it has in one run.
        close(module(X, **call), expected)


def test_the_program_grows_with_taps_and_not_with_depth():
    def lines(layers, taps):
        graph, state = nnx.split(tower(layers=layers, taps=taps))
        return str(jax.make_jaxpr(lambda s: nnx.merge(graph, s).trunk(X)[2])(state)).count("\n")

    assert lines(5, (2,)) == lines(9, (2,)) < lines(9, (2, 4))


def test_a_cached_tower_is_the_whole_forward():
    hooks = {2: Shift("between"), 3: Shift("around"), 1: Shift("after")}
    module, call = tower(hooks, taps=(0,)), {"mask": Causal()}
    whole = module(X, **call, rotary=ROTARY)
    caches, parts = module.begin(2, LENGTH), []
    for start, stop in ((0, 3), (3, 4), (4, LENGTH)):
        stream = Stream(caches)
        parts.append(module(X[:, start:stop], **call, rotary=ROTARY[start:stop], stream=stream))
        caches = stream.cache
    close(jnp.concatenate(parts, axis=1), whole)


class Shift(Hook):
    """Adds 1 to every token."""

    def __init__(self, place: str):
        self.place = place

    def __call__(self, x, call, aux):
        return (x if self.place != "around" else aux(x, **call)) + 1, call


def extra(count: int = 3, **axes) -> ExtraKeys:
    shape = (*axes.values(), 2, count, 2, WIDTH // 2)
    exists = jnp.broadcast_to(jnp.array([[True] * count, [True] + [False] * (count - 1)]), shape[:-2])
    return ExtraKeys(*jax.random.normal(jax.random.key(7), (2, *shape)), exists)


def test_every_layer_has_extra_keys_of_its_own():
    keys = extra(layers=LAYERS)
    module = tower({3: Shift("between")}, taps=(1,))
    expected = X
    for number, layer in enumerate(module.stack.unstacked()):
        own = jax.tree.map(lambda a, i=number: a[i], keys)
        between = (lambda x, _: x + 1) if number == 3 else None
        expected = layer(expected, mask=Causal(), extra_kv=own, between=between)
    close(module(X, mask=Causal(), per_layer={"extra_kv": keys}), module.norm(expected))


@pytest.mark.parametrize("mask", [Full(), Causal(), NotLater("frame"), NotLater("frame") & Equal("kind", 0)], ids=str)
@pytest.mark.parametrize("static", [False, True])
def test_extra_keys_are_seen_whatever_the_mask(mask, static):
    attention = Attention(WIDTH, 2, qk_norm=None, rngs=nnx.Rngs(0))
    frame, kind = np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([0, 1, 0, 0, 0, 1, 0, 0])
    tags = {"frame": frame, "kind": kind}
    tags = tags if static else {tag: jnp.broadcast_to(values, (2, LENGTH)) for tag, values in tags.items()}
    keys, exists = extra(), jnp.arange(LENGTH)[None] < jnp.array([[LENGTH], [5]])
    out = attention(X, mask=mask, tags=tags, key_mask=exists, extra_kv=keys)
    own = np.ones((LENGTH, LENGTH), bool)
    own &= np.tri(LENGTH, dtype=bool) if mask == Causal() else True
    own &= frame[None] <= frame[:, None] if "frame" in mask.needs else True
    own &= kind[None] == 0 if "kind" in mask.needs else True
    seen = jnp.concatenate([own & exists[:, None], jnp.broadcast_to(keys.exists[:, None], (2, LENGTH, 3))], axis=-1)
    q, k, v = attention.project(X, None)
    k, v = jnp.concatenate([k, keys.key], 1), jnp.concatenate([v, keys.value], 1)
    expected = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None])
    close(out, attention.out(expected.reshape(X.shape)))


@pytest.mark.parametrize("mask", [Full(), Causal(), NotLater("frame")], ids=str)
def test_a_probe_gives_the_sums_of_softmax_rows(mask):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, LENGTH, 2, 8))
    frame = jnp.array([[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
    call = dict(mask=mask, tags={"frame": frame}, key_mask=jnp.arange(LENGTH)[None] < jnp.array([[8], [6]]))
    call |= dict(bias=jax.random.normal(jax.random.key(2), (2, LENGTH, LENGTH)), key_bias=0.1 * jnp.float32(frame))
    probe = jnp.array([[0, 7, 3], [5, 5, 1]])
    out, mass = jax.jit(functools.partial(attend, **call))(q, k, v, probe=probe)
    close(out, attend(q, k, v, **call))
    # The values of a unit matrix are the weights themselves.
    unit = jnp.broadcast_to(jnp.eye(LENGTH)[:, None], (2, LENGTH, 2, LENGTH))
    pad = jnp.zeros((2, LENGTH, 2, LENGTH - 8))
    weights = attend(*(jnp.concatenate([x, pad], -1) for x in (q, k)), unit, **call)
    expected = jnp.stack([weights[i, probe[i]].sum(0) for i in range(2)])
    close(mass, expected)
    np.testing.assert_allclose(mass.sum(-1), 3.0, rtol=1e-5)


class KeepTheSeen(Hook):
    """Keeps the four tokens that the last one looks at most, and the angles of their positions."""

    place = "between"

    def probe(self, x, call):
        return jnp.full((len(x), 1), x.shape[1] - 1)

    def __call__(self, x, call, aux):
        assert aux.key.shape == (2, LENGTH, 2, WIDTH // 2)
        kept = jnp.sort(jax.lax.top_k(aux.mass.sum(1), 4)[1], axis=1)
        rotary = jnp.asarray(call["rotary"])[kept]
        return jnp.take_along_axis(x, kept[:, :, None], axis=1), {**call, "rotary": rotary, "kept": kept}


def test_a_hook_between_selects_by_what_was_attended_to():
    module = tower(layers=2, hooks={1: KeepTheSeen()})
    x, call, _ = module.trunk(X, rotary=ROTARY)
    first, second = module.stack.unstacked()
    h = first(X, rotary=ROTARY)
    y = second.attention_norm(h)
    q, k, _ = second.attention.rotate(*second.attention.project(y, None)[:2], ROTARY) + (None,)
    weights = jax.nn.softmax(jnp.einsum("bhd,bkhd->bhk", q[:, -1], k) / (WIDTH // 2) ** 0.5, axis=-1).sum(1)
    order = np.sort(np.argsort(-np.asarray(weights), axis=1)[:, :4], axis=1)
    np.testing.assert_array_equal(call["kept"], order)
    h = h + second.attention(y, rotary=ROTARY)
    h = jnp.take_along_axis(h, jnp.asarray(order)[:, :, None], axis=1)
    close(x, h + second.mlp(second.mlp_norm(h)))


def test_mistakes_are_named():
    stack = block_stack(WIDTH, 3, attention={"heads": 2}, mlp={"hidden": 8}, rngs=nnx.Rngs(0))
    for hooks, taps, message in (
        ({3: Shift("after")}, (), "no layer 3"),
        ({}, (-1,), "no layer -1"),
        ({0: Shift("inside")}, (), "unknown place 'inside'"),
        ({0: [Shift("after"), Shift("after")]}, (), "two hooks stand after layer 0"),
        ({0: [Shift("around"), Shift("between")]}, (), "between and around"),
    ):
        with pytest.raises(UserError, match=message):
            Transformer(stack, hooks=hooks, taps=taps)
    attention = Attention(WIDTH, 2, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="append them to the cache"):
        attention(X, stream=Stream((attention.empty(2, 8),)), extra_kv=extra())
    with pytest.raises(UserError, match="'attention'"):
        build_transformer({**CONFIG, "atention": {"bias": ()}}, rngs=nnx.Rngs(0))


def test_tokens_beside_a_block_are_seen_as_its_own_would_be():
    """Attention over both, of which only the block's own are kept."""
    block = Block(16, {"heads": 2}, {"hidden": 32}, rngs=nnx.Rngs(0))
    extra_tokens = jax.random.normal(jax.random.key(8), (2, 3, 16))
    exists = jnp.array([[True, True, False], [True, True, True]])
    joint = block(
        jnp.concatenate([X, extra_tokens], axis=1),
        key_mask=jnp.concatenate([jnp.ones(X.shape[:2], bool), exists], axis=1),
    )
    close(block(X, extra_kv=block.beside(extra_tokens, exists)), joint[:, : X.shape[1]])


def test_the_states_of_a_stack_are_those_behind_each_layer():
    stack = tower().stack
    states, x = stack.states(X, mask=Causal()), X
    assert len(states) == LAYERS
    for number in range(LAYERS):
        x = stack.layer(number)(x, mask=Causal())
        close(states[number], x)
    own = jax.random.normal(jax.random.key(8), (LAYERS, *X.shape))
    keys = stack.beside(own)
    for number in range(LAYERS):
        alone = stack.layer(number).beside(own[number])
        close(keys.key[number], alone.key)
        close(keys.value[number], alone.value)
