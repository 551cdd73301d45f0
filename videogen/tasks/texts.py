"""Captions of several batches in one pass of a text encoder."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from videogen.conditioning import EncodedText
from videogen.parallel import constrain
from videogen.tasks.base import Batch


def encode_jointly(encoder: nnx.Module, batches: Sequence[Batch]) -> list[EncodedText]:
    """The text of each batch, encoded in one pass over all of them."""
    counts = [len(batch["text_ids"]) for batch in batches]
    # Laid out in turns, so that every device encodes its own share of each batch.
    turns = math.gcd(*counts)
    ends = np.cumsum(counts)[:-1] // turns

    def join(*x: Array) -> Array:
        rows = jnp.concatenate([a.reshape(turns, -1, a.shape[1]) for a in x], axis=1)
        return rows.reshape(sum(counts), -1)

    ids, mask = jax.tree.map(join, *[(batch["text_ids"], batch["text_mask"]) for batch in batches])
    features, masks = (
        jnp.split(x.reshape(turns, -1, *x.shape[1:]), ends, axis=1) for x in jax.tree.leaves(encoder(ids, mask))
    )
    # Each batch may be shared by other devices than all of them together.
    return [
        EncodedText(
            constrain(f.reshape(-1, *f.shape[2:]), "batch", *(None,) * (f.ndim - 2)), m.reshape(-1, *m.shape[2:])
        )
        for f, m in zip(features, masks, strict=True)
    ]
