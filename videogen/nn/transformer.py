"""Transformer blocks and scanned stacks of them: compile time does not grow with depth."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import building
from videogen.errors import UserError, near_matches
from videogen.nn.attention import Attended, Attention
from videogen.nn.caches import KeyValues
from videogen.nn.extra_keys import ExtraKeys
from videogen.nn.linear import for_each_layer, next_key
from videogen.nn.masks import NONE, Full, Mask, Tags
from videogen.nn.micro_batches import named_key, split_keys
from videogen.nn.mlp import MLP, dropout
from videogen.nn.modulation import MODULATIONS, lay_out, modulate
from videogen.nn.norms import build_norm
from videogen.nn.positions import PositionGenerator
from videogen.nn.sparse_attention import SparseStream
from videogen.nn.splash import RESIDUALS
from videogen.nn.streaming import Stream
from videogen.parallel import GRID_AXES, constrain
from videogen.parallel.cpu import unrolled

_KERNEL_RESIDUALS = jax.checkpoint_policies.save_only_these_names(RESIDUALS)
REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": _KERNEL_RESIDUALS,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _KERNEL_RESIDUALS
    ),
}
"""What the backward pass keeps of each layer: everything; nothing; what a splash kernel would otherwise compute twice;
that and the matrix products."""


class Block(nnx.Module):
    """A block, pre-norm unless told otherwise: [position generator] → self-attention → [cross-attention] → MLP.

    Args:
      width: token width.
      attention: settings of the self-attention: ``{heads, …}`` as ``nn.Attention`` takes them.
      mlp: settings of the MLP: ``{hidden, kind, …}`` as ``nn.MLP`` takes them.
      norm: the norm before every branch: a name in ``NORMS``, or ``{name, epsilon, …}``.
      cross_norm: the one before the cross-attention, where it is another; ``None``: as ``norm``.
      norm_after: the norms stand behind the sums with the branches instead, as in the first transformers (BERT).
      cross_attention: settings of the cross-attention that ``attention`` does not give already, such as
        ``{context_width, null_keys}``; ``None`` leaves it out.
      position_generator: ``"causal"`` or ``"bidirectional"`` in time; ``None`` leaves it out.
      time_axis: grid axis (1 or 3) of time, for the position generator.
      modulation: a name in ``MODULATIONS``, or ``{name, …}``: a condition sets shift, scale and gate of self-attention
        and MLP. The block's norms then have no parameters, and its cross-attention begins at 0.
      depth: number of layers of the stack; residual outputs start at 1/sqrt(2·depth).
      dropout: rate on the residual branches.
    """

    def __init__(
        self,
        width: int,
        attention: Mapping[str, Any],
        mlp: Mapping[str, Any],
        *,
        norm: str | Mapping[str, Any] = "rms",
        cross_norm: str | Mapping[str, Any] | None = None,
        norm_after: bool = False,
        cross_attention: Mapping[str, Any] | None = None,
        position_generator: str | None = None,
        time_axis: int = 1,
        modulation: str | Mapping[str, Any] | None = None,
        depth: int = 1,
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if norm_after and (modulation or cross_attention is not None):
            raise UserError("norm_after goes with neither modulation nor cross_attention")
        common = dict(width=width, out_scale=(2 * depth) ** -0.5, dtype=dtype, rngs=rngs)
        self.time_axis, self.dropout, self.norm_after = time_axis, dropout, norm_after
        self.position_generator = (
            PositionGenerator(width, causal=position_generator == "causal", dtype=dtype, rngs=rngs)
            if position_generator
            else None
        )
        plain = modulation is None
        named = {"name": modulation} if isinstance(modulation, str) else modulation
        made_for = dict(width=width, parts=6, rngs=rngs)
        self.modulation = None if plain else building.build(MODULATIONS, named, "modulation", **made_for)
        self.attention_norm = build_norm(norm, width, affine=plain, rngs=rngs)
        self.attention = _part(Attention, "attention", attention, common)
        cross = cross_attention is not None
        self.cross_norm = build_norm(cross_norm or norm, width, rngs=rngs) if cross else None
        self.cross_attention = (
            _part(
                Attention,
                "cross-attention",
                {**attention, **cross_attention},
                common if plain else common | {"out_scale": 0.0},
            )
            if cross
            else None
        )
        self.mlp_norm = build_norm(norm, width, affine=plain, rngs=rngs)
        self.mlp = _part(MLP, "mlp", mlp, common)

    def __call__(
        self,
        x: Float[Array, "batch *grid width"],
        *,
        mask: Mask = Full(),
        key_mask: Bool[Array, "batch sequence"] | None = None,
        bias: Float[Array, "heads queries keys"] | None = None,
        key_bias: Float[Array, "batch sequence"] | None = None,
        tags: Tags = NONE,
        rotary: Float[Array, "sequence angles"]
        | Float[Array, "batch sequence angles"]
        | Float[Array, "batch sequence heads angles"]
        | None = None,
        context: Float[Array, "batch keys context_width"] | None = None,
        context_mask: Bool[Array, "batch keys"] | None = None,
        condition: Float[Array, "batch groups ..."] | None = None,
        group_of: Int[np.ndarray, "tokens"] | None = None,
        attended_axes: int = 1,
        key: jax.Array | None = None,
        stream: Stream | None = None,
        extra_kv: ExtraKeys | None = None,
        probe: Int[Array, "batch probes"] | None = None,
        between: Callable[[Array, Attended | None], Array] | None = None,
        sparse: SparseStream | None = None,
        context_kv: ExtraKeys | None = None,
    ) -> Float[Array, "batch *grid width"]:
        """Attends over the last ``attended_axes`` grid axes of ``x``; the other grid axes are batch.

        A block with a modulation needs its ``condition``, laid out on the tokens by ``group_of``
        (``modulation.lay_out``). With a ``stream`` of the caches of ``begin``, ``x [batch, positions, width]``
        continues the sequence they hold. The self-attention sees ``extra_kv`` besides. ``between`` is called with the
        tokens before the MLP, and with what the queries of the ``probe`` saw; it may return another number of tokens.
        ``sparse`` is of the self-attention, ``context_kv`` (``read``) of the cross-attention.
        """
        parts = ("attention", "cross_attention", "mlp")
        keys = {part: None if key is None else named_key(key, part) for part in parts}
        axes = GRID_AXES[self.time_axis] if x.ndim == 5 else ("sequence",)
        x = constrain(x, "batch", *axes, "embed")
        if self.position_generator is not None:
            # Places that do not exist must not leak into their neighbours.
            seen = x if key_mask is None else jnp.where(key_mask.reshape(*x.shape[:-1], 1), x, 0)
            x = self.position_generator(seen, time_axis=self.time_axis)
        grid = dict(axes=axes, attended_axes=attended_axes, stream=stream)
        first, second = _branches(self.modulation, condition, x, group_of)
        y = x if self.norm_after else self.attention_norm(x)
        y = modulate(y, *first[:2]) if first else y
        masks = dict(mask=mask, key_mask=key_mask, bias=bias, key_bias=key_bias, tags=tags)
        y = self.attention(y, **masks, rotary=rotary, extra_kv=extra_kv, probe=probe, sparse=sparse, **grid)
        y, attended = (y, None) if probe is None else y
        x = x + dropout(y * first[2] if first else y, self.dropout, keys["attention"])
        x = self.attention_norm(x) if self.norm_after else x
        if self.cross_attention is not None:
            grid = dict(axes=axes, attended_axes=len(axes), stream=stream)
            seen = dict(key_mask=context_mask, context_kv=context_kv)
            y = self.cross_attention(self.cross_norm(x), context, **seen, **grid)
            x = x + dropout(y, self.dropout, keys["cross_attention"])
        if between is not None:
            x = between(x, attended)
        y = x if self.norm_after else self.mlp_norm(x)
        y = self.mlp(modulate(y, *second[:2]) if second else y)
        x = x + dropout(y * second[2] if second else y, self.dropout, keys["mlp"])
        x = self.mlp_norm(x) if self.norm_after else x
        return constrain(x, "batch", *axes, "embed")

    def begin(
        self,
        batch: int,
        length: int,
        context: Float[Array, "batch keys context_width"] | None = None,
        *,
        tags: Sequence[str] | None = None,
    ) -> tuple[KeyValues, ...]:
        """The caches of an empty sequence of at most ``length`` positions, for decoding with a ``stream``.

        With ``tags``, none or some, the cache of the self-attention knows its places (``nn.caches.Places``).
        """
        if self.position_generator is not None:
            raise UserError("a position generator looks at its neighbours: it cannot decode position by position")
        caches = (self.attention.empty(batch, length, tags),)
        return caches if self.cross_attention is None else (*caches, self.cross_attention.keys_values(context))

    def beside(
        self, x: Float[Array, "batch extra width"], exists: Bool[Array, "batch extra"] | None = None
    ) -> ExtraKeys:
        """Tokens that the self-attention sees beside those of the layer (``extra_kv``): read as its own tokens are, but
        neither modulated nor rotated."""
        y = x if self.norm_after else self.attention_norm(x)
        return ExtraKeys(*self.attention.project(y, None)[1:], exists)

    def read(self, context: Float[Array, "batch keys context_width"]) -> ExtraKeys:
        """The keys and values of the cross-attention, which are the same as long as its context is (``context_kv``)."""
        return self.cross_attention.read(context)


Around = Callable[[Block, nnx.Rngs], nnx.Module]
"""(a block, random streams) -> the layer that it is part of."""


def _part(kind: type, name: str, config: Mapping[str, Any], common: dict[str, Any]) -> nnx.Module:
    """A part of a block from its section."""
    return building.build({name: kind}, {"name": name, **config}, "part", **common)


def _branches(
    modulation: nnx.Module | None, condition: Array | None, x: Array, group_of: np.ndarray | None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Shift, scale and gate of the self-attention and of the MLP; nothing without a modulation."""
    if modulation is None:
        return (), ()
    parts = lay_out(modulation(condition), x, group_of)
    return parts[:3], parts[3:]


