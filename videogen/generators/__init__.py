"""Generators: distributions over codes given conditioning."""

from collections.abc import Mapping
from typing import Any

from videogen import building
from videogen.generators.masked import MaskedTransformer
from videogen.generators.maskgit import MaskGITSampler
from videogen.generators.next_block import NextBlockTransformer
from videogen.generators.sampling import BlockSampler

GENERATORS = {"masked": MaskedTransformer, "next_block": NextBlockTransformer}
SAMPLERS = {"blocks": BlockSampler, "maskgit": MaskGITSampler}


def build(config: Mapping[str, Any], **shared: Any):
    """Builds a generator from ``{name, …}``; ``shared`` holds ``vocabulary``, ``grid``, ``rngs``, …"""
    return building.build(GENERATORS, config, "generator", **shared)


def build_sampler(config: Mapping[str, Any]):
    """Builds a sampler from ``{name, …}``."""
    return building.build(SAMPLERS, config, "sampler")


__all__ = [
    "GENERATORS",
    "SAMPLERS",
    "BlockSampler",
    "MaskGITSampler",
    "MaskedTransformer",
    "NextBlockTransformer",
    "build",
    "build_sampler",
]
