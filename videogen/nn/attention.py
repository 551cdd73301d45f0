"""One attention for every network: masks as values, pluggable backends, QK-norm, rotary positions, null keys."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError, near_matches
from videogen.nn.caches import KeyValues, Places, attend_to_cache
from videogen.nn.context_parallel import attend_locally, attend_on_mesh
from videogen.nn.cudnn import cudnn, cudnn_takes
from videogen.nn.linear import Linear, parameter, truncated_normal
from videogen.nn.masking import Masking, masking
from videogen.nn.masks import NONE, Full, Mask, Tags
from videogen.nn.norms import RMSNorm
from videogen.nn.positions import rotate
from videogen.nn.reference import reference
from videogen.nn.splash import splash
from videogen.nn.streaming import Stream
from videogen.parallel import mesh_axis_size, on_mesh, target_platform

BACKENDS = {"reference": reference, "cudnn": cudnn, "splash": splash}
SPLASH_LENGTH = 512
"""On a TPU, shorter sequences than this are faster dense."""


def attend(
    query: Float[Array, "batch *grid heads head_width"],
    key: Float[Array, "batch *key_grid heads head_width"],
    value: Float[Array, "batch *key_grid heads head_width"],
    *,
    mask: Mask = Full(),
    key_mask: Bool[Array, "batch keys"] | None = None,
    bias: Float[Array, "heads queries keys"] | None = None,
    key_bias: Float[Array, "batch keys"] | None = None,
    tags: Tags = NONE,
    key_tags: Tags | None = None,
    backend: str = "auto",
    axes: Sequence[str] = ("sequence",),
    attended_axes: int = 1,
) -> Float[Array, "batch *grid heads head_width"]:
    """Softmax attention of already scaled queries, over the last ``attended_axes`` grid axes.

    On a mesh every device computes its share of the examples, heads and the grid (``nn.context_parallel``).

    Args:
      query: queries, multiplied by their scale.
      key: keys.
      value: values.
      mask: which tokens may see which (``nn.masks``), positions counted in raster order.
      key_mask: which keys exist; every query must keep at least one key. Its leading axis counts the batch and
        the grid axes that are not attended.
      bias: added to the scores of every batch item (relative positions).
      key_bias: added to the scores of a key for all queries, such as the logarithm of how many tokens it stands for;
        laid out as ``key_mask``. Kernels carry it by channels of their own (``masking.carry_key_bias``).
      tags: of the queries' tokens, by name: NumPy arrays ``[queries]``, known when the program is traced, or arrays
        laid out as ``key_mask``. A tag ``index`` takes the place of the position.
      key_tags: of the keys' tokens; by default those of the queries.
      backend: a name in ``BACKENDS``, or ``auto``: splash for long sequences on TPU, cuDNN on GPU where it
        takes the sizes and the precision, else the reference.
      axes: logical names of the grid axes, which say how they are sharded (``parallel.RULES``).
      attended_axes: how many of the last grid axes form the sequence; the others are batch.

    Returns:
      The attended values, in the dtype of ``value``.

    Raises:
      UserError: there is no such backend, or it was asked for what it cannot do.
    """
    lengths = tuple(math.prod(x.shape[1:-2][-attended_axes:]) for x in (query, key))
    arrays = dict(key_mask=key_mask, bias=bias, key_bias=key_bias)
    batch = math.prod(query.shape[: query.ndim - 2 - attended_axes])
    given = masking(mask, batch, lengths, tags, tags if key_tags is None else key_tags, **arrays)
    if backend == "auto":
        backend = _choose(query, key, attended_axes, given)
    if backend not in BACKENDS:
        raise UserError(f"unknown attention backend {backend!r}{near_matches(backend, BACKENDS)}")
    arguments = (BACKENDS[backend], query, key, value, given)
    if on_mesh():
        return attend_on_mesh(*arguments, axes, attended_axes)
    return attend_locally(*arguments, attended_axes)


def _choose(query: Array, key: Array, attended_axes: int, masking: Masking) -> str:
    """The fastest backend that takes such attention on the platform."""
    lengths = [math.prod(x.shape[:-2][-attended_axes:]) for x in (query, key)]
    platform = target_platform()
    if platform == "tpu" and masking.bias is None and min(lengths) >= SPLASH_LENGTH and masking.in_segments:
        return "splash"
    width = query.shape[-1] + (8 if masking.key_bias is not None else 0)
    return "cudnn" if platform == "gpu" and cudnn_takes(query.dtype, width, *lengths) else "reference"


class Attention(nnx.Module):
    """Multi-head self- or cross-attention.

    Args:
      width: width of the tokens.
      heads: number of heads; ``width`` must divide by it.
      context_width: width of the keys' and values' source; ``None`` means self-attention.
      qk_norm: RMS-normalise queries and keys per head with learned scales.
      null_keys: learned key/value slots that are always visible (phenaki-pytorch uses two).
      out_scale: scales the initial output projection (depth-aware initialisation).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context_width: int | None = None,
        qk_norm: bool = True,
        null_keys: int = 0,
        out_scale: float = 1.0,
        backend: str = "auto",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise UserError(f"width {width} does not divide by {heads} heads")
        self.heads, self.head_width, self.dtype, self.backend = heads, width // heads, dtype, backend
        self.cross = context_width is not None
        common = dict(bias=False, dtype=dtype, rngs=rngs)
        if self.cross:
            self.query = Linear(width, width, axes=("embed", "heads"), **common)
            self.key_value = Linear(context_width, 2 * width, axes=("embed", "heads"), **common)
        else:
            self.query_key_value = Linear(width, 3 * width, axes=("embed", "heads"), **common)
        std = out_scale / width**0.5
        self.out = Linear(width, width, axes=("heads", "embed"), initializer=truncated_normal(std), **common)
        self.query_norm = RMSNorm(self.head_width, rngs=rngs) if qk_norm else None
        self.key_norm = RMSNorm(self.head_width, rngs=rngs) if qk_norm else None
        shape = (2, null_keys, heads, self.head_width)
        self.null_keys = parameter(rngs, shape, (None,) * 4, truncated_normal(1.0)) if null_keys else None

    def __call__(
        self,
        x: Float[Array, "batch *grid width"],
        context: Float[Array, "batch keys context_width"] | None = None,
        *,
        mask: Mask = Full(),
        key_mask: Bool[Array, "batch keys"] | None = None,
        bias: Float[Array, "heads queries keys"] | None = None,
        key_bias: Float[Array, "batch keys"] | None = None,
        tags: Tags = NONE,
        context_tags: Tags | None = None,
        rotary: Float[Array, "queries half_head_width"] | Float[Array, "batch queries half_head_width"] | None = None,
        axes: Sequence[str] = ("sequence",),
        attended_axes: int = 1,
        stream: Stream | None = None,
    ) -> Float[Array, "batch *grid width"]:
        """Attends from ``x`` to itself or to ``context``, over the last ``attended_axes`` grid axes.

        Masks, biases and tags are those of ``attend``; ``tags`` are of the tokens of ``x``.
        ``rotary`` are angles from ``nn.rotary_angles``, ``axes`` the logical names of the grid axes. With a
        ``stream``, ``x`` continues the sequence whose keys and values it holds (``empty``, ``keys_values``); where
        these know their places, ``key_mask``, ``key_bias`` and ``tags`` are those of ``x``.
        """
        if stream is not None:
            return self._continue(x, stream, mask, key_mask, rotary, dict(bias=key_bias, tags=tags))
        shape = x.shape
        attended = shape[-1 - attended_axes : -1]
        if mesh_axis_size("context") == 1:
            # No grid axis is sharded, so they may be merged: dense attention is fastest on one sequence axis.
            x, axes, attended_axes = x.reshape(-1, math.prod(attended), shape[-1]), ("sequence",), 1
            attended = x.shape[1:-1]
        q, k, v = self._project(x, context)
        if rotary is not None:
            # Angles of examples have a row for each of them and of the grid axes that are not attended.
            leading = () if rotary.ndim == 2 else x.shape[: x.ndim - 1 - len(attended)]
            rotary = rotary.reshape(*leading, *attended, rotary.shape[-1])
            q, k = rotate(q, rotary), rotate(k, rotary)
        if self.null_keys is not None:
            k, v, key_mask, bias, key_bias = self._prepend_null(k, v, mask, key_mask, bias, key_bias)
        q = q * jnp.asarray(self.head_width**-0.5, q.dtype)
        masks = dict(mask=mask, key_mask=key_mask, bias=bias, key_bias=key_bias, tags=tags, key_tags=context_tags)
        out = attend(q, k, v, **masks, backend=self.backend, axes=axes, attended_axes=attended_axes)
        return self.out(out.reshape(*x.shape[:-1], -1)).reshape(shape)

    def _project(self, x: Array, context: Array | None) -> tuple[Array, Array, Array]:
        """Normalised queries, keys and values, split into heads."""
        if self.cross:
            q, k, v = *self.query.heads(x, self.heads), *self.key_value.heads(context, self.heads, parts=2)
        else:
            q, k, v = self.query_key_value.heads(x, self.heads, parts=3)
        return (q, k, v) if self.query_norm is None else (self.query_norm(q), self.key_norm(k), v)

    def empty(self, batch: int, length: int, tags: Sequence[str] | None = None) -> KeyValues:
        """The cache of a self-attention before its first position.

        Args:
          batch: examples.
          length: the most positions it holds.
          tags: keep these tags and what ``caches.Places`` knows; ``None`` keeps keys and values alone.
        """
        keys = jnp.zeros((batch, self.heads, self.head_width, length), self.dtype)
        places = None if tags is None else Places.empty(batch, length, tuple(tags))
        return KeyValues(keys, keys.swapaxes(2, 3), jnp.zeros((), jnp.int32), places)

    def keys_values(self, context: Float[Array, "batch keys context_width"]) -> KeyValues:
        """The keys and values of a cross-attention's context, the same for every position."""
        k, v = self.key_value.heads(context, self.heads, parts=2)
        k = k if self.key_norm is None else self.key_norm(k)
        if self.null_keys is not None:
            k, v, *_ = self._prepend_null(k, v, Full(), None, None, None)
        return KeyValues(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), jnp.asarray(k.shape[1]))

    def _continue(
        self, x: Array, stream: Stream, mask: Mask, key_mask: Array | None, rotary: Array | None, new: dict[str, Any]
    ) -> Array:
        """Attends from the next positions to all that the stream holds, and to themselves."""
        cache, asking = stream.recall(), None
        if self.cross:
            (q,) = self.query.heads(x, self.heads)
            q = q if self.query_norm is None else self.query_norm(q)
            if key_mask is not None and self.null_keys is not None:
                key_mask = jnp.pad(key_mask, ((0, 0), (self.null_keys.get_value().shape[1], 0)), constant_values=True)
        else:
            q, k, v = self._project(x, None)
            if rotary is not None:
                q, k = rotate(q, rotary), rotate(k, rotary)
            if cache.places is not None:
                new, key_mask = new | {"exists": key_mask}, None
                asking = cache.places.next(x.shape[1], **new)
                cache = cache.append(k, v, **new)
            else:
                cache = cache.append(k, v)
        stream.keep(cache)
        out = attend_to_cache(q * jnp.asarray(self.head_width**-0.5, q.dtype), cache, mask, key_mask, asking)
        return self.out(out.reshape(*x.shape[:-1], -1))

    def _prepend_null(self, k: Array, v: Array, mask: Mask, key_mask: Any, bias: Any, key_bias: Any) -> tuple:
        """Keys, values, key mask and biases with the slots that are always visible ahead."""
        if not isinstance(mask, Full):
            raise UserError("null keys work with the Full mask only: they would shift its positions")
        batch, *_, heads, head_width = k.shape
        k, v = (y.reshape(batch, -1, heads, head_width) for y in (k, v))
        null = jnp.broadcast_to(
            self.null_keys.get_value().astype(k.dtype)[:, None],
            (2, batch, *self.null_keys.get_value().shape[1:]),
        )
        slots = null.shape[2]
        k, v = jnp.concatenate([null[0], k], 1), jnp.concatenate([null[1], v], 1)
        if key_mask is not None:
            key_mask = jnp.concatenate([jnp.ones((batch, slots), bool), key_mask], 1)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (slots, 0)))
        if key_bias is not None:
            key_bias = jnp.pad(key_bias, ((0, 0), (slots, 0)))
        return k, v, key_mask, bias, key_bias
