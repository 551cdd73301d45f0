"""cuDNN's flash attention (GPU, half precision), and its stand-in in plans for GPUs that are not there."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videogen.nn.masking import Masking, without_key_bias

Heads = Float[Array, "batch sequence heads head_width"]
Bias = Float[Array, "batch heads queries keys"]

FORWARD, BACKWARD = "cudnn_attention_forward", "cudnn_attention_backward"
"""What a plan's program calls in the place of cuDNN, by the names ``parallel.flops`` counts."""

WIDEST = 128
"""Heads that every generation of GPUs takes, at most."""


def cudnn_takes(dtype: jnp.dtype, width: int, queries: int, keys: int) -> bool:
    """Whether JAX trains such attention with cuDNN: it refuses odd lengths, with or without a mask."""
    half = dtype in (jnp.bfloat16, jnp.float16)
    return half and width % 8 == 0 and width <= WIDEST and queries % 2 == 0 == keys % 2


def cudnn(query: Heads, key: Heads, value: Heads, masking: Masking) -> Heads:
    """Attention of scaled queries; masks become arrays, of one head, and a bias of keys becomes channels."""
    if masking.key_bias is not None:
        return without_key_bias(cudnn, query, key, value, masking)
    lengths, bias = (query.shape[1], key.shape[1]), masking.bias
    dense = masking.dense(*lengths)
    if dense is not None and dense.ndim == 2:
        dense = dense[None, None]
    if masking.key_mask is not None:
        padding = masking.key_mask[:, None, None, :]
        dense = padding if dense is None else dense & padding
    if dense is not None:
        dense = jnp.broadcast_to(dense, (*dense.shape[:2], *lengths))
    if bias is not None:
        bias = bias[None].astype(query.dtype)
    if jax.default_backend() == "gpu":
        return jax.nn.dot_product_attention(query, key, value, bias=bias, mask=dense, scale=1.0, implementation="cudnn")
    if dense is not None:
        hidden = jnp.where(dense, 0, jnp.finfo(query.dtype).min).astype(query.dtype)
        bias = hidden if bias is None else bias + hidden
    return _absent(query, key, value, bias)


@jax.custom_vjp
def _absent(query: Heads, key: Heads, value: Heads, bias: Bias | None) -> Heads:
    """Compiles to a call with the operands and results that cuDNN's has: tracing that one needs a GPU."""
    return _forward(query, key, value, bias)[0]


def _forward(query: Heads, key: Heads, value: Heads, bias: Bias | None) -> tuple[Heads, tuple]:
    batch, queries, heads, _ = query.shape
    log_sums = jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)
    operands = (query, key, value) if bias is None else (query, key, value, bias)
    out, log_sums = jax.ffi.ffi_call(FORWARD, (_like(query), log_sums))(*operands)
    return out, (operands, out, log_sums)


def _backward(kept: tuple, gradient: Heads) -> tuple:
    operands, out, log_sums = kept
    found = jax.ffi.ffi_call(BACKWARD, tuple(map(_like, operands)))(*operands, out, log_sums, gradient)
    return tuple(found) if len(found) == 4 else (*found, None)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


_absent.defvjp(_forward, _backward)
