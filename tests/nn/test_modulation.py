"""Adaptive layer norms: the identity at the start, one row per group of tokens, and parity with published blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from flax import nnx

from videogen.errors import UserError
from videogen.nn import Block, Stack, TimeEmbedding, lay_out, rotary_angles
from videogen.nn.attention import PROJECTIONS

WIDTH, MLP_WIDTH, LENGTH = 24, 48, 6


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def stack(**settings) -> Stack:
    def make(rngs: nnx.Rngs) -> Block:
        sections = dict(attention={"heads": 2}, mlp={"hidden": MLP_WIDTH}, cross_attention={"context_width": 5})
        return Block(WIDTH, **sections, depth=2, norm="layer", rngs=rngs, **settings)

    return Stack(make, 2, rngs=nnx.Rngs(0))


def test_zero_modulation_is_the_identity_at_the_start_whatever_the_condition():
    x, condition, context = normal(2, LENGTH, WIDTH), 10 * normal(2, 1, WIDTH), normal(2, 3, 5)
    np.testing.assert_array_equal(stack(modulation="zero")(x, condition=condition, context=context), x)


@pytest.mark.parametrize(("modulation", "shape"), [("zero", (WIDTH,)), ("single", (6, WIDTH))])
def test_rows_reach_the_tokens_of_their_group_alone(modulation, shape):
    """Rows given per frame on a grid, per group on a sequence, and for all alike are the same where they are equal."""
    block = Block(WIDTH, {"heads": 2}, {"hidden": MLP_WIDTH}, modulation=modulation, rngs=nnx.Rngs(0))
    if modulation == "zero":
        kernel = block.modulation.linear.kernel
        kernel.set_value(jnp.asarray(0.3 * normal(*kernel.get_value().shape, seed=5)))
    grid, rows = normal(2, 3, 2, 1, WIDTH), normal(2, 3, *shape, seed=1)
    sequence = grid.reshape(2, 6, WIDTH)
    on_grid = block(grid, condition=rows, attended_axes=3)
    on_sequence = block(sequence, condition=rows, group_of=np.repeat(np.arange(3), 2))
    np.testing.assert_allclose(on_grid.reshape(sequence.shape), on_sequence, atol=1e-5)
    alike = np.repeat(rows[:, :1], 3, axis=1)
    one = block(grid, condition=rows[:, :1], attended_axes=3)
    np.testing.assert_allclose(block(grid, condition=alike, attended_axes=3), one, atol=1e-5)
    # The gate acts behind the attention: a row of another frame reaches a token through its keys alone.
    parts = lay_out(block.modulation(rows), grid)
    assert len(parts) == 6 and all(part.shape == (2, 3, 1, 1, WIDTH) for part in parts)


@pytest.mark.parametrize("modulation", ["zero", "single"])
def test_norms_without_parameters_leave_scale_and_shift_to_the_condition(modulation):
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(stack(modulation=modulation)))]
    assert not [path for path in paths if path[1] in ("attention_norm", "mlp_norm")]
    assert [path for path in paths if path[1] == "cross_norm"]


def test_an_unknown_modulation_is_named():
    with pytest.raises(UserError, match="did you mean 'zero'"):
        stack(modulation="zeros")


# Parity with diffusers -----------------------------------------------------------------------------------------------


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, value in module.named_parameters():
        drawn = torch.randn(value.shape, generator=generator) / max(value.shape[-1], 1) ** 0.5
        drawn += 1.0 if "norm" in name and value.ndim == 1 and name.endswith("weight") else 0.0
        value.data = drawn


def array(tensor: torch.Tensor) -> jnp.ndarray:
    return jnp.asarray(tensor.detach().numpy())


def put(parameter: nnx.Param, *tensors: torch.Tensor) -> None:
    """Linear weights of torch, side by side, as a kernel."""
    value = jnp.concatenate([array(t).T for t in tensors], axis=-1)
    assert value.shape == parameter.get_value().shape
    parameter.set_value(value)


def test_time_embedding_is_that_of_diffusers():
    theirs = TimestepEmbedding(256, WIDTH)
    randomise(theirs)
    ours = TimeEmbedding(WIDTH, rngs=nnx.Rngs(0))
    for layer, reference in ((ours.inner, theirs.linear_1), (ours.outer, theirs.linear_2)):
        put(layer.kernel, reference.weight)
        layer.bias.set_value(array(reference.bias))
    t = np.float32([0.0, 0.25, 0.999, 1.0])
    waves = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(torch.tensor(t) * 1000)
    # Angles up to 1000 radians are exact to about 1e-4 in float32.
    np.testing.assert_allclose(ours(jnp.asarray(t)), array(theirs(waves)), atol=1e-3)
    assert ours(jnp.zeros((2, 3), jnp.bfloat16)).dtype == jnp.float32


def test_zero_modulation_is_the_block_of_dit():
    theirs = BasicTransformerBlock(
        **dict(dim=WIDTH, num_attention_heads=2, attention_head_dim=WIDTH // 2, activation_fn="gelu-approximate"),
        **dict(num_embeds_ada_norm=10, norm_type="ada_norm_zero", norm_elementwise_affine=False, norm_eps=1e-6),
        **dict(ff_inner_dim=MLP_WIDTH, ff_bias=False, attention_out_bias=False),
    )
    randomise(theirs)
    condition = torch.tensor(normal(2, WIDTH, seed=1))
    theirs.norm1.emb.forward = lambda *_, **__: condition
    sections = dict(attention={"heads": 2, "qk_norm": None}, mlp={"hidden": MLP_WIDTH}, norm="layer")
    ours = Block(WIDTH, **sections, modulation="zero", rngs=nnx.Rngs(0))
    attention = theirs.attn1
    put(ours.attention.query_key_value.kernel, attention.to_q.weight, attention.to_k.weight, attention.to_v.weight)
    put(ours.attention.out.kernel, attention.to_out[0].weight)
    put(ours.mlp.up.kernel, theirs.ff.net[0].proj.weight)
    put(ours.mlp.down.kernel, theirs.ff.net[2].weight)
    put(ours.modulation.linear.kernel, theirs.norm1.linear.weight)
    ours.modulation.linear.bias.set_value(array(theirs.norm1.linear.bias))
    x = normal(2, LENGTH, WIDTH)
    expected = theirs(torch.tensor(x), timestep=torch.zeros(2), class_labels=torch.zeros(2, dtype=int))
    np.testing.assert_allclose(ours(x, condition=array(condition)[:, None]), array(expected), atol=1e-4)


def test_single_modulation_is_the_block_of_wan():
    """Queries and keys are normalised over the full width, pairs of channels side by side are rotated."""
    theirs = WanTransformerBlock(WIDTH, MLP_WIDTH, 2, cross_attn_norm=True)
    randomise(theirs)
    attention = {"heads": 2, "qk_norm": "width", "interleaved": True, "bias": PROJECTIONS}
    sections = dict(mlp={"hidden": MLP_WIDTH, "bias": True}, norm="layer", cross_attention={"context_width": WIDTH})
    ours = Block(WIDTH, attention, **sections, modulation="single", rngs=nnx.Rngs(0))
    own, cross = theirs.attn1, theirs.attn2
    put(ours.attention.query_key_value.kernel, own.to_q.weight, own.to_k.weight, own.to_v.weight)
    put(ours.cross_attention.query.kernel, cross.to_q.weight)
    put(ours.cross_attention.key_value.kernel, cross.to_k.weight, cross.to_v.weight)
    for attention, reference in ((ours.attention, own), (ours.cross_attention, cross)):
        put(attention.out.kernel, reference.to_out[0].weight)
        attention.out.bias.set_value(array(reference.to_out[0].bias))
        attention.query_bias.set_value(array(reference.to_q.bias).reshape(2, -1))
        attention.key_bias.set_value(array(reference.to_k.bias).reshape(2, -1))
        attention.value_bias.set_value(array(reference.to_v.bias).reshape(2, -1))
        attention.query_norm.scale.set_value(array(reference.norm_q.weight))
        attention.key_norm.scale.set_value(array(reference.norm_k.weight))
    ours.cross_norm.scale.set_value(array(theirs.norm2.weight))
    ours.cross_norm.shift.set_value(array(theirs.norm2.bias))
    for linear, reference in ((ours.mlp.up, theirs.ffn.net[0].proj), (ours.mlp.down, theirs.ffn.net[2])):
        put(linear.kernel, reference.weight)
        linear.bias.set_value(array(reference.bias))
    ours.modulation.table.set_value(array(theirs.scale_shift_table)[0])
    x, context, shared = normal(2, LENGTH, WIDTH), normal(2, 4, WIDTH, seed=2), normal(2, 6, WIDTH, seed=3)
    angles = rotary_angles((LENGTH,), WIDTH // 2)
    waves = [torch.tensor(np.repeat(wave(angles), 2, axis=-1))[None, :, None] for wave in (np.cos, np.sin)]
    expected = theirs(*(torch.tensor(value) for value in (x, context, shared)), tuple(waves))
    drawn = ours(x, rotary=angles, context=context, condition=shared[:, None])
    np.testing.assert_allclose(drawn, array(expected), atol=1e-4)


@pytest.mark.parametrize("modulation", ["zero", "single"])
def test_scanned_blocks_with_conditions_are_the_blocks_one_by_one(modulation):
    module = stack(modulation=modulation)
    graph, state = nnx.split(module)
    state = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), state)
    module = nnx.merge(graph, state)
    shape = (2, 1, WIDTH) if modulation == "zero" else (2, 1, 6, WIDTH)
    call = {"condition": normal(*shape), "context": normal(2, 3, 5)}
    x = normal(2, LENGTH, WIDTH)
    expected = functools.reduce(lambda x, layer: layer(x, **call), module.unstacked(), x)
    np.testing.assert_allclose(module(x, **call), expected, atol=1e-4)
