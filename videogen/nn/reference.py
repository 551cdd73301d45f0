"""Dense softmax attention, which takes every mask and bias and runs everywhere."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videogen.nn.masking import NEGATIVE, Masking
from videogen.nn.masks import Full
from videogen.parallel import mesh_axis_size

Heads = Float[Array, "batch sequence heads head_width"]


def reference(query: Heads, key: Heads, value: Heads, masking: Masking) -> Heads:
    """Attention of scaled queries; batch and heads are folded so that the products are 3-D (fast on every backend)."""
    batch, queries, heads, width = query.shape
    fold = mesh_axis_size("tensor") == 1 and mesh_axis_size("context") == 1

    def arrange(x: Heads) -> Array:
        x = x.swapaxes(1, 2)
        return x.reshape(batch * heads, x.shape[2], width) if fold else x

    q, k, v = arrange(query), arrange(key), arrange(value)
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    scores = masked(scores, masking, (batch, heads, queries, key.shape[1]))
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.matmul(weights, v)
    return out.reshape(batch, heads, queries, width).swapaxes(1, 2)


def masked(scores: Float[Array, "... queries keys"], masking: Masking, shape: tuple[int, int, int, int]) -> Array:
    """Scores with biases added, and those of hidden keys replaced.

    Args:
      scores: float32; batch and heads may be one axis.
      masking: biases and masks.
      shape: ``(batch, heads, queries, keys)``.
    """
    whole = isinstance(masking.mask, Full)
    if whole and masking.bias is None and masking.key_mask is None and masking.key_bias is None:
        return scores
    folded, scores = scores.shape, scores.reshape(shape)
    if masking.bias is not None:
        scores = scores + masking.bias.astype(jnp.float32)
    if masking.key_bias is not None:
        scores = scores + masking.key_bias.astype(jnp.float32)[:, None, None, :]
    if not whole:
        scores = jnp.where(masking.dense(*shape[2:]), scores, NEGATIVE)
    if masking.key_mask is not None:
        scores = jnp.where(masking.key_mask[:, None, None, :], scores, NEGATIVE)
    return scores.reshape(folded)


def probe_mass(
    query: Heads, key: Heads, probe: Int[Array, "batch probes"], masking: Masking
) -> Float[Array, "batch heads keys"]:
    """How much of the attention of some queries every key gets: their softmax weights, summed.

    Args:
      query: scaled queries.
      key: keys.
      probe: the places of the queries that are asked.
      masking: of the attention.
    """
    asked = jnp.take_along_axis(query, probe[:, :, None, None], axis=1)
    scores = jnp.einsum("bphd,bkhd->bhpk", asked, key, preferred_element_type=jnp.float32)
    scores = masked(scores, masking.rows(probe, key.shape[1]), scores.shape)
    return jax.nn.softmax(scores, axis=-1).sum(axis=2)
