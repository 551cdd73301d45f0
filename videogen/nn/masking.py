"""What decides the scores of attention beside queries and keys: a mask with the tags it compares, padding, biases."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError, near_matches
from videogen.nn.masks import (
    INDEX,
    AnyOf,
    Compared,
    Composed,
    Equal,
    Full,
    Known,
    Mask,
    Same,
    Tags,
    all_of,
    conjuncts,
    mask_array,
)

NEGATIVE = -1e30
"""The score of a hidden key."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masking:
    """What every backend is given beside queries, keys and values.

    Attributes:
      mask: which keys a query may see, by position and by tags.
      bias: added to the scores of every example.
      key_mask: which keys exist.
      key_bias: added to the scores of a key, for all queries.
      query_tags, key_tags: the tags that depend on the data and that ``mask`` compares; ``index`` is among them only
        where positions differ from one example to the next.
    """

    mask: Mask = dataclasses.field(default=Full(), metadata={"static": True})
    bias: Float[Array, "heads queries keys"] | None = None
    key_mask: Bool[Array, "batch keys"] | None = None
    key_bias: Float[Array, "batch keys"] | None = None
    query_tags: dict[str, Int[Array, "batch queries"]] = dataclasses.field(default_factory=dict)
    key_tags: dict[str, Int[Array, "batch keys"]] = dataclasses.field(default_factory=dict)

    def dense(self, queries: int, keys: int) -> Bool[Array, "some_batch 1 queries keys"] | None:
        """The mask, without ``key_mask``, for scores ``[batch, heads, queries, keys]``; ``None`` if all is seen."""
        if isinstance(self.mask, Full):
            return None
        allowed = mask_array(self.mask, queries, keys, self.query_tags, self.key_tags)
        return allowed if allowed.ndim == 2 else allowed[:, None]

    def rows(self, places: Int[Array, "batch some"], keys: int) -> "Masking":
        """The masking of some queries, by their places: all their masks and biases as one bias of every example."""
        query, key = places[:, :, None], jnp.arange(keys)[None, None, :]
        pairs = {
            tag: (jnp.take_along_axis(values, places, axis=1)[:, :, None], self.key_tags[tag][:, None, :])
            for tag, values in self.query_tags.items()
        }
        query, key = pairs.get(INDEX, (query, key))
        allowed = self.mask.allowed(query, key, pairs)
        bias = 0.0 if self.bias is None else jnp.moveaxis(self.bias[:, places], 0, 1)
        return Masking(bias=jnp.where(allowed[:, None], bias, NEGATIVE), key_mask=self.key_mask, key_bias=self.key_bias)

    def segments(self) -> tuple[Mask, str | None]:
        """The mask by positions alone, and the tag of which a query sees its own value only.

        Raises:
          UserError: the mask asks more of tags that depend on the data than one ``Same``.
        """
        parts = conjuncts(self.mask)
        dynamic = [part for part in parts if part.needs & set(self.query_tags)]
        if not dynamic:
            return self.mask, None
        if len(dynamic) > 1 or not isinstance(dynamic[0], Same) or dynamic[0].tag == INDEX:
            shown = " & ".join(map(str, dynamic))
            raise UserError(f"splash attention takes one Same of tags that depend on the data, and not {shown}")
        return all_of(part for part in parts if part is not dynamic[0]), dynamic[0].tag

    @property
    def in_segments(self) -> bool:
        """Whether ``segments`` has an answer."""
        try:
            return bool(self.segments())
        except UserError:
            return False


