"""Tokenizers: video -> latents -> codes -> video, one contract (see ``docs/add_a_tokenizer.md``)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videogen import building, detokenizers
from videogen.tokenizers.base import Encoded, Tokenizer
from videogen.tokenizers.cdt import Cdt
from videogen.tokenizers.convolutional import ConvolutionalTokenizer
from videogen.tokenizers.cvivit import CViViT
from videogen.tokenizers.detokenized import Detokenized
from videogen.tokenizers.larp import Larp
from videogen.tokenizers.magvit import Magvit
from videogen.tokenizers.omnitokenizer import OmniTokenizer
from videogen.tokenizers.tiling import Tiled


def build_detokenized(
    tokenizer: Mapping[str, Any],
    detokenizer: Mapping[str, Any],
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Detokenized:
    """A tokenizer with a de-tokenizer in the place of its decoder, from the configs ``{name, …}`` of both."""
    common = dict(remat=remat, dtype=dtype, rngs=rngs)
    model = build(tokenizer, **common)
    return Detokenized(model, detokenizers.build(detokenizer, inputs=model.quantizer.width, **common))


TOKENIZERS = {
    "cdt": Cdt,
    "convolutional": ConvolutionalTokenizer,
    "cvivit": CViViT,
    "detokenized": build_detokenized,
    "larp": Larp,
    "magvit": Magvit,
    "omnitokenizer": OmniTokenizer,
}


def build(config: Mapping[str, Any], **shared: Any):
    """Builds a tokenizer from ``{name, …}``; ``shared`` holds ``rngs``, ``dtype``, ``remat``."""
    return building.build(TOKENIZERS, config, "tokenizer", **shared)


__all__ = [
    "TOKENIZERS",
    "CViViT",
    "Cdt",
    "ConvolutionalTokenizer",
    "Detokenized",
    "Encoded",
    "Larp",
    "Magvit",
    "OmniTokenizer",
    "Tiled",
    "Tokenizer",
    "build",
]
