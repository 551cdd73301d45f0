"""Generators: distributions over codes, or over continuous latents, given conditioning."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from videogen import building
from videogen.diffusion.latent_statistics import NormalisedLatents
from videogen.errors import UserError
from videogen.generators.adaptive_queue import AdaptiveQueue
from videogen.generators.flow import FlowTransformer
from videogen.generators.flow_beside import FlowBesideTokens
from videogen.generators.flow_sampling import FlowSampler, TrainingNoise
from videogen.generators.frame_queue import FrameQueue
from videogen.generators.masked import MaskedTransformer
from videogen.generators.maskgit import MaskGITSampler
from videogen.generators.next_block import NextBlockTransformer
from videogen.generators.next_frame import NextFrameTransformer
from videogen.generators.next_scale import NextScaleTransformer, ScaleSampler
from videogen.generators.sampling import BlockSampler
from videogen.generators.shortcuts import ATTENTIONS, CACHES, ResidualCache, SparseVideoGen2
from videogen.generators.stepping import Generator, State, Stepper
from videogen.heads import HEADS

GENERATORS = {
    "flow": FlowTransformer,
    "flow_beside_tokens": FlowBesideTokens,
    "masked": MaskedTransformer,
    "next_block": NextBlockTransformer,
    "next_frame": NextFrameTransformer,
    "next_scale": NextScaleTransformer,
}
HEADS_OF = {
    "masked": ("bernoulli", "categorical", "depth", "diffusion", "gaussian", "gaussian_mixture"),
    "next_block": ("bernoulli", "categorical", "depth", "diffusion", "gaussian", "gaussian_mixture"),
    "next_scale": ("bernoulli", "categorical", "depth"),
}
"""Generator -> the heads that go with it (tests/generators/test_heads_of_generators.py); ``flow`` has none,
and ``next_frame`` one of its own."""

SAMPLERS = {"blocks": BlockSampler, "flow": FlowSampler, "maskgit": MaskGITSampler, "scales": ScaleSampler}


def class_of(config: Mapping[str, Any]) -> type[nnx.Module]:
    """The class of a generator config; raises ``UserError`` for an unknown name."""
    return building.look_up(GENERATORS, config, "generator")


def build(config: Mapping[str, Any], *, vocabulary: Sequence[int] = (), channels: int = 0, **shared: Any):
    """Builds a generator from ``{name, …}``.

    Args:
      config: its section.
      vocabulary: codes of each level of its tokens …
      channels: … or their channels, where they are floats.
      **shared: ``grid`` and what else all generators take; ``layout`` and ``features`` of one that draws scales.

    Raises:
      UserError: something is unknown, the head is none of those that go with the generator, or one of the two does not
        model such tokens.
    """
    if class_of(config).denoises:
        return building.build(GENERATORS, config, "generator", vocabulary=vocabulary, channels=channels, **shared)
    name, head = config.get("name"), config.get("head") or {}
    known = HEADS_OF.get(name, ()) if isinstance(name, str) else ()
    if known and "name" in head and head["name"] in HEADS and head["name"] not in known:
        raise UserError(f"the head {head['name']!r} does not go with {name!r}; take one of: {', '.join(known)}")
    values = {} if class_of(config).draws_scales else dict(vocabulary=vocabulary, channels=channels or None)
    return building.build(GENERATORS, config, "generator", **values, **shared)


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
    "ATTENTIONS",
    "CACHES",
    "GENERATORS",
    "HEADS_OF",
    "SAMPLERS",
    "AdaptiveQueue",
    "BlockSampler",
    "FlowBesideTokens",
    "FlowSampler",
    "FlowTransformer",
    "FrameQueue",
    "Generator",
    "MaskGITSampler",
    "MaskedTransformer",
    "NextBlockTransformer",
    "NextFrameTransformer",
    "NextScaleTransformer",
    "NormalisedLatents",
    "ResidualCache",
    "ScaleSampler",
    "SparseVideoGen2",
    "State",
    "Stepper",
    "TrainingNoise",
    "build",
    "build_sampler",
    "class_of",
    "check_sampler",
]