def masking(
    mask: Mask, batch: int, lengths: tuple[int, int], query_tags: Tags, key_tags: Tags, **arrays: Array | None
) -> Masking:
    """The masking of ``batch`` attentions between so many queries and keys; ``arrays`` as for ``Masking``.

    Comparisons of static tags become masks by position, and those that ask keys alone become a part of ``key_mask``.

    Raises:
      UserError: the mask compares a tag that the tokens do not carry.
    """
    needed = mask.needs if INDEX in query_tags or INDEX in key_tags else mask.needs - {INDEX}
    if not needed:
        return Masking(mask, **arrays)
    sides = (query_tags, key_tags)
    for side in sides:
        for tag in sorted(needed - set(side)):
            raise UserError(f"the mask compares the tag {tag!r}, which the tokens lack{near_matches(tag, side)}")
    # Where positions are given, the places of a table are not the positions that masks compare.
    static = {tag for tag in needed if all(isinstance(side[tag], np.ndarray) for side in sides)}
    static = set() if INDEX in needed else static
    mask, kept = _look_up(mask, static, query_tags, key_tags), []
    for part in conjuncts(mask):
        if isinstance(part, Equal) and part.tag in needed - static - {INDEX} and part.side == "key":
            seen = jnp.broadcast_to(part.compare(0, jnp.asarray(key_tags[part.tag])), (batch, lengths[1]))
            arrays["key_mask"] = seen if arrays.get("key_mask") is None else arrays["key_mask"] & seen
        else:
            kept.append(part)
    mask = all_of(kept)
    given = sorted((needed - static) & mask.needs)
    tags = [
        {tag: jnp.broadcast_to(jnp.asarray(side[tag]), (batch, length)) for tag in given}
        for side, length in zip(sides, lengths, strict=True)
    ]
    return Masking(mask, **arrays, query_tags=tags[0], key_tags=tags[1])


def carry_key_bias(
    query: Float[Array, "batch queries heads head_width"],
    key: Float[Array, "batch keys heads head_width"],
    value: Float[Array, "batch keys heads head_width"],
    key_bias: Float[Array, "batch keys"],
    *,
    scale: float = 1.0,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values with more channels, whose attention is that with a bias of the keys.

    A channel of the query is 1 and that of the key ``key_bias / scale``, where ``scale`` is what the scores are
    multiplied by. In half precision the bias is the sum of three channels, which together have the digits of float32.
    Widths become a multiple of 8, which kernels ask for; values get zeros.
    """
    channels, rest = [], key_bias.astype(jnp.float32) / scale
    for _ in range(1 if key.dtype == jnp.float32 else 3):
        channels.append(rest.astype(key.dtype))
        rest = rest - channels[-1].astype(jnp.float32)
    added, width = len(channels), query.shape[-1]
    padding = -(width + added) % 8

    def extend(x: Array, channels: Array) -> Array:
        channels = jnp.broadcast_to(channels.astype(x.dtype), (*x.shape[:-1], added))
        return jnp.concatenate([x, channels, jnp.zeros((*x.shape[:-1], padding), x.dtype)], axis=-1)

    carried = jnp.stack(channels, axis=-1)[:, :, None]
    return extend(query, jnp.ones(added)), extend(key, carried), extend(value, jnp.zeros(added))


def without_key_bias(
    backend: Callable[..., Array], query: Array, key: Array, value: Array, masking: Masking
) -> Float[Array, "batch queries heads head_width"]:
    """``backend``, which cannot add a bias of the keys, with that bias carried by channels."""
    width = query.shape[-1]
    arrays = carry_key_bias(query, key, value, masking.key_bias)
    return backend(*arrays, dataclasses.replace(masking, key_bias=None))[..., :width]


def _look_up(mask: Mask, static: set[str], query_tags: Tags, key_tags: Tags) -> Mask:
    """The mask with comparisons of static tags by position."""
    if isinstance(mask, Composed):
        parts = [_look_up(part, static, query_tags, key_tags) for part in mask.parts]
        return AnyOf(tuple(parts)) if isinstance(mask, AnyOf) else all_of(parts)
    if not isinstance(mask, Compared) or mask.tag not in static:
        return mask
    return Known(mask, *(np.asarray(side[mask.tag], np.int32).tobytes() for side in (query_tags, key_tags)))
