"""A training step of a quantizer alone."""

import functools

import jax
import jax.numpy as jnp

from videogen.quantizers import Quantized, Quantizer


def train(quantizer: Quantizer, *parts: jax.Array, key: jax.Array | None = None) -> Quantized:
    """Quantises the parts of a batch and updates once; the result of the first part."""
    results = [quantizer(z, key=key, train=True) for z in parts]
    sums = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), [result.update_sums for result in results])
    candidates = jax.tree.map(lambda *rows: jnp.concatenate(rows), *[result.candidates for result in results])
    quantizer.update(sums, candidates, key)
    return results[0]
