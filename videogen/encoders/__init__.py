"""Frozen public networks, read from their own files."""

from videogen.encoders.archives import read_archive
from videogen.encoders.files import Weights, read_config
from videogen.encoders.t5 import T5, T5Config

__all__ = ["T5", "T5Config", "Weights", "read_archive", "read_config"]
