"""Low-rank updates: nothing at first, the product of two matrices, merged for export, trained beside a frozen base."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import Causal, Linear, beside_lora, block_stack, merged, without_lora
from videogen.nn import linear as linear_module
from videogen.training.optimizers import build_optimizer

LORA = {"rank": 3, "alpha": 6.0}
X = jax.random.normal(jax.random.key(0), (2, 5, 16))


def drawn(module: nnx.Module) -> nnx.Module:
    """The module with updates that are not 0."""
    for path, value in nnx.iter_graph(module):
        if isinstance(value, nnx.Param) and path[-1] == "up" and "lora" in path:
            value.set_value(0.3 * jax.random.normal(jax.random.key(1), value.get_value().shape))
    return module


def stack() -> nnx.Module:
    attention = {"heads": 2, "key_value_heads": 1, "lora": LORA}
    return block_stack(16, 2, attention=attention, mlp={"hidden": 24, "kind": "swiglu", "lora": LORA}, rngs=nnx.Rngs(0))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * float(jnp.abs(expected).max()))


def test_nothing_changes_at_first():
    plain, updated = Linear(16, 8, rngs=nnx.Rngs(0)), Linear(16, 8, lora=LORA, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(updated(X), plain(X))


def test_written_out_and_merged():
    layer = drawn(Linear(16, 8, lora=LORA, rngs=nnx.Rngs(0)))
    layer.bias.set_value(jnp.arange(8.0))
    down, up = (np.asarray(p.get_value(), np.float64) for p in (layer.lora.down, layer.lora.up))
    assert down.shape == (16, 3) and up.shape == (3, 8)
    kernel = np.asarray(layer.kernel.get_value(), np.float64) + 2 * down @ up
    close(layer(X), np.asarray(X, np.float64) @ kernel + np.arange(8))
    after = merged(layer)
    close(after(X), layer(X))
    assert after.lora is None and layer.lora is not None
    close(after.kernel.get_value(), kernel)


def test_heads_have_the_update_on_every_platform(monkeypatch):
    layer = drawn(Linear(16, 24, bias=False, lora=LORA, rngs=nnx.Rngs(0)))
    expected = merged(layer)(X)
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(linear_module, "target_platform", lambda platform=platform: platform)
        parts = layer.heads(X, (4, 2))
        close(jnp.concatenate([part.reshape(2, 5, -1) for part in parts], axis=-1), expected)


def test_stacked_layers_merge():
    module = drawn(stack())
    expected = module(X, mask=Causal())
    after = merged(module)
    assert not [path for path, _ in nnx.iter_graph(after) if "lora" in path and path[-1] in ("down", "up")]
    np.testing.assert_allclose(
        after(X, mask=Causal()), expected, rtol=0, atol=1e-6 * float(jnp.abs(expected).max()) * 3
    )
    assert jnp.abs(expected - stack()(X, mask=Causal())).max() > 0.1


def test_training_moves_the_updates_alone():
    module = stack()
    graph, state = nnx.split(module)
    params = nnx.to_pure_dict(state)
    frozen = beside_lora(module, ("layers",))
    assert "layers.attention.query_key_value.kernel" in frozen and "layers.mlp_norm.scale" in frozen
    config = dict(name="adamw", learning_rate=0.1, warmup=0, schedule="constant", final=1.0, horizon=0, b1=0.9)
    config |= dict(b2=0.99, weight_decay=0.1, clip=0.0, adam_share=1.0, freeze=frozen)
    transform, _ = build_optimizer(config, 10)
    optimizer = transform.init(params)

    @jax.jit
    def step(params, optimizer):
        gradients = jax.grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graph, p)(X, mask=Causal()))))(params)
        updates, optimizer = transform.update(gradients, optimizer, params)
        return optax.apply_updates(params, updates), optimizer

    before = params
    for _ in range(2):
        params, optimizer = step(params, optimizer)
    for path, old in jax.tree_util.tree_leaves_with_path(before):
        new, name = params, jax.tree_util.keystr(path, simple=True, separator=".")
        for part in path:
            new = new[part.key]
        assert np.array_equal(new, old) == (name in frozen), name


def test_what_is_frozen_by_name_is_frozen_with_or_without_updates():
    module = stack()
    update, norm = "layers.attention.query_key_value.lora", "layers.mlp_norm"
    assert beside_lora(module, (update, norm)) == (update, norm)
    below = beside_lora(module, ("layers.attention.query_key_value",))
    assert below == ("layers.attention.query_key_value.kernel",)
    plain = {"layers": {"lora": LORA, "mlp": {"hidden": 4, "lora": LORA}, "all": 1}, "lora": LORA}
    assert without_lora(plain) == {"layers": {"mlp": {"hidden": 4}, "all": 1}}


def test_mistakes_are_named():
    with pytest.raises(UserError, match="rank"):
        Linear(4, 4, lora={"rank": 0, "alpha": 1.0}, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="alpha"):
        Linear(4, 4, lora={"rank": 2}, rngs=nnx.Rngs(0))
