"""Blocks of published networks are settings of ours: equal to ``transformers`` on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import BertConfig, CLIPVisionConfig, LlamaConfig, Qwen3Config, T5Config, ViTConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.t5.modeling_t5 import T5Block
from transformers.models.vit.modeling_vit import ViTLayer

from videogen.errors import UserError
from videogen.nn import MLP, MLPS, Attention, Block, Causal, LayerNorm, Stream, angles_at, block_stack, build_norm
from videogen.nn.attention import PROJECTIONS

WIDTH, HIDDEN, LENGTH = 24, 40, 7
X = np.random.default_rng(0).normal(size=(2, LENGTH, WIDTH)).astype(np.float32)


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Parameters that are neither zero nor alike, norms included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            base = 1.0 if value.ndim == 1 else 0.0
            value.copy_(base + 0.3 * torch.randn(value.shape, generator=generator))
    return module.eval()


def array(tensor: torch.Tensor) -> jax.Array:
    return jnp.asarray(tensor.detach().numpy())


def put(linear: nnx.Module, *theirs: torch.nn.Linear):
    """Linear layers of torch, side by side, as one of ours."""
    kernel = jnp.concatenate([array(layer.weight).T for layer in theirs], axis=1)
    assert kernel.shape == linear.kernel.get_value().shape
    linear.kernel.set_value(kernel)
    assert (linear.bias is None) == (theirs[0].bias is None)
    if linear.bias is not None:
        linear.bias.set_value(jnp.concatenate([array(layer.bias) for layer in theirs]))


def put_attention(ours: Attention, q, k, v, out):
    fused = [array(layer.weight).T for layer in (q, k, v)]
    ours.query_key_value.kernel.set_value(jnp.concatenate(fused, axis=1))
    put(ours.out, out)
    for bias, layer in ((ours.query_bias, q), (ours.key_bias, k), (ours.value_bias, v)):
        assert (bias is None) == (layer.bias is None)
        if bias is not None:
            bias.set_value(array(layer.bias).reshape(bias.get_value().shape))


def put_norm(ours: nnx.Module, theirs: torch.nn.Module):
    ours.scale.set_value(array(theirs.weight))
    if isinstance(ours, LayerNorm):
        ours.shift.set_value(array(theirs.bias))


def assert_equal(actual, expected: torch.Tensor):
    expected = array(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


def decoder_layer(config, theirs, **attention) -> tuple[Block, torch.Tensor, jax.Array]:
    """Our block with the weights of a decoder's layer, what theirs gives for X, and the rotary angles."""
    randomise(theirs)
    sections = dict(
        attention={"heads": 4, "key_value_heads": 2, **attention},
        mlp={"hidden": HIDDEN, "kind": "swiglu"},
        norm={"name": "rms", "epsilon": config.rms_norm_eps},
    )
    ours = Block(WIDTH, **sections, rngs=nnx.Rngs(0))
    own = theirs.self_attn
    put_attention(ours.attention, own.q_proj, own.k_proj, own.v_proj, own.o_proj)
    for linear, layer in ((ours.mlp.gate, "gate_proj"), (ours.mlp.up, "up_proj"), (ours.mlp.down, "down_proj")):
        put(linear, theirs.mlp.get_submodule(layer))
    put_norm(ours.attention_norm, theirs.input_layernorm)
    put_norm(ours.mlp_norm, theirs.post_attention_layernorm)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8, 9]])
    waves = LlamaRotaryEmbedding(config)(torch.tensor(X), positions)
    hidden = torch.triu(torch.full((LENGTH, LENGTH), -torch.inf), diagonal=1)[None, None]
    expected = theirs(torch.tensor(X), attention_mask=hidden, position_embeddings=waves, position_ids=positions)
    angles = angles_at(jnp.asarray(positions.numpy())[..., None], ours.attention.head_width, base=5000.0)
    return ours, expected[0] if isinstance(expected, tuple) else expected, angles


DECODER = dict(
    **dict(hidden_size=WIDTH, intermediate_size=HIDDEN, num_attention_heads=4, num_key_value_heads=2),
    **dict(num_hidden_layers=1, rms_norm_eps=1e-5, attn_implementation="eager"),
    rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
)


def test_llama():
    config = LlamaConfig(**DECODER)
    ours, expected, angles = decoder_layer(config, LlamaDecoderLayer(config, 0), qk_norm=None)
    assert_equal(ours(X, mask=Causal(), rotary=angles), expected)


def test_qwen3_with_heads_of_their_own_width_and_normalised_queries():
    config = Qwen3Config(**{**DECODER, "rms_norm_eps": 1e-6}, head_dim=8)
    theirs = Qwen3DecoderLayer(config, 0)
    ours, expected, angles = decoder_layer(config, theirs, head_width=8)
    put_norm(ours.attention.query_norm, theirs.self_attn.q_norm)
    put_norm(ours.attention.key_norm, theirs.self_attn.k_norm)
    assert ours.attention.out.kernel.get_value().shape == (32, WIDTH)
    assert_equal(ours(X, mask=Causal(), rotary=angles), expected)


