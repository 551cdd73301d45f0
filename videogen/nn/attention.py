"""One attention layer for every network: masks as values, QK-norm, rotary positions, null keys (``nn.backends``)."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import building
from videogen.errors import UserError, near_matches
from videogen.nn.backends import attend
from videogen.nn.caches import KeyValues, Places, attend_to_cache
from videogen.nn.extra_keys import ExtraKeys, append_keys
from videogen.nn.linear import Linear, lora_of_columns, parameter, truncated_normal, zeros
from videogen.nn.masks import NONE, Full, Mask, Tags
from videogen.nn.norms import RMSNorm
from videogen.nn.positions import rotate
from videogen.nn.sparse_attention import SparseStream
from videogen.nn.streaming import Stream
from videogen.parallel import mesh_axis_size
from videogen.ranges import Count, Natural, Positive

QK_NORMS = {"head": "every head by itself", "width": "all heads together"}
"""Over what queries and keys are RMS-normalised, with learned scales."""


@dataclasses.dataclass(frozen=True)
class QKNorm:
    """The norm of queries and keys.

    Attributes:
      epsilon: added to the mean square.
    """

    epsilon: Positive = 1e-6


PROJECTIONS = ("query", "key", "value", "out")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attended:
    """What the queries of a probe saw; keys in the order: null keys, those of the tokens, extra ones.

    Attributes:
      mass: the weight that each key has, summed over the queries of the probe.
      key: normalised and rotated keys, by which tokens may be compared.
    """

    mass: Float[Array, "batch heads keys"]
    key: Float[Array, "batch keys key_value_heads head_width"]


class Attention(nnx.Module):
    """Multi-head self- or cross-attention.

    Args:
      width: width of the tokens.
      heads: number of heads of the queries.
      key_value_heads: heads of keys and values, each for as many heads of the queries as there are more of these
        (grouped queries; Ainslie et al., 2023); ``None`` means as many.
      head_width: of a head; ``None`` means that the heads share ``width``, which then must divide by ``heads``.
      context_width: width of the keys' and values' source; ``None`` means self-attention.
      qk_norm: a name in ``QK_NORMS``, or ``{name, epsilon}``; ``None`` leaves queries and keys as they are.
      bias: the projections that have one, names in ``PROJECTIONS``.
      scale: of the scores; ``None`` means 1/sqrt(head_width). T5 has 1.
      interleaved: rotary positions turn channels 2i and 2i + 1, not i and i + head_width/2.
      null_keys: learned key/value slots that are always visible (phenaki-pytorch uses two).
      lora: ``{rank, alpha}`` of a low-rank update of all projections; queries, keys and values have one together. With
        ``only``, names in ``PROJECTIONS``, each of these has one, and the others have none.
      out_scale: scales the initial output projection (depth-aware initialisation).
    """

    def __init__(
        self,
        width: int,
        heads: Count,
        *,
        key_value_heads: Count | None = None,
        head_width: Count | None = None,
        context_width: int | None = None,
        qk_norm: str | Mapping[str, Any] | None = "head",
        bias: Sequence[str] = (),
        scale: float | None = None,
        interleaved: bool = False,
        null_keys: Natural = 0,
        lora: Mapping[str, Any] | None = None,
        out_scale: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if head_width is None and width % heads:
            raise UserError(f"width {width} does not divide by {heads} heads")
        shared = key_value_heads or heads
        if heads % shared:
            raise UserError(f"{heads} heads do not divide into groups for {shared} heads of keys and values")
        over = building.build(dict.fromkeys(QK_NORMS, QKNorm), _named(qk_norm), "qk_norm") if qk_norm else None
        for name in bias:
            if name not in PROJECTIONS:
                raise UserError(f"unknown bias {name!r}{near_matches(name, PROJECTIONS)}")
        self.heads, self.key_value_heads, self.dtype = heads, shared, dtype
        self.head_width = head = head_width or width // heads
        self.scale, self.interleaved = head**-0.5 if scale is None else scale, interleaved
        self.cross = context_width is not None
        common = dict(bias=False, dtype=dtype, rngs=rngs)
        sides = {"query": heads * head, "key": shared * head, "value": shared * head, "out": width}

        def linear(inputs: int, *names: str, **settings: Any) -> Linear:
            own = {name: sides[name] for name in names}
            return Linear(inputs, sum(own.values()), lora=lora_of_columns(lora, own, PROJECTIONS), **common, **settings)

        if self.cross:
            self.query = linear(width, "query", axes=("embed", "heads"))
            self.key_value = linear(context_width, "key", "value", axes=("embed", "heads"))
        else:
            self.query_key_value = linear(width, "query", "key", "value", axes=("embed", "heads"))
        initializer = truncated_normal(out_scale / (heads * head) ** 0.5)
        common["bias"] = "out" in bias
        self.out = linear(heads * head, "out", axes=("heads", "embed"), initializer=initializer)
        norm = functools.partial(RMSNorm, epsilon=over.epsilon if over else 0.0, rngs=rngs)
        self.norm_width = bool(qk_norm) and _named(qk_norm)["name"] == "width"
        self.query_norm = norm(heads * head if self.norm_width else head) if qk_norm else None
        self.key_norm = norm(shared * head if self.norm_width else head) if qk_norm else None
        shape = (2, null_keys, shared, head)
        self.null_keys = parameter(rngs, shape, (None,) * 4, truncated_normal(1.0)) if null_keys else None

        def of_heads(name: str, heads: int) -> nnx.Variable | None:
            return parameter(rngs, (heads, head), ("heads", None), zeros) if name in bias else None

        self.query_bias, self.key_bias = of_heads("query", heads), of_heads("key", shared)
        self.value_bias = of_heads("value", shared)

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
        rotary: Float[Array, "queries half_head_width"]
        | Float[Array, "batch queries half_head_width"]
        | Float[Array, "batch queries heads half_head_width"]
        | None = None,
        context_rotary: Float[Array, "*batch keys half_head_width"] | None = None,
        axes: Sequence[str] = ("sequence",),
        attended_axes: int = 1,
        stream: Stream | None = None,
        extra_kv: ExtraKeys | None = None,
        probe: Int[Array, "batch probes"] | None = None,
        sparse: SparseStream | None = None,
        context_kv: ExtraKeys | None = None,
    ) -> Float[Array, "batch *grid width"] | tuple[Array, "Attended"]:
        """Attends from ``x`` to itself or to ``context``, over the last ``attended_axes`` grid axes.

        Masks, biases and tags are those of ``attend``; ``tags`` are of the tokens of ``x``.
        ``rotary`` are angles from ``nn.rotary_angles``, or of every head (``nn.ClipRotary``), ``context_rotary`` those
        of the keys of a context, ``axes`` the logical names of the grid axes. With a ``stream``, ``x`` continues the
        sequence whose keys and values it holds (``empty``, ``keys_values``); where these know their places,
        ``key_mask``, ``key_bias`` and ``tags`` are those of ``x``. The keys ``extra_kv`` are seen besides. With a
        ``probe``, the places of some queries, the second result is what they saw (with a stream of all cached keys).
        ``context_kv`` are keys and values of the context that were projected before (``read``). With ``sparse``
        clusters of tokens see some of the others only: there are then no other masks than ``key_mask``.

        Raises:
          UserError: extra keys without a gate come with a stream, or something else does not go together.
        """
        others = (extra_kv, probe, bias, key_bias, self.null_keys)
        if sparse is not None and not (isinstance(mask, Full) and all(other is None for other in others)):
            raise UserError("sparse attention takes neither masks nor biases, extra keys, null keys or a probe")
        gated, extra_kv = (extra_kv, None) if extra_kv is not None and extra_kv.gate is not None else (None, extra_kv)
        if stream is not None:
            if extra_kv is not None:
                raise UserError("with a stream there are no extra keys without a gate: append them to the cache")
            return self._continue(x, stream, mask, key_mask, rotary, dict(bias=key_bias, tags=tags), probe, gated)
        shape = x.shape
        attended = shape[-1 - attended_axes : -1]
        if mesh_axis_size("context") == 1:
            # No grid axis is sharded, so they may be merged: dense attention is fastest on one sequence axis.
            x, axes, attended_axes = x.reshape(-1, math.prod(attended), shape[-1]), ("sequence",), 1
            attended = x.shape[1:-1]
        q, k, v = self.project(x, context, context_kv)
        plain = q
        if rotary is not None:
            # Angles of examples have a row for each of them and of the grid axes that are not attended.
            leading = () if rotary.ndim == 2 else x.shape[: x.ndim - 1 - len(attended)]
            leading = rotary.shape[:1] if rotary.ndim > 3 else leading
            own = rotary.shape[min(rotary.ndim - 1, 2) :]
            q, k = self.rotate(q, k, rotary.reshape(*leading, *attended, *own), context_rotary)
        if self.null_keys is not None:
            k, v, key_mask, bias, key_bias = self._prepend_null(k, v, mask, key_mask, bias, key_bias)
        q = q * jnp.asarray(self.scale, q.dtype)
        masks = dict(mask=mask, key_mask=key_mask, bias=bias, key_bias=key_bias, tags=tags, key_tags=context_tags)
        if extra_kv is not None:
            k, v, masks = append_keys(k, v, extra_kv, math.prod(attended), masks)
        own_keys = k
        if self.key_value_heads < self.heads:
            k, v = (jnp.repeat(y, self.heads // self.key_value_heads, axis=-2) for y in (k, v))
        whole = functools.partial(attend, q, k, v, **masks, axes=axes, attended_axes=attended_axes, probe=probe)
        out = whole() if sparse is None else sparse.attend(q, k, v, masks["key_mask"], whole)
        attended = None
        if probe is not None:
            out, mass = out
            attended = Attended(mass, own_keys.reshape(len(mass), -1, *own_keys.shape[-2:]))
        out = self._finished(out.reshape(*x.shape[:-1], -1), plain, gated).reshape(shape)
        return out if probe is None else (out, attended)

    def _finished(
        self, out: Float[Array, "batch *grid heads_width"], query: Array, gated: ExtraKeys | None
    ) -> Float[Array, "batch *grid width"]:
        """The output projection, and what queries that are not rotated find among keys with a gate."""
        if gated is None:
            return self.out(out)
        groups = self.heads // self.key_value_heads
        k, v = (jnp.repeat(y.astype(query.dtype), groups, axis=-2) for y in (gated.key, gated.value))
        exists = jnp.ones(k.shape[:2], bool) if gated.exists is None else gated.exists
        some = exists.any(1)
        # Where there is no key at all every query keeps one, and the gate is shut.
        seen = exists.at[:, 0].set(exists[:, 0] | ~some)
        found = attend(query * jnp.asarray(self.scale, query.dtype), k, v, key_mask=seen)
        gate = jnp.where(some[:, None, None], gated.gate, 0.0).astype(out.dtype)
        return self.out(out) + gate * self.out(found.reshape(out.shape))

    def project(
        self, x: Array, context: Array | None, context_kv: ExtraKeys | None = None
    ) -> tuple[Array, Array, Array]:
        """Normalised queries, keys and values, split into heads; those of the context may be known already."""
        if self.cross:
            known = self.read(context) if context_kv is None else context_kv
            return self._finish_query(*self.query.heads(x, (self.heads,))), known.key, known.value
        q, k, v = self.query_key_value.heads(x, (self.heads, self.key_value_heads, self.key_value_heads))
        return self._finish_query(q), *self._finish_key_value(k, v)

    def read(self, context: Float[Array, "batch keys context_width"]) -> ExtraKeys:
        """The keys and values of a cross-attention's context, without the null keys, for ``context_kv``."""
        return ExtraKeys(*self._finish_key_value(*self.key_value.heads(context, (self.key_value_heads,) * 2)))

    def _finish_query(self, q: Array) -> Array:
        return self._normalise(_biased(q, self.query_bias), self.query_norm)

    def _finish_key_value(self, k: Array, v: Array) -> tuple[Array, Array]:
        return self._normalise(_biased(k, self.key_bias), self.key_norm), _biased(v, self.value_bias)

    def _normalise(self, x: Float[Array, "... heads head_width"], norm: RMSNorm | None) -> Array:
        if norm is None or not self.norm_width:
            return x if norm is None else norm(x)
        return norm(x.reshape(*x.shape[:-2], -1)).reshape(x.shape)

    def rotate(
        self, q: Array, k: Array, rotary: Array | None, context_rotary: Array | None = None
    ) -> tuple[Array, Array]:
        """Queries and keys turned by the angles of their positions; as they are where there are none."""
        if rotary is None:
            return q, k
        angles = rotary, rotary if context_rotary is None else context_rotary
        return tuple(rotate(x, a, interleaved=self.interleaved) for x, a in zip((q, k), angles, strict=True))

    def empty(self, batch: int, length: int, tags: Sequence[str] | None = None) -> KeyValues:
        """The cache of a self-attention before its first position.

        Args:
          batch: examples.
          length: the most positions it holds.
          tags: keep these tags and what ``caches.Places`` knows; ``None`` keeps keys and values alone.
        """
        keys = jnp.zeros((batch, self.key_value_heads, self.head_width, length), self.dtype)
        places = None if tags is None else Places.empty(batch, length, tuple(tags))
        return KeyValues(keys, keys.swapaxes(2, 3), jnp.zeros((), jnp.int32), places)

    def keys_values(self, context: Float[Array, "batch keys context_width"]) -> KeyValues:
        """The keys and values of a cross-attention's context, the same for every position."""
        known = self.read(context)
        k, v = known.key, known.value
        if self.null_keys is not None:
            k, v, *_ = self._prepend_null(k, v, Full(), None, None, None)
        return KeyValues(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), jnp.asarray(k.shape[1]))

    def _continue(
        self,
        x: Array,
        stream: Stream,
        mask: Mask,
        key_mask: Array | None,
        rotary: Array | None,
        new: dict[str, Any],
        probe: Array | None,
        gated: ExtraKeys | None,
    ) -> Any:
        """Attends from the next positions to all that the stream holds, and to themselves."""
        cache, asking = stream.recall(), None
        if self.cross:
            plain = q = self._finish_query(*self.query.heads(x, (self.heads,)))
            if key_mask is not None and self.null_keys is not None:
                key_mask = jnp.pad(key_mask, ((0, 0), (self.null_keys.get_value().shape[1], 0)), constant_values=True)
        else:
            plain, k, v = self.project(x, None)
            q, k = self.rotate(plain, k, rotary)
            if cache.places is not None:
                new, key_mask = new | {"exists": key_mask}, None
                asking = cache.places.next(x.shape[1], **new)
                cache = cache.append(k, v, **new)
            else:
                cache = cache.append(k, v)
        stream.keep(cache)
        out = attend_to_cache(q * jnp.asarray(self.scale, q.dtype), cache, mask, key_mask, asking, probe)
        out, mass = (out, None) if probe is None else out
        out = self._finished(out.reshape(*x.shape[:-1], -1), plain, gated)
        return out if probe is None else (out, Attended(mass, cache.key.transpose(0, 3, 1, 2)))

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


def _named(section: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return {"name": section} if isinstance(section, str) else section


def _biased(x: Float[Array, "... heads head_width"], bias: nnx.Variable | None) -> Float[Array, "... heads head_width"]:
    return x if bias is None else x + bias.get_value().astype(x.dtype)
