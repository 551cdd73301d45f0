"""Keys and values that a layer attends to besides those of its tokens: memories, prefixes, other streams."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from videogen.nn.masks import Equal, Full, Tags

EXTRA = "extra key"
"""The tag that is 1 for extra keys and 0 for tokens."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExtraKeys:
    """Keys, already normalised and rotated, and values that every query sees, whatever the mask.

    Attributes:
      key, value: as many heads as the attention has for keys and values.
      exists: which of them there are; ``None`` means all.
      gate: ``None``: they stand behind the layer's own keys, in one softmax. Else they have a softmax of their own, for
        queries that are not rotated, and what that gives is multiplied by the gate of each query and added.
    """

    key: Float[Array, "batch extra heads head_width"]
    value: Float[Array, "batch extra heads head_width"]
    exists: Bool[Array, "batch extra"] | None = None
    gate: Float[Array, "batch queries 1"] | None = None


def append_keys(
    key: Float[Array, "batch *grid heads head_width"],
    value: Float[Array, "batch *grid heads head_width"],
    extra: ExtraKeys,
    queries: int,
    masks: dict[str, Any],
) -> tuple[Array, Array, dict[str, Any]]:
    """Keys, values and the arguments ``masks`` of ``nn.attend`` with the extra keys behind the others."""
    batch, count = extra.key.shape[:2]
    key, value = (x.reshape(batch, -1, *x.shape[-2:]) for x in (key, value))
    own = key.shape[1]
    key, value = (jnp.concatenate([x, e.astype(x.dtype)], 1) for x, e in ((key, extra.key), (value, extra.value)))
    masks = dict(masks)
    if masks["key_mask"] is not None or extra.exists is not None:
        first = jnp.ones((batch, own), bool) if masks["key_mask"] is None else masks["key_mask"]
        rest = jnp.ones((batch, count), bool) if extra.exists is None else extra.exists
        masks["key_mask"] = jnp.concatenate([first, rest], axis=1)
    for name in ("bias", "key_bias"):
        if masks[name] is not None:
            masks[name] = _padded(masks[name], count)
    if not isinstance(masks["mask"], Full):
        key_tags: Tags = masks["tags"] if masks["key_tags"] is None else masks["key_tags"]
        extras = np.concatenate([np.zeros(own, np.int32), np.ones(count, np.int32)])
        masks["key_tags"] = {tag: _padded(values, count) for tag, values in key_tags.items()} | {EXTRA: extras}
        masks["tags"] = {**masks["tags"], EXTRA: np.zeros(queries, np.int32)}
        masks["mask"] = masks["mask"] | Equal(EXTRA, 1)
    return key, value, masks


def _padded(x: Array | np.ndarray, count: int) -> Array | np.ndarray:
    pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
    return pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)])
