"""Quantizers: latents in, codes out, one contract.

``quantizer(latents, key=…, train=…, exists=…) -> Quantized(latents, indices, losses, statistics)`` and
``quantizer.lookup(indices) -> latents``; ``quantizer.width`` is the code width, ``quantizer.input_width`` that of the
latents, ``quantizer.vocabulary`` the number of codes per level. Everything is float32 inside.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from videogen import building
from videogen.quantizers.additive import AdditiveQuantizer
from videogen.quantizers.base import Quantized, Quantizer, QuantizerState, mean_figures
from videogen.quantizers.bernoulli import BernoulliQuantizer
from videogen.quantizers.binary_spherical import BinarySphericalQuantizer
from videogen.quantizers.dual_codebook import DualCodebookQuantizer
from videogen.quantizers.estimators import ESTIMATORS, rotation, straight_through
from videogen.quantizers.gaussian import GaussianQuantizer
from videogen.quantizers.health import UsageWatch, codebook_health, evaluated_health
from videogen.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from videogen.quantizers.lookup_free import LookupFreeQuantizer
from videogen.quantizers.multi_scale import MultiScaleQuantizer
from videogen.quantizers.per_dimension import PerDimensionQuantizer
from videogen.quantizers.product import ProductQuantizer
from videogen.quantizers.residual import ResidualQuantizer
from videogen.quantizers.scalar import FiniteScalarQuantizer
from videogen.quantizers.simvq import SimVectorQuantizer
from videogen.quantizers.stochastic import StochasticVectorQuantizer
from videogen.quantizers.two_paths import TwoPathQuantizer
from videogen.quantizers.unquantized import Unquantized
from videogen.quantizers.vector import VectorQuantizer

QUANTIZERS = {
    "vq": VectorQuantizer,
    "dual_codebook": DualCodebookQuantizer,
    "simvq": SimVectorQuantizer,
    "ibq": IndexBackpropagationQuantizer,
    "stochastic": StochasticVectorQuantizer,
    "residual": ResidualQuantizer,
    "multi_scale": MultiScaleQuantizer,
    "product": ProductQuantizer,
    "additive": AdditiveQuantizer,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "bsq": BinarySphericalQuantizer,
    "bernoulli": BernoulliQuantizer,
    "gaussian": GaussianQuantizer,
    "per_dimension": PerDimensionQuantizer,
    "two_paths": TwoPathQuantizer,
    "unquantized": Unquantized,
}


def build(config: Mapping[str, Any], *, rngs: nnx.Rngs) -> Quantizer:
    """Builds a quantizer from ``{name, …}``."""
    return building.build(QUANTIZERS, config, "quantizer", rngs=rngs)


__all__ = [
    "ESTIMATORS",
    "QUANTIZERS",
    "AdditiveQuantizer",
    "BernoulliQuantizer",
    "BinarySphericalQuantizer",
    "DualCodebookQuantizer",
    "FiniteScalarQuantizer",
    "GaussianQuantizer",
    "IndexBackpropagationQuantizer",
    "LookupFreeQuantizer",
    "MultiScaleQuantizer",
    "PerDimensionQuantizer",
    "ProductQuantizer",
    "Quantized",
    "Quantizer",
    "QuantizerState",
    "ResidualQuantizer",
    "SimVectorQuantizer",
    "StochasticVectorQuantizer",
    "TwoPathQuantizer",
    "Unquantized",
    "UsageWatch",
    "VectorQuantizer",
    "build",
    "codebook_health",
    "evaluated_health",
    "mean_figures",
    "rotation",
    "straight_through",
]
