"""Blocks and scanned stacks: a stack is a loop over its layers, whatever is rematerialised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import MLP, REMAT_POLICIES, Block, Causal, Stack, dropout

DEPTH = 3


def stack(remat: str = "none", depth: int = DEPTH, **settings) -> Stack:
    make_block = functools.partial(make, depth=depth, **settings)
    return Stack(make_block, depth, remat=remat, rngs=nnx.Rngs(0))


def make(rngs: nnx.Rngs, **settings) -> Block:
    return Block(8, **{"attention": {"heads": 2}, "mlp": {"hidden": 16}, **settings}, rngs=rngs)


def tokens() -> jax.Array:
    return jax.random.normal(jax.random.key(3), (2, 6, 8))


def unrolled(graph, state, x, **call) -> jax.Array:
    """The same layers, one after the other, without scan."""
    for i in range(DEPTH):
        x = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state))(x, **call)
    return x


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_stack_equals_the_unrolled_loop_with_gradients(remat):
    module = stack(remat)
    graph, state = nnx.split(module.layers)
    stack_graph, stack_state = nnx.split(module)
    call = {"mask": Causal(), "key_mask": jnp.ones((2, 6), bool).at[1, 4:].set(False)}

    def scanned_loss(s, x):
        return jnp.sum(jnp.sin(nnx.merge(stack_graph, s)(x, **call)))

    def unrolled_loss(s, x):
        return jnp.sum(jnp.sin(unrolled(graph, s, x, **call)))

    value, (to_state, to_x) = jax.jit(jax.value_and_grad(scanned_loss, argnums=(0, 1)))(stack_state, tokens())
    expected, (state_expected, x_expected) = jax.jit(jax.value_and_grad(unrolled_loss, argnums=(0, 1)))(state, tokens())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(to_x, x_expected, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(to_state["layers"]), jax.tree.leaves(state_expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert (jnp.abs(ours).reshape(DEPTH, -1).max(-1) > 0).all()


def test_program_does_not_grow_with_depth():
    def equations(depth):
        graph, state = nnx.split(stack(depth=depth))
        return str(jax.make_jaxpr(lambda s: nnx.merge(graph, s)(tokens()))(state)).count("\n")

    assert equations(2) == equations(7)


def test_layers_start_different_and_carry_the_layer_axis():
    kernel = stack().layers.attention.query_key_value.kernel
    assert kernel.get_value().shape == (DEPTH, 8, 24)
    assert kernel.get_metadata()["axes"] == ("layers", "embed", "heads")
    assert jnp.abs(kernel.get_value()[0] - kernel.get_value()[1]).max() > 0.1


def test_empty_stack_is_the_identity():
    np.testing.assert_array_equal(stack(depth=0)(tokens()), tokens())


def test_unknown_settings_suggest_near_ones():
    with pytest.raises(UserError, match="'full'"):
        stack("ful")
    with pytest.raises(UserError, match="'layer'"):
        make(nnx.Rngs(0), norm="layers")


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_block_is_two_residual_branches(norm):
    block = make(nnx.Rngs(0), norm=norm)
    x = tokens()
    x = x + block.attention(block.attention_norm(x))
    expected = x + block.mlp.down(jax.nn.gelu(block.mlp.up(block.mlp_norm(x))))
    np.testing.assert_allclose(jax.jit(block)(tokens()), expected, atol=1e-5)


def test_attended_axes_choose_what_mixes():
    block = jax.jit(make(nnx.Rngs(0)), static_argnames="attended_axes")
    x = jax.random.normal(jax.random.key(1), (2, 3, 2, 2, 8))
    for axes in (1, 2, 3):
        changed = block(x.at[0, 0, 0, 0].add(1.0), attended_axes=axes)
        touched = np.abs(np.asarray(changed - block(x, attended_axes=axes))).max(-1) > 1e-6
        expected = np.zeros((2, 3, 2, 2), bool)
        expected[(0, *([0] * (3 - axes)))] = True
        np.testing.assert_array_equal(touched, expected)
        flat = x.reshape(2 * int(np.prod(x.shape[1 : 4 - axes])), -1, 8)
        np.testing.assert_allclose(block(x, attended_axes=axes).reshape(flat.shape), block(flat), atol=1e-5)


def test_position_generator_makes_a_block_see_positions():
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (8,)), (1, 3, 4, 4, 8))
    for kind, sees in ((None, False), ("causal", True), ("bidirectional", True)):
        block = make(nnx.Rngs(0), position_generator=kind)
        out = jax.jit(lambda x, block=block: block(x, attended_axes=3))(x)
        assert (jnp.abs(jnp.diff(out, axis=2)).max() > 1e-4) == sees


def test_places_that_do_not_exist_reach_nobody():
    block = make(nnx.Rngs(0), position_generator="bidirectional")
    x = jax.random.normal(jax.random.key(1), (1, 3, 2, 2, 8))
    exists = jnp.arange(12)[None] < 4
    out = block(x, attended_axes=3, key_mask=exists)
    changed = block(x.at[:, 1:].add(3.0), attended_axes=3, key_mask=exists)
    np.testing.assert_array_equal(changed[:, 0], out[:, 0])


def test_cross_attention_in_a_stack():
    module = stack(cross_attention={"context_width": 5, "null_keys": 2})
    context = jax.random.normal(jax.random.key(4), (2, 4, 5))
    context_mask = jnp.array([[True, True, False, False], [False] * 4])
    run = jax.jit(lambda x, context: module(x, context=context, context_mask=context_mask))
    out = run(tokens(), context)
    hidden = run(tokens(), jnp.where(context_mask[..., None], context, 9.0))
    np.testing.assert_array_equal(hidden, out)
    other = run(tokens(), context.at[0, 0].add(1.0))
    assert jnp.abs(other - out)[0].max() > 1e-4
    np.testing.assert_array_equal(other[1], out[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"cross_attention": {"context_width": 5, "null_keys": 1}},
        {"position_generator": "causal", "time_axis": 3},
        {"attention": {"heads": 2, "key_value_heads": 1, "bias": ("query", "value", "out"), "qk_norm": "width"}},
        {"mlp": {"hidden": 16, "kind": "swiglu", "bias": True}, "norm": {"name": "layer", "bias": False}},
    ],
)
def test_gradient_reaches_every_parameter(settings):
    graph, state = nnx.split(make(nnx.Rngs(0), **settings))
    x = jax.random.normal(jax.random.key(1), (2, 3, 2, 2, 8))
    call = {"attended_axes": 3}
    if "cross_attention" in settings:
        x, call = tokens(), {"context": jax.random.normal(jax.random.key(4), (2, 4, 5))}
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(jnp.sin(nnx.merge(graph, s)(x, **call)))))(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_depth_scales_the_residual_outputs():
    def ratio(layer):
        deep, shallow = (layer(make(nnx.Rngs(0), depth=depth)).kernel.get_value() for depth in (8, 2))
        return float(jnp.std(deep) / jnp.std(shallow))

    assert ratio(lambda block: block.attention.out) == pytest.approx(0.5, rel=1e-5)
    assert ratio(lambda block: block.mlp.down) == pytest.approx(0.5, rel=1e-5)
    assert ratio(lambda block: block.mlp.up) == pytest.approx(1.0, rel=1e-5)


def test_dropout_rescales_and_is_the_identity_without_a_key():
    x = jnp.ones((200, 200))
    np.testing.assert_array_equal(dropout(x, 0.3, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)
    dropped = dropout(x, 0.3, jax.random.key(0))
    np.testing.assert_allclose(jnp.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    assert float(jnp.mean(dropped == 0)) == pytest.approx(0.3, abs=0.01)
    assert dropout(x.astype(jnp.bfloat16), 0.3, jax.random.key(0)).dtype == jnp.bfloat16


def test_dropout_of_a_stack_follows_its_key():
    module = jax.jit(stack(dropout=0.5))
    silent, first = module(tokens()), module(tokens(), key=jax.random.key(0))
    np.testing.assert_array_equal(first, module(tokens(), key=jax.random.key(0)))
    np.testing.assert_array_equal(silent, module(tokens()))
    assert jnp.abs(first - silent).max() > 1e-3
    assert jnp.abs(first - module(tokens(), key=jax.random.key(1))).max() > 1e-3


class Noise(nnx.Module):
    """Adds 0 or 1 at random; the parameter gives the stack something to scan over."""

    def __init__(self, rngs: nnx.Rngs):
        self.zero = nnx.Param(jnp.zeros(()))

    def __call__(self, x, *, key=None):
        return x + dropout(jnp.ones_like(x), 0.5, key) / 2 + self.zero.get_value()


def test_layers_draw_different_dropout():
    """With one mask for both layers the sum could only be 0 or 2."""
    out = Stack(Noise, 2, rngs=nnx.Rngs(0))(jnp.zeros(4000), key=jax.random.key(0))
    assert [float(jnp.mean(out == value)) for value in (0, 1, 2)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_mlp_written_out():
    mlp = MLP(8, 16, rngs=nnx.Rngs(0))
    up, down = mlp.up.kernel.get_value(), mlp.down.kernel.get_value()
    np.testing.assert_allclose(mlp(tokens()), jax.nn.gelu(tokens() @ up) @ down, atol=1e-5)


def test_a_block_alone_begins_as_a_stack_of_one_layer():
    std = float(Block(64, {"heads": 2}, {"hidden": 64}, rngs=nnx.Rngs(0)).attention.out.kernel.get_value().std())
    # Cut off at two deviations.
    assert std == pytest.approx(0.8796 * (2 * 64) ** -0.5, rel=0.05)


def test_a_block_with_context_adds_its_three_branches():
    block = make(nnx.Rngs(0), cross_attention={"context_width": 5})
    x, context = jax.random.normal(jax.random.key(0), (2, 4, 8)), jax.random.normal(jax.random.key(1), (2, 3, 5))
    y = x + block.attention(block.attention_norm(x))
    y = y + block.cross_attention(block.cross_norm(y), context)
    y = y + block.mlp(block.mlp_norm(y))
    np.testing.assert_allclose(block(x, context=context), y, rtol=1e-5, atol=1e-6)


def test_dropout_of_examples_follows_their_own_keys():
    x, keys = jnp.ones((4, 1000)), jax.random.split(jax.random.key(0), 4)
    whole = dropout(x, 0.25, keys)
    np.testing.assert_array_equal(dropout(x[1:3], 0.25, keys[1:3]), whole[1:3])
    assert not np.array_equal(whole[0], whole[1])
    np.testing.assert_allclose(np.mean(np.asarray(whole) == 0, -1), 0.25, atol=0.06)