def encoder_layer(kind: str, epsilon: float) -> Block:
    return Block(
        WIDTH,
        attention={"heads": 3, "qk_norm": None, "bias": PROJECTIONS},
        mlp={"hidden": HIDDEN, "kind": kind, "bias": True},
        norm={"name": "layer", "epsilon": epsilon},
        rngs=nnx.Rngs(0),
    )


def test_clip():
    size = dict(hidden_size=WIDTH, intermediate_size=HIDDEN, num_attention_heads=3)
    config = CLIPVisionConfig(**size, hidden_act="quick_gelu", layer_norm_eps=1e-5, attn_implementation="eager")
    theirs, ours = randomise(CLIPEncoderLayer(config)), encoder_layer("quick_gelu", 1e-5)
    own = theirs.self_attn
    put_attention(ours.attention, own.q_proj, own.k_proj, own.v_proj, own.out_proj)
    put(ours.mlp.up, theirs.mlp.fc1)
    put(ours.mlp.down, theirs.mlp.fc2)
    put_norm(ours.attention_norm, theirs.layer_norm1)
    put_norm(ours.mlp_norm, theirs.layer_norm2)
    expected = theirs(torch.tensor(X), attention_mask=None)
    assert_equal(ours(X), expected[0] if isinstance(expected, tuple) else expected)


def test_vit():
    size = dict(hidden_size=WIDTH, intermediate_size=HIDDEN, num_attention_heads=3)
    config = ViTConfig(**size, hidden_act="gelu", layer_norm_eps=1e-12, attn_implementation="eager")
    theirs, ours = randomise(ViTLayer(config)), encoder_layer("gelu", 1e-12)
    linear = {name.rpartition(".")[2]: layer for name, layer in theirs.named_modules()}
    names = [name for name, layer in theirs.named_modules() if isinstance(layer, torch.nn.Linear)]
    q, k, v, out, up, down = (theirs.get_submodule(name) for name in names)
    put_attention(ours.attention, q, k, v, out)
    put(ours.mlp.up, up)
    put(ours.mlp.down, down)
    put_norm(ours.attention_norm, linear["layernorm_before"])
    put_norm(ours.mlp_norm, linear["layernorm_after"])
    expected = theirs(torch.tensor(X))
    assert_equal(ours(X), expected[0] if isinstance(expected, tuple) else expected)


def test_bert_has_its_norms_behind_the_sums():
    size = dict(hidden_size=WIDTH, intermediate_size=HIDDEN, num_attention_heads=3)
    config = BertConfig(**size, hidden_act="gelu", layer_norm_eps=1e-12, attn_implementation="eager")
    theirs = randomise(BertLayer(config))
    ours = Block(
        WIDTH,
        attention={"heads": 3, "qk_norm": None, "bias": PROJECTIONS},
        mlp={"hidden": HIDDEN, "kind": "gelu", "bias": True},
        norm={"name": "layer", "epsilon": 1e-12},
        norm_after=True,
        rngs=nnx.Rngs(0),
    )
    own = theirs.attention.self
    put_attention(ours.attention, own.query, own.key, own.value, theirs.attention.output.dense)
    put(ours.mlp.up, theirs.intermediate.dense)
    put(ours.mlp.down, theirs.output.dense)
    put_norm(ours.attention_norm, theirs.attention.output.LayerNorm)
    put_norm(ours.mlp_norm, theirs.output.LayerNorm)
    expected = theirs(torch.tensor(X))
    assert_equal(ours(X), expected[0] if isinstance(expected, tuple) else expected)


def test_t5():
    size = dict(d_model=WIDTH, d_ff=HIDDEN, num_heads=4, d_kv=8, num_layers=1)
    config = T5Config(**size, feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-6, attn_implementation="eager")
    theirs = randomise(T5Block(config, has_relative_attention_bias=True))
    ours = Block(
        WIDTH,
        attention={"heads": 4, "head_width": 8, "qk_norm": None, "scale": 1.0},
        mlp={"hidden": HIDDEN, "kind": "geglu_tanh"},
        rngs=nnx.Rngs(0),
    )
    own, forward = theirs.layer[0].SelfAttention, theirs.layer[1].DenseReluDense
    put_attention(ours.attention, own.q, own.k, own.v, own.o)
    for linear, layer in ((ours.mlp.gate, forward.wi_0), (ours.mlp.up, forward.wi_1), (ours.mlp.down, forward.wo)):
        put(linear, layer)
    put_norm(ours.attention_norm, theirs.layer[0].layer_norm)
    put_norm(ours.mlp_norm, theirs.layer[1].layer_norm)
    bias = own.compute_bias(LENGTH, LENGTH)
    assert_equal(ours(X, bias=array(bias)[0]), theirs(torch.tensor(X), position_bias=bias)[0])


