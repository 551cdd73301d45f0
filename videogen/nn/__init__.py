"""The parts every network is made of."""

from videogen.nn.attention import Attention, attend
from videogen.nn.linear import Embedding, Linear, parameter, truncated_normal
from videogen.nn.masks import BlockCausal, Causal, Full, Mask, PrefixLM, Window, mask_array
from videogen.nn.norms import LayerNorm, RMSNorm, l2_normalize
from videogen.nn.patches import FirstFramePatches, FirstFramePixels, grid_of, patchify, unpatchify
from videogen.nn.positions import (
    ContinuousPositionBias,
    LearnedPositions,
    PositionGenerator,
    depthwise,
    rotary_angles,
    rotate,
)
from videogen.nn.transformer import MLP, NORMS, REMAT_POLICIES, Block, Stack, dropout

__all__ = [
    "MLP",
    "NORMS",
    "REMAT_POLICIES",
    "Attention",
    "Block",
    "BlockCausal",
    "Causal",
    "ContinuousPositionBias",
    "Embedding",
    "FirstFramePatches",
    "FirstFramePixels",
    "Full",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "Mask",
    "PositionGenerator",
    "PrefixLM",
    "RMSNorm",
    "Stack",
    "Window",
    "attend",
    "depthwise",
    "dropout",
    "grid_of",
    "l2_normalize",
    "mask_array",
    "parameter",
    "patchify",
    "rotary_angles",
    "rotate",
    "truncated_normal",
    "unpatchify",
]
