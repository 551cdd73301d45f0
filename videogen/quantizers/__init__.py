"""Quantizers: latents in, codes out, one contract.

``quantizer(latents, key=…, train=…) -> Quantized(latents, indices, losses, statistics)`` and
``quantizer.lookup(indices) -> latents``; ``quantizer.width`` is the code width, ``quantizer.vocabulary`` the
number of codes per level. Everything is float32 inside.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from videogen import building
from videogen.quantizers.base import Quantized, QuantizerState, straight_through
from videogen.quantizers.lookup_free import LookupFreeQuantizer
from videogen.quantizers.scalar import FiniteScalarQuantizer
from videogen.quantizers.vector import VectorQuantizer

QUANTIZERS = {"vq": VectorQuantizer, "fsq": FiniteScalarQuantizer, "lfq": LookupFreeQuantizer}


def build(config: Mapping[str, Any], *, rngs: nnx.Rngs):
    """Builds a quantizer from ``{name, …}``."""
    return building.build(QUANTIZERS, config, "quantizer", rngs=rngs)


__all__ = [
    "QUANTIZERS",
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "Quantized",
    "QuantizerState",
    "VectorQuantizer",
    "build",
    "straight_through",
]
