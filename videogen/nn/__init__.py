"""The parts every network is made of."""

from videogen.nn.attention import Attention, attend
from videogen.nn.convolution import (
    AdaptiveGroupNorm,
    Convolution,
    DepthToSpace,
    GroupNorm,
    ResidualBlock,
    average_pool,
    blur_pool,
    checkpointed,
    convolve,
    repeat,
)
from videogen.nn.factorised import FactorisedStack
from videogen.nn.linear import FULL, Embedding, Linear, next_key, parameter, truncated_normal
from videogen.nn.masks import BlockCausal, Causal, CausalWindow, Full, Mask, PrefixLM, Window, mask_array
from videogen.nn.micro_batches import Mean, MicroBatch, draw, example_keys, split_keys, whole
from videogen.nn.modulation import MODULATIONS, TimeEmbedding, lay_out, modulate
from videogen.nn.norms import LayerNorm, RMSNorm, l2_normalize
from videogen.nn.patches import FirstFramePatches, FirstFramePixels, grid_of, patchify, unpatchify
from videogen.nn.positions import (
    ContinuousPositionBias,
    LearnedPositions,
    PositionGenerator,
    depthwise,
    rotary_angles,
    rotate,
    sincos_positions,
)
from videogen.nn.streaming import Stream
from videogen.nn.transformer import MLP, NORMS, REMAT_POLICIES, Block, Stack, dropout
from videogen.nn.windows import merge_windows, partition_windows

__all__ = [
    "FULL",
    "MLP",
    "MODULATIONS",
    "NORMS",
    "REMAT_POLICIES",
    "AdaptiveGroupNorm",
    "Attention",
    "Block",
    "BlockCausal",
    "Causal",
    "CausalWindow",
    "ContinuousPositionBias",
    "Convolution",
    "DepthToSpace",
    "Embedding",
    "FactorisedStack",
    "FirstFramePatches",
    "FirstFramePixels",
    "Full",
    "GroupNorm",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "Mask",
    "Mean",
    "MicroBatch",
    "PositionGenerator",
    "PrefixLM",
    "RMSNorm",
    "ResidualBlock",
    "Stack",
    "Stream",
    "TimeEmbedding",
    "Window",
    "attend",
    "average_pool",
    "blur_pool",
    "checkpointed",
    "convolve",
    "depthwise",
    "draw",
    "dropout",
    "example_keys",
    "grid_of",
    "l2_normalize",
    "lay_out",
    "mask_array",
    "merge_windows",
    "modulate",
    "next_key",
    "parameter",
    "partition_windows",
    "patchify",
    "repeat",
    "rotary_angles",
    "rotate",
    "sincos_positions",
    "split_keys",
    "truncated_normal",
    "unpatchify",
    "whole",
]