class Stack(nnx.Module):
    """``depth`` blocks with stacked parameters, applied by ``lax.scan``.

    Args:
      make_block: builds one block from its random streams.
      depth: number of layers.
      remat: what the backward pass keeps, a name in ``REMAT_POLICIES``.
    """

    def __init__(
        self, make_block: Callable[[nnx.Rngs], nnx.Module], depth: int, *, remat: str = "none", rngs: nnx.Rngs
    ):
        if remat not in REMAT_POLICIES:
            raise UserError(f"unknown remat policy {remat!r}{near_matches(remat, REMAT_POLICIES)}")
        self.depth, self.remat = depth, remat
        if depth == 0:
            self.layers = None
            return
        keys = jax.random.split(next_key(rngs), depth)
        graph = nnx.graphdef(nnx.eval_shape(lambda: make_block(nnx.Rngs(params=0))))
        stacked = jax.vmap(lambda key: nnx.state(make_block(nnx.Rngs(params=key))))(keys)

        def name_layers(variable: nnx.Variable) -> nnx.Variable:
            metadata = variable.get_metadata()
            initializer = metadata.get("initializer")
            drawn = {} if initializer is None else {"initializer": for_each_layer(initializer)}
            return variable.replace(axes=("layers", *(metadata.get("axes") or ())), **drawn)

        stacked = jax.tree.map(name_layers, stacked, is_leaf=lambda x: isinstance(x, nnx.Variable))
        self.layers = nnx.merge(graph, stacked)

    def __call__(
        self,
        x: Float[Array, "batch *grid width"],
        *,
        key: jax.Array | None = None,
        keys: jax.Array | None = None,
        stream: Stream | None = None,
        sparse: SparseStream | None = None,
        layers: slice = slice(None),
        per_layer: Mapping[str, Any] = MappingProxyType({}),
        **call: Any,
    ) -> Array:
        """Applies every layer, or some ``layers`` of them.

        Args:
          x: tokens.
          key: split among the layers that are applied, unless they have their own ``keys``.
          keys: of every layer that is applied.
          stream: the context of each of these layers, stacked.
          sparse: the centroids of each of these layers, stacked.
          layers: which are applied, in order.
          per_layer: arguments of each layer of the stack, by name: arrays with the layers in front.
          **call: arguments of every layer.
        """
        if self.layers is None:
            return x
        graph, state = nnx.split(self.layers)
        depth = len(range(self.depth)[layers])
        if depth < self.depth:
            state, per_layer = jax.tree.map(lambda stacked: stacked[layers], (state, dict(per_layer)))
        streams = {name: s for name, s in (("stream", stream), ("sparse", sparse)) if s is not None}
        past = {name: s.recall() for name, s in streams.items()}

        def layer(x: Array, scanned: tuple) -> tuple[Array, Any]:
            layer_state, layer_key, layer_past, own = scanned
            block = nnx.merge(graph, layer_state)
            inner = {name: s.inner(layer_past[name]) for name, s in streams.items()}
            x = block(x, key=layer_key, **inner, **own, **call)
            return x, {name: s.cache for name, s in inner.items()}

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        if keys is None and key is not None:
            keys = split_keys(key, depth)
        x, contexts = jax.lax.scan(layer, x, (state, keys, past, dict(per_layer)), unroll=unrolled(depth))
        for name, s in streams.items():
            s.keep(contexts[name])
        return x

    def states(self, x: Float[Array, "batch *grid width"], **call: Any) -> Float[Array, "layers batch *grid width"]:
        """The tokens behind every layer, the first of which stands behind layer 0; ``call`` are arguments of all."""
        graph, state = nnx.split(self.layers)

        def layer(x: Array, state: Any) -> tuple[Array, Array]:
            x = nnx.merge(graph, state)(x, **call)
            return x, x

        return jax.lax.scan(layer, x, state, unroll=unrolled(self.depth))[1]

    def begin(self, *arguments: Any, layers: slice = slice(None), **settings: Any) -> tuple[KeyValues, ...]:
        """The caches of every layer, or of some ``layers``, stacked; a block's ``begin`` says with what."""
        graph, state = nnx.split(self.layers)
        state = jax.tree.map(lambda stacked: stacked[layers], state)
        return jax.vmap(lambda state: nnx.merge(graph, state).begin(*arguments, **settings))(state)

    def beside(
        self, x: Float[Array, "layers batch extra width"], exists: Bool[Array, "batch extra"] | None = None
    ) -> ExtraKeys:
        """``Block.beside`` of every layer, for ``per_layer``: stacked."""
        graph, state = nnx.split(self.layers)
        return jax.vmap(lambda state, x: nnx.merge(graph, state).beside(x, exists))(state, x)

    def read(self, context: Float[Array, "batch keys context_width"]) -> ExtraKeys:
        """``Block.read`` of every layer, for ``per_layer``: stacked."""
        graph, state = nnx.split(self.layers)
        return jax.vmap(lambda state: nnx.merge(graph, state).read(context))(state)

    def layer(self, number: int) -> nnx.Module:
        """One layer by itself."""
        graph, state = nnx.split(self.layers)
        return nnx.merge(graph, jax.tree.map(lambda stacked: stacked[number], state))

    def unstacked(self) -> list[nnx.Module]:
        """The layers one by one: loops that decode are faster over separate arrays than over slices of stacked ones."""
        if self.layers is None:
            return []
        graph, state = nnx.split(self.layers)
        return [nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(self.depth)]


def block_stack(
    width: int,
    layers: int,
    *,
    around: Around | None = None,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
    **block: Any,
) -> Stack:
    """A stack of ``layers`` equal blocks; ``block`` are their settings, as ``Block`` takes them.

    ``around`` makes the layer of each block: a module that is called as the block is and calls it.
    """

    def make(rngs: nnx.Rngs) -> nnx.Module:
        common = dict(width=width, depth=layers, dtype=dtype, rngs=rngs)
        built = building.build({"block": Block}, {"name": "block", **block}, "transformer", **common)
        return built if around is None else around(built, rngs)

    return Stack(make, layers, remat=remat, rngs=rngs)
