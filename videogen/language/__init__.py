"""Streams of ids and floats, and language models over them: layouts of tasks as data, one head for each segment."""

from collections.abc import Mapping
from typing import Any

from videogen import building
from videogen.language.backbones import BACKBONES, Backbone
from videogen.language.decoding import Decoding
from videogen.language.layouts import Floats, Ids, Kinds, Marker, Part, StreamLayout, read_layouts
from videogen.language.model import StreamModel
from videogen.language.sampling import LanguageSampler
from videogen.language.slots import Filled
from videogen.language.stream import MASK, PACKED, WORD, TokenStream, build_stream, dealt, existing
from videogen.language.tables import Table, compile_layouts
from videogen.language.vocabulary import Bins, Vocabulary

SAMPLERS = {"language": LanguageSampler}
"""Public name -> class of what draws from a language model over streams."""


def build_sampler(config: Mapping[str, Any]) -> LanguageSampler:
    """Builds a sampler from ``{name, …}``."""
    return building.build(SAMPLERS, config, "sampler")


__all__ = [
    "BACKBONES",
    "MASK",
    "PACKED",
    "SAMPLERS",
    "WORD",
    "Backbone",
    "Bins",
    "Decoding",
    "Filled",
    "Floats",
    "Ids",
    "Kinds",
    "LanguageSampler",
    "Marker",
    "Part",
    "StreamLayout",
    "StreamModel",
    "Table",
    "TokenStream",
    "Vocabulary",
    "build_sampler",
    "build_stream",
    "compile_layouts",
    "dealt",
    "existing",
    "read_layouts",
]