@pytest.mark.parametrize("kind", MLPS)
@pytest.mark.parametrize("bias", [False, True])
def test_mlps_written_out(kind, bias):
    activation, gated = {
        "gelu": (torch.nn.functional.gelu, False),
        "gelu_tanh": (lambda x: torch.nn.functional.gelu(x, approximate="tanh"), False),
        "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), False),
        "relu": (torch.relu, False),
        "silu": (torch.nn.functional.silu, False),
        "geglu": (torch.nn.functional.gelu, True),
        "geglu_tanh": (lambda x: torch.nn.functional.gelu(x, approximate="tanh"), True),
        "swiglu": (torch.nn.functional.silu, True),
    }[kind]
    ours = MLP(WIDTH, HIDDEN, kind=kind, bias=bias, rngs=nnx.Rngs(0))
    up, gate = (randomise(torch.nn.Linear(WIDTH, HIDDEN, bias=bias)) for _ in range(2))
    gate.weight.data.mul_(-0.5)
    down = randomise(torch.nn.Linear(HIDDEN, WIDTH, bias=bias))
    put(ours.up, up)
    put(ours.down, down)
    if gated:
        put(ours.gate, gate)
    x = torch.tensor(X)
    assert_equal(ours(X), down(activation(gate(x)) * up(x) if gated else activation(up(x))))


def test_grouped_queries_are_repeated_heads_also_in_a_cache():
    """Heads 0 and 1 share the first head of keys and values, 2 and 3 the second; the cache holds two heads."""
    grouped = Attention(WIDTH, 4, key_value_heads=2, head_width=6, rngs=nnx.Rngs(0))
    whole = Attention(WIDTH, 4, head_width=6, rngs=nnx.Rngs(0))
    q, k, v = jnp.split(grouped.query_key_value.kernel.get_value(), [24, 36], axis=1)
    k, v = (jnp.repeat(y.reshape(WIDTH, 2, 6), 2, axis=1).reshape(WIDTH, 24) for y in (k, v))
    whole.query_key_value.kernel.set_value(jnp.concatenate([q, k, v], axis=1))
    whole.out.kernel.set_value(grouped.out.kernel.get_value())
    expected = whole(X, mask=Causal())
    np.testing.assert_allclose(grouped(X, mask=Causal()), expected, rtol=1e-5, atol=1e-6)
    cache, parts = (grouped.empty(2, LENGTH),), []
    assert cache[0].key.shape == (2, 2, 6, LENGTH)
    for start, stop in ((0, 3), (3, 4), (4, LENGTH)):
        stream = Stream(cache)
        parts.append(grouped(X[:, start:stop], mask=Causal(), stream=stream))
        cache = stream.cache
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, rtol=1e-5, atol=1e-6)


def test_layer_norm_without_bias():
    norm = build_norm({"name": "layer", "bias": False, "epsilon": 0.1}, WIDTH, rngs=nnx.Rngs(0))
    norm.scale.set_value(jnp.linspace(0.5, 2, WIDTH))
    theirs = torch.nn.LayerNorm(WIDTH, eps=0.1, bias=False)
    theirs.weight.data = torch.linspace(0.5, 2, WIDTH)
    assert_equal(norm(jnp.asarray(X)), theirs(torch.tensor(X)))
    assert norm.shift is None


def test_a_stack_from_its_sections():
    sections = dict(attention={"heads": 4, "key_value_heads": 1}, mlp={"hidden": HIDDEN, "kind": "swiglu"})
    module = block_stack(WIDTH, 2, **sections, rngs=nnx.Rngs(0))
    expected = X
    for layer in module.unstacked():
        expected = layer(expected)
    np.testing.assert_allclose(module(X), expected, rtol=1e-5, atol=1e-5)
    # Residual outputs start at 1/sqrt(2 · layers).
    std = float(module.layers.mlp.down.kernel.get_value().std())
    assert std == pytest.approx(0.8796 * (4 * HIDDEN) ** -0.5, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": {"heads": 4, "key_value_head": 2}}, "key_value_heads"),
        ({"attention": {"heads": 4, "key_value_heads": 3}}, "4 heads do not divide into groups for 3"),
        ({"attention": {"heads": 4, "qk_norm": "heads"}}, "'head'"),
        ({"attention": {"heads": 4, "bias": ("queries",)}}, "bias 'queries'"),
        ({"mlp": {"hidden": 8, "kind": "swiglue"}}, "'swiglu'"),
        ({"mlp": {"hidden": 0}}, "hidden"),
        ({"norm": {"name": "rms", "eps": 1e-5}}, "epsilon"),
        ({"norm_after": True, "cross_attention": {"context_width": 8}}, "norm_after goes with neither"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Block(WIDTH, **{"attention": {"heads": 4}, "mlp": {"hidden": 8}, **settings}, rngs=nnx.Rngs(0))
