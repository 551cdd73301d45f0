"""Softmax attention of queries, keys and values by the fastest backend of the platform, on one device or a mesh."""

import math
from collections.abc import Sequence

from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError, near_matches
from videogen.nn.context_parallel import attend_locally, attend_on_mesh
from videogen.nn.cudnn import cudnn, cudnn_takes
from videogen.nn.masking import Masking, masking
from videogen.nn.masks import NONE, Full, Mask, Tags
from videogen.nn.reference import probe_mass, reference
from videogen.nn.splash import splash
from videogen.parallel import on_mesh, target_platform

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
    probe: Int[Array, "batch probes"] | None = None,
) -> Float[Array, "batch *grid heads head_width"] | tuple[Array, Float[Array, "batch heads keys"]]:
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
      probe: places of queries of which the weights are wanted.

    Returns:
      The attended values, in the dtype of ``value``; with a ``probe`` also the mass that its queries give each key:
      their weights, float32, summed over these queries.

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
    out = attend_on_mesh(*arguments, axes, attended_axes) if on_mesh() else attend_locally(*arguments, attended_axes)
    if probe is None:
        return out
    return out, probe_mass(*(x.reshape(batch, -1, *x.shape[-2:]) for x in (query, key)), probe, given)


def _choose(query: Array, key: Array, attended_axes: int, masking: Masking) -> str:
    """The fastest backend that takes such attention on the platform."""
    lengths = [math.prod(x.shape[:-2][-attended_axes:]) for x in (query, key)]
    platform = target_platform()
    if platform == "tpu" and masking.bias is None and min(lengths) >= SPLASH_LENGTH and masking.in_segments:
        return "splash"
    width = query.shape[-1] + (8 if masking.key_bias is not None else 0)
    return "cudnn" if platform == "gpu" and cudnn_takes(query.dtype, width, *lengths) else "reference"
