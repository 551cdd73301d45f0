"""Tokenizers: video -> latents -> codes -> video, one contract (see ``docs/add_a_tokenizer.md``)."""

from collections.abc import Mapping
from typing import Any

from videogen import building
from videogen.tokenizers.convolutional import ConvolutionalTokenizer
from videogen.tokenizers.cvivit import CViViT
from videogen.tokenizers.inflation import inflate
from videogen.tokenizers.larp import Larp
from videogen.tokenizers.magvit import Magvit
from videogen.tokenizers.omnitokenizer import OmniTokenizer

TOKENIZERS = {
    "convolutional": ConvolutionalTokenizer,
    "cvivit": CViViT,
    "larp": Larp,
    "magvit": Magvit,
    "omnitokenizer": OmniTokenizer,
}


def build(config: Mapping[str, Any], **shared: Any):
    """Builds a tokenizer from ``{name, …}``; ``shared`` holds ``rngs``, ``dtype``, ``remat``."""
    return building.build(TOKENIZERS, config, "tokenizer", **shared)


__all__ = ["TOKENIZERS", "CViViT", "ConvolutionalTokenizer", "Larp", "Magvit", "OmniTokenizer", "build", "inflate"]
