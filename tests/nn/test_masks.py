"""Every mask against its definition written as a loop, and against the gradients attention really has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.nn import (
    Attention,
    BlockCausal,
    BlockWindow,
    Causal,
    CausalWindow,
    Full,
    PrefixLM,
    Window,
    attend,
    mask_array,
)

DEFINITIONS = {
    Full(): lambda q, k: True,
    Causal(): lambda q, k: k <= q,
    BlockCausal(3): lambda q, k: k < 3 * (q // 3 + 1),
    BlockCausal(1): lambda q, k: k <= q,
    BlockCausal(3, prefix=2, start=2): lambda q, k: k < 2 or (q >= 2 and k - 2 < 3 * ((q - 2) // 3 + 1)),
    BlockCausal(3, causal_first=True): lambda q, k: k <= q if q < 3 else k < 3 * (q // 3 + 1),
    BlockCausal(2) & BlockWindow(2, 2): lambda q, k: k < 2 * (q // 2 + 1) and k >= 2 * (q // 2 - 1),
    BlockCausal(2) & BlockWindow(2, 1, 1): lambda q, k: k < 2 * (q // 2 + 1) and (k // 2 == q // 2 or k < 2),
    BlockWindow(3, 1, start=2): lambda q, k: k < 2 or q < 2 or (k - 2) // 3 >= (q - 2) // 3,
    PrefixLM(4): lambda q, k: k < 4 or k <= q,
    PrefixLM(0): lambda q, k: k <= q,
    CausalWindow(3): lambda q, k: q - 3 < k <= q,
    CausalWindow(1): lambda q, k: q == k,
    Window(2): lambda q, k: q - 2 <= k <= q + 2,
    Window(0): lambda q, k: q == k,
}
LENGTH = 8


def brute_force(mask, queries: int = LENGTH, keys: int = LENGTH) -> np.ndarray:
    return np.array([[DEFINITIONS[mask](q, k) for k in range(keys)] for q in range(queries)])


@pytest.mark.parametrize("mask", DEFINITIONS, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(8, 8), (5, 8), (8, 5), (1, 1)])
def test_allowed_set(mask, queries, keys):
    np.testing.assert_array_equal(mask_array(mask, queries, keys), brute_force(mask, queries, keys))


@pytest.mark.parametrize("mask", DEFINITIONS, ids=str)
def test_masks_are_values(mask):
    fields = mask.__dict__
    assert mask == type(mask)(**fields) and hash(mask) == hash(type(mask)(**fields))


@pytest.mark.parametrize("mask", DEFINITIONS, ids=str)
def test_gradients_of_attention_flow_exactly_where_allowed(mask):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, LENGTH, 1, 4))

    def values_to_output(v):
        return attend(q, k, v, mask=mask)[0, :, 0].sum(-1)

    def keys_to_output(k):
        return attend(q, k, v, mask=mask)[0, :, 0].sum(-1)

    to_values = np.asarray(jax.jacobian(values_to_output)(v))[:, 0, :, 0, 0]
    np.testing.assert_array_equal(to_values > 0, brute_force(mask))
    to_keys = np.abs(np.asarray(jax.jacobian(keys_to_output)(k))[:, 0, :, 0]).max(-1)
    assert not to_keys[~brute_force(mask)].any()


@pytest.mark.parametrize("mask", [Causal(), BlockCausal(3), PrefixLM(4), Window(2)], ids=str)
def test_outputs_of_a_module_depend_exactly_on_allowed_inputs(mask):
    attention = Attention(8, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, LENGTH, 8))
    jacobian = jax.jit(jax.jacobian(lambda x: attention(x, mask=mask)[0].sum(-1)))(x)
    touched = np.abs(np.asarray(jacobian))[:, 0].max(-1) > 0
    np.testing.assert_array_equal(touched, brute_force(mask) | np.eye(LENGTH, dtype=bool))


def test_block_causal_prefix_equality():
    """Later blocks cannot change earlier outputs, so a longer sequence extends a shorter one."""
    attention = jax.jit(Attention(8, 2, rngs=nnx.Rngs(0)), static_argnames="mask")
    x = jax.random.normal(jax.random.key(0), (2, 9, 8))
    whole, prefix = attention(x, mask=BlockCausal(3)), attention(x[:, :6], mask=BlockCausal(3))
    np.testing.assert_allclose(whole[:, :6], prefix, atol=1e-6)
    assert jnp.abs(attention(x[:, :5], mask=Full()) - attention(x, mask=Full())[:, :5]).max() > 1e-4
