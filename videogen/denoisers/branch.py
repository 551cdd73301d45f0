"""Further tokens beside a trained transformer: a parallel attention in every block that the tokens of a video are told
by (the "vip" branch of TokensGen; 2025, section on To2V).

The blocks stay as they were. In each of them the queries of text and video look at the branch's tokens as well, in a
softmax of its own, and the branch's tokens look at text, video and themselves.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.nn import (
    MODULATIONS,
    REMAT_POLICIES,
    Attention,
    Linear,
    Mask,
    Stack,
    TransformerSection,
    attend,
    lay_out,
    modulate,
    rotate,
)
from videogen.nn.transformer import Block
from videogen.parallel.cpu import unrolled

ORIGIN = 1000.0
"""What is added to absolute times in the branch, so that they are no times of a window."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beside:
    """What a window of a video is told beside its text.

    Attributes:
      tokens: condensed tokens.
      exists: which there are.
      position: time, row and column of each, in tokens of the video; the time is absolute.
      at: the latent frame of the video that the window begins with.
    """

    tokens: Float[Array, "batch tokens inputs"]
    exists: Bool[Array, "batch tokens"]
    position: Float[Array, "batch tokens 3"]
    at: Int[Array, "batch"]


class BranchLayer(nnx.Module):
    """What the branch adds to a block: projections to queries, keys and values, and a modulation.

    The projection behind the attention and the MLP are the block's. It begins as a copy of the block with
    ``start_from.paths`` (``attention.query_key_value``, ``attention.query_norm``, ``attention.key_norm``,
    ``modulation``).
    """

    def __init__(self, section: TransformerSection, *, modulation: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        settings = {"qk_norm": "head" if section.qk_norm else None, **section.attention}
        self.attention = Attention(section.width, section.heads, **settings, dtype=dtype, rngs=rngs)
        self.attention.out = None
        self.modulation = MODULATIONS[modulation](section.width, 6, rngs=rngs)

    def __call__(
        self,
        block: Block,
        x: Float[Array, "batch sequence width"],
        tokens: Float[Array, "batch tokens width"],
        *,
        scale: float,
        call: dict[str, Any],
        angles: tuple[Float[Array, "batch sequence angles"], Float[Array, "batch tokens angles"]],
        condition: Float[Array, "batch one ..."],
        exists: Bool[Array, "batch tokens"],
    ) -> tuple[Float[Array, "batch sequence width"], Float[Array, "batch tokens width"]]:
        """Both streams one block on."""
        attention, mine = block.attention, self.attention
        first = lay_out(block.modulation(call["condition"]), x, call["group_of"])
        own = lay_out(self.modulation(condition), tokens)
        y = modulate(block.attention_norm(x), *first[:2])
        z = modulate(block.attention_norm(tokens), *own[:2])
        masks = dict(mask=call["mask"], key_mask=call["key_mask"], rotary=call["rotary"])
        seen = attention(y, **masks)
        (q, k, v), (own_q, own_k, own_v) = attention.project(y, None), mine.project(z, None)
        q, k = (rotate(part, angles[0], interleaved=attention.interleaved) for part in (q, k))
        own_q, own_k = (rotate(part, angles[1], interleaved=mine.interleaved) for part in (own_q, own_k))
        beside = attend(_scaled(q, attention), *_repeated(attention, own_k, own_v), key_mask=exists)
        # An example without tokens sees nothing.
        beside = jnp.where(exists.any(axis=1)[:, None, None, None], beside, 0)
        x = x + (seen + scale * _out(attention, beside)) * first[2]
        keys, values = (jnp.concatenate([a, b], axis=1) for a, b in ((k, own_k), (v, own_v)))
        there = jnp.concatenate([call["key_mask"], exists], axis=1)
        gathered = attend(_scaled(own_q, mine), *_repeated(mine, keys, values), key_mask=there)
        tokens = tokens + _out(attention, gathered) * own[2]
        x = x + block.mlp(modulate(block.mlp_norm(x), *first[3:5])) * first[5]
        tokens = tokens + block.mlp(modulate(block.mlp_norm(tokens), *own[3:5])) * own[5]
        return x, tokens


def _scaled(q: Array, attention: Attention) -> Array:
    return q * jnp.asarray(attention.scale, q.dtype)


def _repeated(attention: Attention, *arrays: Array) -> tuple[Array, ...]:
    """Keys and values for every head of the queries."""
    return tuple(jnp.repeat(x, attention.heads // attention.key_value_heads, axis=-2) for x in arrays)


def _out(attention: Attention, x: Float[Array, "batch n heads head_width"]) -> Float[Array, "batch n width"]:
    return attention.out(x.reshape(*x.shape[:2], -1))


class TokenBranch(nnx.Module):
    """The branch of every block of a stack with modulations, and the projection that tokens come in by.

    Args:
      inputs: channels of the tokens.
      section: of the transformer that it stands beside.
      modulation: that of its blocks.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        inputs: int,
        section: TransformerSection,
        *,
        modulation: str = "zero",
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        self.input = Linear(inputs, section.width, axes=(None, "embed"), dtype=dtype, rngs=rngs)

        def layer(rngs: nnx.Rngs) -> BranchLayer:
            return BranchLayer(section, modulation=modulation, dtype=dtype, rngs=rngs)

        self.stack = Stack(layer, section.layers, rngs=rngs)

    def __call__(
        self,
        stack: Stack,
        x: Float[Array, "batch sequence width"],
        tokens: Float[Array, "batch tokens inputs"],
        *,
        mask: Mask,
        key_mask: Bool[Array, "batch sequence"],
        rotary: Float[Array, "sequence angles"] | None,
        condition: Float[Array, "batch groups ..."],
        group_of: Any,
        scale: float,
        angles: tuple[Float[Array, "batch sequence angles"], Float[Array, "batch tokens angles"]],
        branch_condition: Float[Array, "batch one ..."],
        exists: Bool[Array, "batch tokens"],
    ) -> Float[Array, "batch sequence width"]:
        """What the blocks make of ``x``, with the branch beside them.

        Args:
          stack: the blocks.
          x: text and video.
          tokens: what is told beside.
          mask, key_mask, rotary, condition, group_of: as the blocks take them.
          scale: how much the branch counts in text and video.
          angles: of text and video, and of the tokens, in the branch.
          branch_condition: of the modulation of the tokens.
          exists: which of the tokens there are.
        """
        call = dict(mask=mask, key_mask=key_mask, rotary=rotary, condition=condition, group_of=group_of)
        beside = dict(scale=scale, call=call, angles=angles, condition=branch_condition, exists=exists)
        (graph, state), (own_graph, own_state) = nnx.split(stack.layers), nnx.split(self.stack.layers)

        def layer(carry: tuple[Array, Array], states: tuple[Any, Any]) -> tuple[tuple[Array, Array], None]:
            block, own = nnx.merge(graph, states[0]), nnx.merge(own_graph, states[1])
            return own(block, *carry, **beside), None

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        carry = x, self.input(tokens.astype(x.dtype))
        return jax.lax.scan(layer, carry, (state, own_state), unroll=unrolled(stack.depth))[0][0]
