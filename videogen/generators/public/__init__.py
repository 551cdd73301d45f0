"""Generators from their published files: what a config describes, and what the tensors are called.

Each family has a file: the text-to-video transformers of Wan and of LTX-Video.
"""

from videogen.generators.public.family import PREFIXES, Described, Family
from videogen.generators.public.ltx import LTX
from videogen.generators.public.wan import WAN

FAMILIES = (WAN, LTX)

__all__ = ["FAMILIES", "LTX", "PREFIXES", "WAN", "Described", "Family"]
