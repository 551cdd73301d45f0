"""Generators: distributions over codes, or over continuous latents, given conditioning."""

from collections.abc import Mapping
from typing import Any

from videogen import building
from videogen.errors import UserError
from videogen.generators.flow import FlowTransformer
from videogen.generators.flow_sampling import FlowSampler
from videogen.generators.frame_queue import FrameQueue
from videogen.generators.masked import MaskedTransformer
from videogen.generators.maskgit import MaskGITSampler
from videogen.generators.next_block import NextBlockTransformer
from videogen.generators.sampling import BlockSampler

GENERATORS = {"flow": FlowTransformer, "masked": MaskedTransformer, "next_block": NextBlockTransformer}
SAMPLERS = {"blocks": BlockSampler, "flow": FlowSampler, "maskgit": MaskGITSampler}


def build(config: Mapping[str, Any], **shared: Any):
    """Builds a generator from ``{name, …}``; ``shared`` holds ``vocabulary`` or ``channels``, ``grid``, …"""
    return building.build(GENERATORS, config, "generator", **shared)


def build_sampler(config: Mapping[str, Any]):
    """Builds a sampler from ``{name, …}``."""
    return building.build(SAMPLERS, config, "sampler")


def check_sampler(generator: Any, sampler: Any) -> None:
    """Refuses a sampler that cannot draw from a generator.

    Raises:
      UserError: it is that of another kind of generator, or does not go with this one's settings.
    """
    if not isinstance(sampler, generator.sampler):
        names = {kind: name for name, kind in SAMPLERS.items()}
        right, wrong = names[generator.sampler], names[type(sampler)]
        raise UserError(f"this generator draws with sampler.name={right}, not {wrong!r}")
    sampler.check(generator)


__all__ = [
    "GENERATORS",
    "SAMPLERS",
    "BlockSampler",
    "FlowSampler",
    "FlowTransformer",
    "FrameQueue",
    "MaskGITSampler",
    "MaskedTransformer",
    "NextBlockTransformer",
    "build",
    "build_sampler",
    "check_sampler",
]
