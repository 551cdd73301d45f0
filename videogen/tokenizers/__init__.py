"""Tokenizers: video -> latents -> codes -> video, one contract (see ``docs/add_a_tokenizer.md``)."""

from collections.abc import Mapping
from typing import Any

from videogen import building
from videogen.tokenizers.convolutional import ConvolutionalTokenizer
from videogen.tokenizers.cvivit import CViViT
from videogen.tokenizers.inflation import inflate
from videogen.tokenizers.magvit import Magvit

TOKENIZERS = {"convolutional": ConvolutionalTokenizer, "cvivit": CViViT, "magvit": Magvit}


def build(config: Mapping[str, Any], **shared: Any):
    """Builds a tokenizer from ``{name, …}``; ``shared`` holds ``rngs``, ``dtype``, ``remat``."""
    return building.build(TOKENIZERS, config, "tokenizer", **shared)


__all__ = ["TOKENIZERS", "CViViT", "ConvolutionalTokenizer", "Magvit", "build", "inflate"]
