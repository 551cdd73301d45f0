"""Splash attention: the Pallas kernel whose memory grows with the sequence, not with its square (TPU).

It skips the blocks a mask hides and computes the mask of the others in the kernel. Outside a TPU the same kernel runs
in Pallas' interpret mode, slowly, for tests.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn.masking import Masking, without_key_bias
from videogen.nn.masks import Full, Mask
from videogen.parallel import target_platform

RESIDUALS = "attention_residuals"
"""Checkpoint name of what the kernel's backward pass needs beside its inputs: the output and the log-sum-exp."""

BLOCKS = (512, 256, 128)
"""Kernel block lengths, the best first; the kernel takes multiples of 128."""

LANES = 128
"""Values side by side in a TPU's registers and memory; narrower rows are padded to so many."""

FUSED_KEYS = 2048
"""Up to so many keys that all queries see, one kernel computes all gradients. It takes five products for the seven of
two kernels, but writes a partial gradient of the queries for every block of keys, so all keys must be one block."""

NOBODY = -(2**31)
"""The segment of keys that no query sees: the tag of no token."""

MOST_PADDING = 1 / 8
"""A larger block is not worth more padding than this share of the sequence."""


@dataclasses.dataclass(frozen=True)
class TableMask(splash_attention.Mask):
    """A mask value of ``nn.masks`` as splash attention takes it: evaluated block by block, never as a whole.

    Equal masks are equal (and hash equally), so the kernel's block tables are made once for all layers. The kernel is
    given the blocks that are partly visible.

    Attributes:
      mask: the mask value.
      queries, keys: lengths before padding.
      padded: lengths after padding. Padded keys are hidden; padded queries see what the last query sees, so that
        their rows, which nobody reads, stay finite.
    """

    mask: Mask
    queries: int
    keys: int
    padded: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, keys) after padding."""
        return self.padded

    def __getitem__(self, index: tuple[slice, slice]) -> Bool[np.ndarray, "q k"]:
        rows, columns = (np.arange(*i.indices(n), dtype=np.int32) for n, i in zip(self.padded, index, strict=True))
        rows, places = np.minimum(rows, self.queries - 1), np.minimum(columns, self.keys - 1)
        return self.mask.allowed(rows[:, None], places[None, :]) & (columns < self.keys)


@dataclasses.dataclass(frozen=True)
class LazyMask(TableMask):
    """A mask by positions alone, which the kernel computes in the blocks that are partly visible."""

    @property
    def q_sequence(self) -> np.ndarray:
        """Positions of the queries, which the kernel passes on to ``mask_function``."""
        return np.minimum(np.arange(self.padded[0], dtype=np.int32), self.queries - 1)

    @property
    def mask_function(self) -> "LazyMask":
        """The mask itself, so that the functions of equal masks are equal."""
        return self

    def __call__(self, query: Array, key: Array) -> Array:
        """Who sees whom, by positions traced inside the kernel."""
        allowed = self.mask.allowed(query, key)
        return allowed if self.padded[1] == self.keys else allowed & (key < self.keys)


def block_length(length: int) -> int:
    """The kernel block for a sequence: the largest that pads it little.

    The sequence is then padded to a multiple of the block.
    """
    return next(b for b in BLOCKS if -length % b <= MOST_PADDING * length or b == BLOCKS[-1])


def splash(
    query: Float[Array, "batch queries heads head_width"],
    key: Float[Array, "batch keys heads head_width"],
    value: Float[Array, "batch keys heads head_width"],
    masking: Masking,
) -> Float[Array, "batch queries heads head_width"]:
    """Splash attention of scaled queries on one device (``nn.context_parallel`` takes it onto a mesh).

    Raises:
      UserError: there is a bias, which the kernel cannot add, or the mask compares tags that depend on the data in
        another way than one ``Same``, which becomes the kernel's segments.
    """
    if masking.bias is not None:
        raise UserError("splash attention cannot add a bias to the scores; use backend='auto' or 'reference'")
    if masking.key_bias is not None:
        return without_key_bias(splash, query, key, value, masking)
    mask, tag = masking.segments()
    queries, keys = query.shape[1], key.shape[1]
    block_q, block_kv = block_length(queries), block_length(keys)
    padding = -queries % block_q, -keys % block_kv
    kernel = _kernel(mask, *query.shape[2:], (queries, keys), padding, (block_q, block_kv))

    def arrange(x: Array, pad: int) -> Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, pad), (0, 0)))

    segments = None
    if tag is not None or masking.key_mask is not None:
        segments = splash_attention.SegmentIds(*_segments(masking, tag, (query.shape[0], queries), padding))
    out = jax.vmap(kernel)(arrange(query, padding[0]), arrange(key, padding[1]), arrange(value, padding[1]), segments)
    return out[:, :, :queries].swapaxes(1, 2).astype(value.dtype)


def _segments(
    masking: Masking, tag: str | None, sizes: tuple[int, int], padding: tuple[int, int]
) -> tuple[Int[Array, "batch queries"], Int[Array, "batch keys"]]:
    """The kernel's segments: a query sees the keys of its own one. Padding is in one of its own.

    Args:
      masking: padding and tags.
      tag: of which a query sees its own value only; ``None`` means all keys that exist.
      sizes: batch and queries.
      padding: of queries and keys.
    """
    if tag is None:
        q = jnp.ones((sizes[0], sizes[1] + padding[0]), jnp.int32)
        return q, jnp.pad(masking.key_mask.astype(jnp.int32), ((0, 0), (0, padding[1])))
    q, kv = masking.query_tags[tag].astype(jnp.int32), masking.key_tags[tag].astype(jnp.int32)
    if masking.key_mask is not None:
        kv = jnp.where(masking.key_mask, kv, NOBODY)
    # Rows of padded queries, which nobody reads, stay finite as those of the last query.
    q = jnp.pad(q, ((0, 0), (0, padding[0])), mode="edge")
    return q, jnp.pad(kv, ((0, 0), (0, padding[1])), constant_values=NOBODY)


def _kernel(
    mask: Mask,
    heads: int,
    head_width: int,
    lengths: tuple[int, int],
    padding: tuple[int, int],
    blocks: tuple[int, int],
) -> Callable[..., Array]:
    """The kernel ``(query, key, value, segments) -> out`` of one batch item."""
    shape = lengths[0] + padding[0], lengths[1] + padding[1]
    whole = isinstance(mask, Full) and not padding[1]
    kind = TableMask if mask.table else LazyMask
    lazy = splash_attention.FullMask(shape) if whole else kind(mask, *lengths, shape)
    block_q, block_kv = blocks
    fused = isinstance(mask, Full) and shape[1] <= FUSED_KEYS
    # With the sequence innermost narrow heads are not padded, in memory and on their way to the kernel.
    layouts = splash_attention.QKVLayout
    layout = layouts.SEQ_MINOR if head_width % LANES else layouts.HEAD_DIM_MINOR
    return splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([lazy] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=shape[1] if fused else block_kv,
            block_kv_dkv_compute=block_kv,
            block_q_dq=None if fused else block_q,
            block_kv_dq=None if fused else block_kv,
            use_fused_bwd_kernel=fused,
            q_layout=layout,
            k_layout=layout,
            v_layout=layout,
        ),
        residual_checkpoint_name=RESIDUALS,
        interpret=target_platform() != "tpu",
    )
