"""Attention on a mesh: every device attends with its own examples and heads, over whole sequences.

Long videos are sharded along one grid axis (``context`` in the rules). Where attention runs over that axis, an
all-to-all trades it for heads, the attention itself is local, and a second all-to-all trades back (DeepSpeed-Ulysses;
Jacobs et al., 2023): each device sends and receives its own share of queries, keys and values, nothing is gathered,
and every backend and mask works unchanged. Where attention runs over other axes only, nothing moves.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from videogen.nn.masking import Masking
from videogen.parallel import activation_spec, mesh_axis_size

Backend = Callable[..., Float[Array, "batch queries heads head_width"]]
CONTEXT = "context"


def attend_locally(
    backend: Backend,
    query: Float[Array, "batch *grid heads head_width"],
    key: Float[Array, "batch *key_grid heads head_width"],
    value: Float[Array, "batch *key_grid heads head_width"],
    masking: Masking,
    attended_axes: int,
) -> Float[Array, "batch *grid heads head_width"]:
    """Runs ``backend`` over the last ``attended_axes`` grid axes; the other grid axes are batch."""
    heads = query.shape[-2:]
    folded = query.shape[: query.ndim - 2 - attended_axes]
    batch = math.prod(folded)
    q, k, v = (x.reshape(batch, -1, *heads) for x in (query, key, value))
    return backend(q, k, v, _by_token(masking, lambda x, _: x.reshape(batch, -1))).reshape(query.shape)


def _by_token(masking: Masking, function: Callable[[Any, bool], Any]) -> Masking:
    """The masking with ``function(array, whether of queries)`` of every array that has an entry for each token."""

    def of(arrays: Any, of_queries: bool = False) -> Any:
        return jax.tree.map(lambda x: function(x, of_queries), arrays)

    return dataclasses.replace(
        masking,
        key_mask=of(masking.key_mask),
        key_bias=of(masking.key_bias),
        query_tags=of(masking.query_tags, True),
        key_tags=of(masking.key_tags),
    )


def attend_on_mesh(
    backend: Backend,
    query: Float[Array, "batch *grid heads head_width"],
    key: Float[Array, "batch *key_grid heads head_width"],
    value: Float[Array, "batch *key_grid heads head_width"],
    masking: Masking,
    axes: Sequence[str],
    attended_axes: int,
) -> Float[Array, "batch *grid heads head_width"]:
    """``attend_locally`` under ``shard_map``: examples, heads and the context axis over the entered mesh.

    Keys on the queries' grid are sharded as the queries are; other keys (a text) are whole on every device.
    ``axes`` are the logical names of the grid axes.
    """
    first_attended = 1 + len(axes) - attended_axes
    same_grid = key.shape[:-2] == query.shape[:-2]
    alike = not masking.mask.needs - set(masking.query_tags) and masking.bias is None
    spec, scattered = _layout(query.shape, axes, first_attended, same_grid, alike)
    batch, heads = spec[0], spec[-2]
    key_spec = spec if same_grid else PartitionSpec(batch, *(None,) * (key.ndim - 3), heads, None)
    # Tags of queries lie where these do when they are attended from; padding and tags of keys are whole everywhere.
    split = scattered is None and CONTEXT in spec[first_attended:-2]
    grids = {True: query.shape[:-2] if split else (*query.shape[:first_attended], -1)}
    grids[False] = (*query.shape[:first_attended], -1)
    token_specs = {False: PartitionSpec(*spec[:first_attended], None)}
    token_specs[True] = PartitionSpec(*spec[:-2]) if split else token_specs[False]
    masking = _by_token(masking, lambda x, of_queries: x.reshape(grids[of_queries]))
    own_heads = heads if scattered is None else (heads, CONTEXT) if heads else CONTEXT
    bias_spec = None if masking.bias is None else PartitionSpec(own_heads, None, None)
    masking_spec = dataclasses.replace(
        _by_token(masking, lambda _, of_queries: token_specs[of_queries]), bias=bias_spec
    )

    def local(query: Array, key: Array, value: Array, masking: Masking) -> Array:
        if scattered is not None:
            query, key, value = (_all_to_all(x, x.ndim - 2, scattered) for x in (query, key, value))
        out = attend_locally(backend, query, key, value, masking, attended_axes)
        return out if scattered is None else _all_to_all(out, scattered, out.ndim - 2)

    specs = (spec, key_spec, key_spec, masking_spec)
    return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(query, key, value, masking)


def _layout(
    shape: tuple[int, ...], axes: Sequence[str], first_attended: int, same_grid: bool, alike: bool
) -> tuple[PartitionSpec, int | None]:
    """How queries are sharded, and the axis (if any) that is traded for heads during attention.

    Args:
      shape: the queries' shape.
      axes: logical names of the grid axes.
      first_attended: the first axis attention runs over.
      same_grid: the keys lie on the queries' grid.
      alike: neither a mask nor a bias asks for the queries' positions in the sequence.
    """
    spec = activation_spec(("batch", *axes, "heads", None), shape)
    context = mesh_axis_size(CONTEXT)
    place = spec.index(CONTEXT) if CONTEXT in spec else 0
    if context == 1 or place < first_attended or (alike and not same_grid):
        return spec, None
    heads, tensor = shape[-2], mesh_axis_size(spec[-2])
    if same_grid and heads // tensor % context == 0:
        return spec, place
    logging.log_first_n(
        logging.WARNING,
        "%d heads do not divide by tensor × context = %d × %d: every context device computes all of them",
        1,
        heads,
        tensor,
        context,
    )
    return PartitionSpec(*(None if axis == place else target for axis, target in enumerate(spec))), None


def _all_to_all(x: Array, scatter: int, gather: int) -> Array:
    """Shards axis ``scatter`` over the context devices and makes axis ``gather`` whole."""
    return jax.lax.all_to_all(x, CONTEXT, split_axis=scatter, concat_axis=gather, tiled=True)


def with_neighbours(
    function: Callable[[Array, Array], Array],
    x: Float[Array, "batch *grid width"],
    parameters: Float[Array, "..."],
    axes: Sequence[str],
    reach: int = 1,
) -> Float[Array, "batch *grid width"]:
    """Applies a convolution-like ``function(x, parameters)`` to a grid that is sharded over ``context``.

    Args:
      function: zero-pads and keeps the shape of ``x``; an output looks at most ``reach`` places to each side.
      x: the grid.
      parameters: whole on every device.
      axes: logical names of the grid axes.
      reach: places each device needs from the devices beside it.
    """
    spec = activation_spec(("batch", *axes, "embed"), x.shape)
    devices = mesh_axis_size(CONTEXT)
    if devices == 1 or CONTEXT not in spec:
        return function(x, parameters)
    axis = spec.index(CONTEXT)

    def local(x: Array, parameters: Array) -> Array:
        size = x.shape[axis]
        first, last = (jax.lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, reach), (size - reach, size)))
        # Where there is no neighbour zeros arrive, which is the padding at the border.
        left = jax.lax.ppermute(last, CONTEXT, [(i, i + 1) for i in range(devices - 1)])
        right = jax.lax.ppermute(first, CONTEXT, [(i + 1, i) for i in range(devices - 1)])
        out = function(jnp.concatenate([left, x, right], axis), parameters)
        return jax.lax.slice_in_dim(out, reach, reach + size, axis=axis)

    return jax.shard_map(local, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=False)(x, parameters)
